"""The table of known files, and which model of its kind a transformer is.

The rows are in `known_transformers`, `known_strangers` and `known_others`; the first that fits wins, so one that is a
special case of another stands before it. Where tensors cannot tell two models apart (three of the family take 16
channels and have the same names and shapes), the user chooses; a file's name is only a hint, and a contradiction is
told.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .known_others import TEXT_ROWS, VAE_ROWS
from .known_strangers import STRANGERS
from .known_transformers import ROWS
from .layout import Layout, Match
from .parts import find_parts
from .read import Header

LAYOUTS = (*ROWS, *STRANGERS, *VAE_ROWS, *TEXT_ROWS)

KIND_NAMES = {
    "transformer": "a transformer (diffusion model)",
    "vae": "a VAE",
    "llama": "a Llama text encoder",
    "clip": "a CLIP text encoder",
    "t5": "a T5 text encoder",
    "text": "another model's text encoder",
    "vision": "an image encoder",
    "lora": "a LoRA",
    "controlnet": "a ControlNet",
    "scale_map": "the scales of fp8 weights",
    "unknown": "a file of unknown kind",
}

SCALE_SUFFIX = ".fp8_scale"  # Tencent's scale map, one number beside each weight


@dataclass(frozen=True)
class Variant:
    """One model of the family. hint: what its files tend to be called, a regular expression for lower case."""

    title: str
    hint: str


VARIANTS = {
    "t2v": Variant("text to video", r"t2v|text.?to.?video"),
    "i2v_token_replace": Variant("image to video, token replace", r"i2v|image.?to.?video"),
    "custom_reference": Variant("HunyuanCustom, with a reference image", r"custom"),
    "i2v_latent_concat": Variant(
        "image to video, takes noisy latents, image latents and a mask", r"i2v|image.?to.?video"
    ),
    "i2v_concat_no_mask": Variant(
        "image to video, SkyReels' kind: takes noisy latents and image latents", r"sky.?reels"
    ),
    "keyframe_host": Variant(
        "host of a keyframe or control LoRA: takes noisy latents and control latents", r"keyframe"
    ),
    "other": Variant("no known variant", r"(?!)"),
}

_OTHERWISE = " One that is not t2v loads all the same, and makes poor videos from text alone."

# How many channels go in beyond those that come out (as functions of these) -> what it can be, the usual one first.
_SAME_CHANNELS = ("t2v", "i2v_token_replace", "custom_reference")
_TWICE = ("i2v_concat_no_mask", "keyframe_host")
_TWICE_AND_MASK = ("i2v_latent_concat",)


def match_layout(header: Header) -> Match | None:
    """The first row of the table that fits a header, and the prefix that its names carry."""
    parts = find_parts(header, LAYOUTS)
    return parts[0].match if parts else None


def possible_variants(in_channels: int, out_channels: int) -> tuple[str, ...]:
    """The models of the family that take and give so many channels; the one that is assumed unasked is first."""
    extra = in_channels - out_channels
    table = {0: _SAME_CHANNELS, out_channels: _TWICE, out_channels + 1: _TWICE_AND_MASK}
    return table.get(extra, ("other",))


def choose_variant(
    possible: tuple[str, ...], file_name: str, choice: str | None = None
) -> tuple[str, tuple[str, ...], str]:
    """Weigh what the tensors allow, what the user says, and what the file is called.

    Returns the variant, notes for people, and a complaint if the choice contradicts the tensors. The choice decides
    among what is possible; the name never does, but where it points elsewhere, a note says so.
    """
    titles = " / ".join(f"{name} ({VARIANTS[name].title})" for name in possible)
    if choice is not None and choice not in possible:
        known = f"{choice} was chosen" if choice in VARIANTS else f"{choice!r} was chosen, which is no variant"
        return possible[0], (), f"{known}, but by its tensors the file is {titles}."
    variant = choice or possible[0]
    notes = [f"{VARIANTS[variant].title[0].upper()}{VARIANTS[variant].title[1:]}."]
    if len(possible) > 1 and choice is None:
        otherwise = _OTHERWISE if variant == "t2v" else ""
        notes.append(f"Its tensors are the same for {titles}; they cannot tell.{otherwise}")
    contradiction = name_contradiction(file_name, variant, possible)
    if contradiction:
        notes.append(contradiction)
    return variant, tuple(notes), ""


def name_contradiction(file_name: str, variant: str, possible: tuple[str, ...]) -> str:
    """A sentence if a file is called otherwise than it is taken; empty if its name agrees or says nothing."""
    hinted = hinted_variants(file_name)
    if not hinted or variant in hinted:
        return ""
    better = [name for name in hinted if name in possible]
    advice = "the tensors fit both." if better else "the tensors count, not the name."
    otherwise = _OTHERWISE if better and variant == "t2v" else ""
    return f"Its name says {' or '.join(hinted)}, but it is taken as {variant}: {advice}{otherwise}"


def hinted_variants(file_name: str) -> tuple[str, ...]:
    """The variants that a file's name suggests; none if it suggests nothing."""
    return tuple(name for name, variant in VARIANTS.items() if re.search(variant.hint, file_name.lower()))


__all__ = [
    "KIND_NAMES",
    "LAYOUTS",
    "SCALE_SUFFIX",
    "VARIANTS",
    "Layout",
    "Match",
    "choose_variant",
    "hinted_variants",
    "match_layout",
    "name_contradiction",
    "possible_variants",
]
