"""The model that a LoRA file is for, told by its header: for the recogniser and the loader alike."""

from __future__ import annotations

from .lora_layers import RELEASED
from .lora_match import match_modules
from .lora_models import I2V, Told, lora_model
from .lora_sizes import likely_width, sized_modules, widths
from .lora_tensors import split_name
from .read import Header

PREFIXES = (
    "base_model.model.transformer.",
    "transformer.base_model.model.",
    "model.diffusion_model.",
    "Hunyuan_video_I2V_lora_",
    "base_model.model.",
    "lora_transformer_",
    "diffusion_model.",
    "transformer.",
    "lora_unet_",
    "lycoris_",
    "module.",
)
"""What trainers put before module names, of whatever model; a longer one first."""
_I2V_PREFIX = "Hunyuan_video_I2V_lora_"


def told_model(header: Header) -> Told | None:
    """The model that a LoRA is for, where that is not just HunyuanVideo's text to video."""
    stems = list(dict.fromkeys(parts.stem for name in header.tensors if (parts := split_name(name))))
    hits = match_modules(stems, RELEASED)
    bare = sorted(hits[stem].name if stem in hits else _bare(stem) for stem in stems)
    told = lora_model(header.metadata, bare, widths(sized_modules(header, hits)).keys())
    if told is None and any(hit.prefix == _I2V_PREFIX for hit in hits.values()):
        return Told(I2V, f"its modules are called {_I2V_PREFIX}..., as by Tencent's trainer for that model")
    return told


def training_notes(header: Header) -> tuple[str, ...]:
    """What to say of a LoRA that loads although it was trained on something else."""
    told = told_model(header)
    return (told.note,) if told and told.note else ()


def lora_notes(header: Header) -> tuple[str, ...]:
    """The same, and the width of the transformer that it is for, where that is not the released one's."""
    notes = [*training_notes(header)]
    stems = [parts.stem for name in header.tensors if (parts := split_name(name))]
    width = likely_width(sized_modules(header, match_modules(stems, RELEASED)))
    if width != RELEASED.hidden_size:
        notes.append(f"It is for a transformer {width} wide; the released one is {RELEASED.hidden_size} wide.")
    return tuple(notes)


def _bare(stem: str) -> str:
    return stem.removeprefix(next((prefix for prefix in PREFIXES if stem.startswith(prefix)), ""))
