"""Which family a LoRA file is of, and whether it can be used, without the transformer that it will meet.

A family is the prefix of the tensors' names and whose module names stand behind it. Names and shapes are resolved as
the loader does it (`lora_resolve`), at the sizes of the released model or, for a LoRA of another width, at that width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from ..errors import BadInput
from .layout import Layout, Match
from .lora_layers import MODULE_NAMES, RELEASED
from .lora_match import Hit, match_modules
from .lora_models import FLUX
from .lora_resolve import match_names, resolve
from .lora_sizes import PATCH, likely_width, misfit, sized_modules
from .lora_tensors import ALPHA, DOWN, HADA, Split, method_names, refused_method, split_name
from .lora_told import told_model
from .read import Header
from .variants import match_layout

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


"""(prefix, module names) -> the family's name in the table of LoRA layouts."""
UNUSUAL = "unusual_prefix"
"""The family of HunyuanVideo's LoRAs behind words that no known trainer writes."""


@dataclass(frozen=True)
class LoraFacts:
    """What a header tells of a LoRA: how its matrices are called, whose module names it has, and its sizes.

    matrices: the method, where that is not plain LoRA. modules: how many it changes. ranks: those that occur.
    in_channels: of a LoRA on the patch embedding, else None.
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
    parts = {name: split for name in header.tensors if (split := split_name(name))}
    others = [name for name in header.tensors if name not in parts and refused_method(name)]
    is_lora = any(split.role != ALPHA for split in parts.values()) or bool(others)
    if not is_lora or (2 * (len(parts) + len(others)) < len(header.tensors) and match_layout(header)):
        return None
    hits = match_modules([split.stem for split in parts.values()], RELEASED)
    names = _module_names(hits.values())
    told = told_model(header)
    facts = _facts(header, parts, names)
    family = _FAMILIES.get((_prefix(hits.values()), names), UNUSUAL if hits else "other")
    if told and told.refusal:
        family, refusal = "flux" if told.model is FLUX else "other", told.refusal
    elif not hits and not others:
        refusal = "This LoRA is for another model; its module names are none of HunyuanVideo's (13B)."
    else:
        refusal = _complaint(header, facts)
    variant = told.model.variant if told else ""
    return Match(Layout("lora", family, (), variant=variant, refusal=refusal), ""), facts


def _complaint(header: Header, facts: LoraFacts) -> str:
    """Why the loader refuses a LoRA for HunyuanVideo; empty if it does not."""
    hits = match_modules([split.stem for name in header.tensors if (split := split_name(name))], RELEASED)
    sized = sized_modules(header, hits)
    try:
        if likely_width(sized) != RELEASED.hidden_size:
            match_names(header, RELEASED)
            return misfit(sized)
        resolve(header, replace(RELEASED, in_channels=facts.in_channels or RELEASED.in_channels))
    except BadInput as error:
        return str(error)
    return ""


def _facts(header: Header, parts: dict[str, Split], names: str) -> LoraFacts:
    ranks = {
        shape[0] for name, split in parts.items() if split.role in (DOWN, HADA[1]) and (shape := header.shape(name))
    }
    styles = Counter(_style(name, split) for name, split in parts.items() if split.role != ALPHA)
    methods = [method for method in method_names(split.role for split in parts.values()) if method != "LoRA"]
    is_plain = not methods or methods == ["whole differences"]
    refused = next((method for name in header.tensors if (method := refused_method(name))), "")
    style = max(styles, key=lambda style: (styles[style], style)) if styles else ""
    return LoraFacts(
        matrices=refused or (style if is_plain else methods[-1]),
        module_names=names,
        modules=len({split.stem for split in parts.values()}),
        ranks=tuple(sorted(ranks)),
        has_alpha=any(split.role == ALPHA for split in parts.values()),
        in_channels=_patch_channels(header, parts),
    )


def _style(name: str, split: Split) -> str:
    """How a tensor's matrix is called, by the end of its name: `lora_A.default`, `_lora.down`, `diff`."""
    end = name[len(split.stem) :]
    for one, other in (("lora_B", "lora_A"), ("lora_up", "lora_down"), (".up.", ".down."), ("diff_b", "diff")):
        end = end.replace(one, other)
    bare = end.removesuffix(".weight").lstrip(".").replace("lora_linear_layer.down", "lora_linear_layer")
    if split.adapter:
        bare = bare.replace(split.adapter, "default")
    return f"{bare} bare" if bare == end.lstrip(".") == "lora_A" else bare


def _module_names(hits: Iterable[Hit]) -> str:
    """Whose module names these are. One that several layouts share counts for the first of them, so any that only one
    has decides."""
    layouts = {hit.place.layout for hit in hits}
    return next((name for name in reversed(MODULE_NAMES) if name in layouts), "other")


def _prefix(hits: Collection[Hit]) -> str:
    """The prefix that most of the modules carry."""
    counts = Counter(hit.prefix for hit in hits)
    return counts.most_common(1)[0][0] if counts else ""


def _patch_channels(header: Header, parts: dict[str, Split]) -> int | None:
    """Channels that a LoRA on the patch embedding takes, where its matrix still has the form of a convolution."""
    hits = match_modules([split.stem for split in parts.values()], RELEASED)
    for name, split in parts.items():
        shape = header.shape(name) or ()
        if split.stem in hits and hits[split.stem].place.layer == PATCH and split.role == DOWN and len(shape) == 5:
            return shape[1]
    return None
