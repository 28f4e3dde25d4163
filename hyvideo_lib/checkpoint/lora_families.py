"""Which family a LoRA file is of: how its tensors end, what stands before the module names, and whose those are.

The three are independent, and all combinations occur. Only enough is looked at to name the family and to tell LoRAs for
other models; which module each tensor belongs to is resolved where LoRAs are applied.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .header import TensorInfo
from .layout import Layout, Match
from .lora_models import FLUX, I2V, Told, lora_model
from .lora_sizes import (
    ALPHA,
    BIAS_DIFF,
    DIFF,
    DOWN,
    RELEASED,
    UP,
    LoraModule,
    Rows,
    flat,
    known_modules,
    misfit,
    widths,
)
from .read import Header
from .variants import match_layout

# End of a name -> how the family writes its two matrices.
_ENDS = (
    (re.compile(r"\.lora_(?:down|up)\.weight$"), "lora_down"),
    (re.compile(r"\.lora_[AB]\.weight$"), "lora_A"),
    (re.compile(r"\.lora_[AB]\.[A-Za-z0-9_]+\.weight$"), "lora_A.default"),
    (re.compile(r"\.lora_[AB]$"), "lora_A bare"),
    (re.compile(r"_lora\.(?:down|up)\.weight$"), "_lora.down"),
    (re.compile(r"\.lora\.(?:down|up)\.weight$"), "lora.down"),
    (re.compile(r"\.lora_linear_layer\.(?:down|up)\.weight$"), "lora_linear_layer"),
    (re.compile(r"\.hada_[wt][12](?:_[ab])?$"), "LoHa"),
    (re.compile(r"\.lokr_(?:w[12](?:_[ab])?|t2)$"), "LoKr"),
    (re.compile(r"\.dora_scale$|\.lora_magnitude_vector(?:\.\w+)*$"), "DoRA"),
    (re.compile(r"\.lora_mid\.weight$"), "LoRA with a Tucker core"),
    (re.compile(r"\.oft_(?:blocks|diag)$"), "OFT"),
    (re.compile(r"\.on_input$"), "(IA)3"),
    (re.compile(r"\.set_weight$"), "Replacement weights"),
    (re.compile(r"\.reshape_weight$"), "LoRA that widens layers"),
    (re.compile(r"\.diff(?:_b)?$"), "diff"),
    (re.compile(r"\.(?:alpha|w_norm|b_norm)$"), "other"),
)
_REFUSED = (
    "DoRA",
    "LoKr",
    "LoHa",
    "LoRA with a Tucker core",
    "OFT",
    "(IA)3",
    "Replacement weights",
    "LoRA that widens layers",
)
_PREFIXES = (
    "Hunyuan_video_I2V_lora_",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
    "base_model.model.transformer.",
    "base_model.model.",
    "diffusion_model.",
    "transformer.",
    "model.diffusion_model.",
    "",
)
_ROLES = {
    DOWN: re.compile(r"lora_down\.weight$|lora_A(?:\.\w+)*$|[._]lora(?:_linear_layer)?\.down\.weight$"),
    UP: re.compile(r"lora_up\.weight$|lora_B(?:\.\w+)*$|[._]lora(?:_linear_layer)?\.up\.weight$"),
    DIFF: re.compile(r"\.diff$"),
    BIAS_DIFF: re.compile(r"\.diff_b$"),
    ALPHA: re.compile(r"\.alpha$"),
}
_I2V_PREFIX = "Hunyuan_video_I2V_lora_"
# Whose module names: looked for after the prefix, with dots or underscores between the words; the first hit counts.
_MODULES = tuple(
    (names, re.compile("|".join(patterns)))
    for names, patterns in (
        (
            "diffusers",
            (
                r"(?:^|[._])(?:single_)?transformer_blocks[._]\d+[._]|^context_embedder[._]|^norm_out[._]linear",
                r"^x_embedder[._]|^proj_out$|^time_text_embed[._]",
            ),
        ),
        (
            "comfyui",
            (
                r"(?:img|txt)_attn\.(?:qkv|proj)|(?:img|txt)_mlp[._][02]$|(?:img|txt)_mod[._]lin$|modulation[._]lin$",
                r"\.self_attn\.(?:qkv|proj)$|[._]mlp[._][02]$",
            ),
        ),
        (
            "tencent",
            (r"^(?:double_blocks|single_blocks|txt_in|img_in|final_layer|time_in|vector_in|guidance_in)[._]",),
        ),
    )
)
# (prefix, module names) -> the family's name in the table of LoRA layouts.
_FAMILIES = {
    ("Hunyuan_video_I2V_lora_", "tencent"): "tencent_i2v",
    ("lora_unet_", "tencent"): "kohya_musubi",
    ("lora_unet_", "comfyui"): "comfy_lora_unet",
    ("lora_unet_", "diffusers"): "onetrainer_lycoris",
    ("lora_transformer_", "diffusers"): "onetrainer_lycoris",
    ("lora_transformer_", "tencent"): "onetrainer_lycoris",
    ("lycoris_", "diffusers"): "onetrainer_lycoris",
    ("lycoris_", "tencent"): "onetrainer_lycoris",
    ("transformer.", "tencent"): "diffusion_pipe",
    ("diffusion_model.", "tencent"): "diffusion_pipe",
    ("diffusion_model.", "comfyui"): "comfy_generic",
    ("model.diffusion_model.", "tencent"): "diffusion_pipe",
    ("model.diffusion_model.", "comfyui"): "comfy_generic",
    ("transformer.", "comfyui"): "comfy_generic",
    ("", "comfyui"): "comfy_generic",
    ("transformer.", "diffusers"): "diffusers_peft",
    ("diffusion_model.", "diffusers"): "fal",
    ("", "diffusers"): "fal",
    ("", "tencent"): "fal",
    **{
        (prefix, names): "peft_raw"
        for prefix in ("base_model.model.", "base_model.model.transformer.")
        for names in ("tencent", "comfyui", "diffusers")
    },
}


@dataclass(frozen=True)
class LoraFacts:
    """What a header tells of a LoRA: how its matrices are called, whose module names it has, and its sizes.

    modules: how many it changes. ranks: those that occur. in_channels: of a LoRA on the patch embedding, else None.
    """

    matrices: str
    module_names: str
    modules: int
    ranks: tuple[int, ...]
    has_alpha: bool
    in_channels: int | None


def match_lora(header: Header) -> tuple[Match, LoraFacts] | None:
    """The family of a LoRA file, and its facts; None for a file that is mostly something else that is known.

    The layout's variant is the model that it was trained on, where that shows.
    """
    parts = {name: hit for name in header.tensors if (hit := _split(name)) is not None}
    styles = Counter(style for _, style in parts.values() if style != "other")
    if not styles or (2 * len(parts) < len(header.tensors) and match_layout(header)):
        return None
    prefix = _common_prefix(path for path, _ in parts.values())
    paths_in_full = {path for path, _ in parts.values()}
    paths = {path.removeprefix(prefix) for path in paths_in_full}
    names = _module_names(paths)
    facts = LoraFacts(
        matrices=next((style for style in _REFUSED if style in styles), styles.most_common(1)[0][0]),
        module_names=names,
        modules=len(paths),
        ranks=tuple(sorted({shape[0] for name in parts if _is_down(name) and (shape := header.shape(name))})),
        has_alpha=any(name.endswith(".alpha") for name in parts),
        in_channels=_patch_channels(header, parts),
    )
    family = _FAMILIES.get((prefix, names), "other")
    told = told_model(header)
    refusal = told.refusal if told else ""
    if told and refusal:
        family = "flux" if told.model is FLUX else "other"
    elif family == "other" or not any(map(_known_rows, paths_in_full)):
        family, refusal = "other", "This LoRA is for another model; its module names are none of HunyuanVideo's (13B)."
    elif header.format == "gguf":
        refusal = "It is a GGUF file; LoRAs are read as .safetensors. Use that version of it."
    elif facts.matrices in _REFUSED:
        refusal = f"{facts.matrices} is not supported; only plain LoRA (two matrices a layer) and differences are."
    else:
        refusal = _doubled(parts) or misfit(_modules(header, parts))
    variant = told.model.variant if told else ""
    return Match(Layout("lora", family, (), variant=variant, refusal=refusal), ""), facts


def told_model(header: Header) -> Told | None:
    """The model that a LoRA is for, where that is not just HunyuanVideo's text to video."""
    parts = {name: hit for name in header.tensors if (hit := _split(name)) is not None}
    paths = {path: _prefix(path) for path, _ in parts.values()}
    bare = sorted(path.removeprefix(prefix) for path, prefix in paths.items())
    told = lora_model(header.metadata, bare, widths(_modules(header, parts)).keys())
    if told is None and _I2V_PREFIX in paths.values():
        return Told(I2V, f"its modules are called {_I2V_PREFIX}..., as by Tencent's trainer for that model")
    return told


def lora_notes(header: Header) -> tuple[str, ...]:
    """What to say of a LoRA that loads although it was trained on something else."""
    told = told_model(header)
    notes = [told.note] if told and told.note else []
    parts = {name: hit for name in header.tensors if (hit := _split(name)) is not None}
    for width, _ in widths(_modules(header, parts)).most_common(1):
        if width != RELEASED.hidden_size:
            notes.append(f"It is for a transformer {width} wide; the released one is {RELEASED.hidden_size} wide.")
    return tuple(notes)


def _modules(header: Header, parts: Mapping[str, tuple[str, str]]) -> list[LoraModule]:
    """The modules that HunyuanVideo has, with the tensors of plain LoRA and of differences by role."""
    found: dict[str, dict[str, TensorInfo]] = {}
    for name, (path, _) in parts.items():
        role = _role(name[len(path) :])
        if role:
            found.setdefault(path, {})[role] = header.tensors[name]
    return [
        LoraModule(path, rows, tensors)
        for path, tensors in found.items()
        if tensors.keys() - {ALPHA} and (rows := _known_rows(path))
    ]


def _known_rows(path: str) -> Rows | None:
    """What a module's path, with its prefix, speaks of in HunyuanVideo's transformer."""
    return known_modules().get(flat(path.removeprefix(_prefix(path))))


def _doubled(parts: Mapping[str, tuple[str, str]]) -> str:
    """A complaint about two tensors that are the same thing under two names."""
    found: dict[tuple[str, str], str] = {}
    for name, (path, _) in parts.items():
        role = _role(name[len(path) :])
        if role and _known_rows(path) and (path, role) in found:
            return f"It has {found[path, role]!r} and {name!r}, which are the same thing. Use a file with one of them."
        found[path, role] = name
    return ""


def _role(ending: str) -> str:
    """Which part of a plain LoRA a tensor is, by the end of its name; empty for parts of other methods."""
    return next((role for role, pattern in _ROLES.items() if pattern.search(ending)), "")


def _prefix(path: str) -> str:
    """The longest prefix that a path carries."""
    return next(prefix for prefix in sorted(_PREFIXES, key=len, reverse=True) if path.startswith(prefix))


def _split(name: str) -> tuple[str, str] | None:
    """(module path, style) of a tensor that belongs to a LoRA."""
    for pattern, style in _ENDS:
        hit = pattern.search(name)
        if hit:
            return name[: hit.start()], style
    return None


def _common_prefix(paths: Iterable[str]) -> str:
    """The prefix that most of the modules carry, of those that HunyuanVideo has if there are any."""
    whole = list(paths)
    known = [path for path in whole if _known_rows(path)]
    counts = Counter(next(prefix for prefix in _PREFIXES if path.startswith(prefix)) for path in known or whole)
    return counts.most_common(1)[0][0]


def _module_names(paths: Iterable[str]) -> str:
    """Whose module names these are: the first of the table that any path has. Tencent's, with underscores for dots, are
    partly ComfyUI's too; what only one of them has decides."""
    whole = list(paths)
    for names, pattern in _MODULES:
        if any(pattern.search(path) for path in whole):
            return names
    return "other"


def _is_down(name: str) -> bool:
    return bool(_ROLES[DOWN].search(name))


def _patch_channels(header: Header, parts: Iterable[str]) -> int | None:
    """Channels that a LoRA on the patch embedding takes, where its matrix still has the form of a convolution."""
    for name in parts:
        shape = header.shape(name) or ()
        if re.search(r"img_in[._]proj|x_embedder[._]proj", name) and _is_down(name) and len(shape) == 5:
            return shape[1]
    return None
