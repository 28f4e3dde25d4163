"""Encoded prompts as files: safetensors with every tensor as it is, so that a reload gives the same video."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from ..atomic import whole_file
from ..errors import FileMissing, FileUnreadable, WrongKind
from ..text import TextEmbeds

METADATA_KEY = "hyvideo.embeds"
PARTS = ("text_embeds", "text_mask", "pooled_embeds")


def save_embeds(
    path: Path, positive: TextEmbeds, negative: TextEmbeds | None, template: str, overwrite: bool = False
) -> None:
    """Write a prompt and its negative. template: the template's name, for people.

    Raises OutputExists, OutputNotWritable, DiskFull.
    """
    from safetensors.torch import save

    sides = {"positive": positive, **({"negative": negative} if negative is not None else {})}
    tensors = {f"{side}.{part}": getattr(embeds, part).contiguous() for side, embeds in sides.items() for part in PARTS}
    facts = {"template": template, "tokens_cut": {side: list(embeds.tokens_cut) for side, embeds in sides.items()}}
    data = save(tensors, {METADATA_KEY: json.dumps(facts)})
    with whole_file(path, overwrite) as temporary:
        temporary.write_bytes(data)


def load_embeds(path: Path) -> tuple[TextEmbeds, TextEmbeds | None, str]:
    """(positive, negative or None, template) of a file that `save_embeds` wrote, on the CPU.

    Raises FileMissing, FileUnreadable, WrongKind.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileMissing(f"There is no file {path.name}. Save the embeds again, or choose another file.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise FileUnreadable(
            f"{path.name} is no readable safetensors file ({error}). Save the embeds again."
        ) from error
    if METADATA_KEY not in metadata or not all(f"positive.{part}" in tensors for part in PARTS):
        found = ", ".join(list(tensors)[:5]) or "nothing"
        raise WrongKind(f"{path.name} holds no encoded prompt (found {found}). Give a file that Save Embeds wrote.")
    try:
        facts = json.loads(metadata[METADATA_KEY])
        cuts = {side: tuple(int(cut) for cut in values) for side, values in facts["tokens_cut"].items()}
        positive = _embeds(tensors, "positive", cuts)
        has_negative = "negative.text_embeds" in tensors
        return positive, _embeds(tensors, "negative", cuts) if has_negative else None, str(facts["template"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileUnreadable(f"{path.name} is damaged ({error}). Save the embeds again.") from error


def _embeds(tensors: dict[str, Tensor], side: str, cuts: dict[str, tuple[int, ...]]) -> TextEmbeds:
    text_embeds, text_mask, pooled_embeds = (tensors[f"{side}.{part}"] for part in PARTS)
    rows = len(text_embeds)
    if text_embeds.ndim != 3 or text_mask.shape != text_embeds.shape[:2] or pooled_embeds.shape[:1] != (rows,):
        raise ValueError("its tensors do not fit together")
    if text_mask.dtype != torch.int64 or len(cuts[side]) != rows:
        raise ValueError("its mask or its counts are of another kind")
    return TextEmbeds(text_embeds, text_mask, pooled_embeds, cuts[side])
