"""Which family a LoRA file is of: how its tensors end, what stands before the module names, and whose those are.

The three are independent, and all combinations occur. Only enough is looked at to name the family and to tell LoRAs for
other models; which module each tensor belongs to is resolved where LoRAs are applied.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .layout import Layout, Match
from .read import Header

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
# Where trainers note the model that a LoRA is for, and how they begin the names of others.
_MODEL_METADATA = ("modelspec.architecture", "ss_base_model_version")
_OTHER_MODELS = ("flux", "wan", "ltx", "stable", "sd", "qwen", "cogvideo", "mochi")
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
# Whose module names: looked for after the prefix, with dots or underscores between the words; the first hit counts.
_MODULES = tuple(
    (names, re.compile("|".join(patterns)))
    for names, patterns in (
        (
            "other",
            (
                r"^blocks[._]\d+[._](?:self_attn|cross_attn|attn[12])[._]",  # Wan
                r"transformer_blocks[._]\d+[._]attn[12][._]",  # LTX, Stable Diffusion
                r"(?:^|[._])(?:down|up)_blocks[._]|(?:^|[._])mid_block[._]|^(?:input|output|middle)_blocks?[._]",
                r"^te\d?_|^text_model[._]|^joint_blocks[._]",
                r"double_blocks[._]\d+[._](?:img|txt)_attn_[qkv](?![a-z])",  # HunyuanVideo 1.5
                r"double_blocks[._](?:[2-9]\d|\d{3,})[._]|^byt5_in|^vision_in|^cond_type_embed|^context_embedder_2",
            ),
        ),
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
_FLUX_BLOCKS = (19, 38)  # double and single, all of them; HunyuanVideo has 20 and 40

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
    """The family of a LoRA file, and its facts; None for a file that is mostly something else."""
    parts = {name: hit for name in header.tensors if (hit := _split(name)) is not None}
    styles = Counter(style for _, style in parts.values() if style != "other")
    if not styles or 2 * len(parts) < len(header.tensors):
        return None
    prefix = _common_prefix(parts)
    paths = {path.removeprefix(prefix) for path, _ in parts.values()}
    names = _module_names(paths)
    facts = LoraFacts(
        matrices=next((style for style in _REFUSED if style in styles), styles.most_common(1)[0][0]),
        module_names=names,
        modules=len(paths),
        ranks=tuple(sorted({shape[0] for name in parts if _is_down(name) and (shape := header.shape(name))})),
        has_alpha=any(name.endswith(".alpha") for name in parts),
        in_channels=_patch_channels(header, parts),
    )
    family, refusal = _FAMILIES.get((prefix, names), "other"), ""
    if family == "other":
        refusal = "This LoRA is for another model; its module names are none of HunyuanVideo's (13B)."
    elif stated := _stated_other_model(header):
        family, refusal = "other", f"This LoRA says that it is for another model: {stated}."
    elif names == "comfyui" and _is_flux(paths):
        family, refusal = "flux", "This LoRA is for Flux: it changes all its 19 double and 38 single blocks, no more."
    elif facts.matrices in _REFUSED:
        refusal = f"{facts.matrices} is not supported; only plain LoRA (two matrices a layer) and differences are."
    return Match(Layout("lora", family, (), refusal=refusal), ""), facts


def _split(name: str) -> tuple[str, str] | None:
    """(module path, style) of a tensor that belongs to a LoRA."""
    for pattern, style in _ENDS:
        hit = pattern.search(name)
        if hit:
            return name[: hit.start()], style
    return None


def _common_prefix(parts: dict[str, tuple[str, str]]) -> str:
    """The prefix that most of the modules carry."""
    counts = Counter(next(prefix for prefix in _PREFIXES if path.startswith(prefix)) for path, _ in parts.values())
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
    return bool(re.search(r"lora_down\.weight$|lora_A(?:\.\w+)*$|lora(?:_linear_layer)?\.down\.weight$", name))


def _patch_channels(header: Header, parts: Iterable[str]) -> int | None:
    """Channels that a LoRA on the patch embedding takes, where its matrix still has the form of a convolution."""
    for name in parts:
        shape = header.shape(name) or ()
        if re.search(r"img_in[._]proj|x_embedder[._]proj", name) and _is_down(name) and len(shape) == 5:
            return shape[1]
    return None


def _stated_other_model(header: Header) -> str:
    stated = [header.metadata.get(key, "") for key in _MODEL_METADATA]
    return next((model[:80] for model in stated if model.lower().startswith(_OTHER_MODELS)), "")


def _is_flux(paths: Iterable[str]) -> bool:
    found: dict[str, set[int]] = {"double": set(), "single": set()}
    for path in paths:
        if hit := re.match(r"(double|single)_blocks[._](\d+)[._]", path):
            found[hit[1]].add(int(hit[2]))
    return (found["double"], found["single"]) == tuple(set(range(count)) for count in _FLUX_BLOCKS)
