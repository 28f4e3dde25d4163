"""Which file of a folder a LoRA is in: PEFT and diffusers write folders, and people name those."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.lora_families import match_lora
from ..checkpoint.read import read_header
from ..errors import BadInput, FileMissing, FileUnreadable, UnsupportedFile

OWN_NAME = "adapter_model.safetensors"
"""PEFT's, which is taken whatever else lies beside it."""
SUFFIXES = (".safetensors", ".sft")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
MAX_LOOKED_AT = 100
"""Headers that are read to find the one LoRA in a folder."""
SHOWN = 10


def find_lora(path: str | Path) -> Path:
    """The file itself, or the one LoRA in a folder.

    Raises FileMissing, FileUnreadable and UnsupportedFile for a folder without a LoRA, or with several. A file is not
    looked at.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            return path
        names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    except ValueError:
        return path  # reading it says what is wrong with the name
    except OSError as error:
        raise FileUnreadable(f"The folder {path} cannot be read: {error.strerror or error}.") from error
    if OWN_NAME in names:
        return path / OWN_NAME
    files = [name for name in names if name.lower().endswith(SUFFIXES) and (path / name).is_file()]
    if not files:
        raise _nothing(path, [name for name in names if name.lower().endswith(PICKLES)])
    if len(files) == 1:
        return path / files[0]
    loras = [name for name in files if _is_lora(path / name)] if len(files) <= MAX_LOOKED_AT else files
    if len(loras) == 1:
        return path / loras[0]
    more = f" and {len(loras) - SHOWN} more" if len(loras) > SHOWN else ""
    held = f"several LoRAs ({', '.join(loras[:SHOWN])}{more})" if loras else "several files, but no LoRA"
    raise UnsupportedFile(f"The folder {path} holds {held}. Name the file itself.")


def _is_lora(path: Path) -> bool:
    try:
        return match_lora(read_header(path)) is not None
    except BadInput:
        return False


def _nothing(folder: Path, pickles: list[str]) -> BadInput:
    if pickles:
        return UnsupportedFile(
            f"The folder {folder} has its weights in {pickles[0]}, a pickle, which can run code and is never opened "
            f"here. Use its .safetensors version, or make one in that folder: hyvideo convert {pickles[0]} {OWN_NAME}"
        )
    return FileMissing(
        f"The folder {folder} holds no LoRA: no .safetensors or .sft file is in it. Name the file itself."
    )
