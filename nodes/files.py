"""Files by name: what the loaders' lists hold, and which file is behind a choice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..hyvideo_lib.errors import FileMissing
from . import comfy_host

if TYPE_CHECKING:
    from ..hyvideo_lib.checkpoint import FileReport

DEMO = "hyvideo-demo"
"""Stands in every loader's list for the embedded demo model's file."""

TRANSFORMER_KINDS = ("diffusion_models",)
VAE_KINDS = ("vae", "vae_approx")
"""The second is where ComfyUI has tiny VAEs for previews."""
TEXT_KINDS = ("text_encoders", "clip", "LLM")
"""The last is where older packs kept the language model."""
ALL_KINDS = tuple(dict.fromkeys((*TRANSFORMER_KINDS, *VAE_KINDS, *TEXT_KINDS, "loras")))
"""Every folder that Model Info looks into."""

FOUND = "found beside the file"
"""What a tokenizer's widget says where none is named."""


def list_choices(*kinds: str) -> list[str]:
    """The files of these folders and the demo's."""
    return [*comfy_host.list_files(*kinds), DEMO]


def resolve(name: str, demo_file: Path, *kinds: str) -> Path:
    """The file behind a choice of a loader. Raises FileMissing."""
    path = demo_file if name == DEMO else comfy_host.find_file(name, *kinds)
    if path is None:
        raise FileMissing(
            f"{name} is in none of ComfyUI's folders for {' and '.join(kinds)}. Put the file there and press R to "
            "refresh the lists, or choose another one."
        )
    return path


def check_file(role: str, path: Path, variant: str | None = None) -> FileReport:
    """The report on a file that is to play a role. Raises what the library's check raises."""
    from ..hyvideo_lib import pipeline  # what reads files is imported when there is a file to read

    return pipeline.check_file(role, path, variant)


def find_tokenizer(name: str) -> Path | None:
    """The file or folder with the tokenizer behind a widget's words; None for one that is looked for.

    A name is a tokenizer's file, or a folder that holds one, in ComfyUI's folders for text encoders.
    Raises FileMissing.
    """
    from ..hyvideo_lib.text.tokenizer import tokenizer_files_in

    name = name.strip()
    if name in ("", FOUND):
        return None
    for candidate in comfy_host.candidates(name, *TEXT_KINDS):
        if candidate.is_file() or (candidate.is_dir() and tokenizer_files_in(candidate)):
            return candidate
    raise FileMissing(
        f"There is no tokenizer {name!r} in ComfyUI's folders for {', '.join(TEXT_KINDS)}. Give the name of a "
        f"tokenizer.json in one of them, or of a folder that holds it or vocab.json and merges.txt, or leave {FOUND!r}."
    )


def fingerprint(name: str | None, demo_file: Path, *kinds: str) -> str:
    """Changes when the file behind a choice does; ComfyUI then loads it again.

    name: None where the choice comes over a wire; ComfyUI looks at what it comes from.
    """
    if not isinstance(name, str):
        return "linked;"
    try:
        stat = resolve(name, demo_file, *kinds).stat()
    except (FileMissing, OSError):
        return "missing"
    return f"{stat.st_size}-{stat.st_mtime_ns};"


def fingerprint_tokenizer(name: str | None) -> str:
    """The same for a tokenizer that is named; one that is looked for goes with its encoder's file."""
    try:
        file = find_tokenizer(name) if isinstance(name, str) else None
        return f"{file.stat().st_mtime_ns};" if file else ";"
    except (FileMissing, OSError):
        return "missing;"
