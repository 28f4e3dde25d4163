"""Prompts from a file, one a line. A file that is not text is refused as a whole, since all its lines are suspect."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..errors import PromptFile
from ..text.plain import BOM, SAVE, decode_text, plain_text

MAX_BYTES = 2**24


class PromptLine(NamedTuple):
    """A prompt; `number` is its line in a file, None for one typed."""

    text: str
    number: int | None = None


def read_prompts(path: Path) -> list[PromptLine]:
    """The lines of a text file but for blank ones and those that begin with #.

    Its byte order mark decides the encoding; without one it is UTF-8. Raises PromptFile for one that is no such text,
    and if there are no prompts.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PromptFile(f"The file of prompts {str(path)!r} cannot be read: {reason}. Check its name.") from error
    if len(data) > MAX_BYTES:
        raise PromptFile(f"{path} is over {MAX_BYTES // 2**20} MiB long, so it is no file of prompts. Check its name.")
    lines = enumerate(decode_text(data, str(path)).split("\n"), 1)
    stripped = [(number, text.strip()) for number, text in lines]
    prompts = [
        PromptLine(_prompt(path, number, text), number)
        for number, text in stripped
        if text and not text.startswith("#")
    ]
    if not prompts:
        raise PromptFile(f"{path} holds no prompts. Write one a line; blank lines and # comments are skipped.")
    return prompts


def _prompt(path: Path, number: int, text: str) -> str:
    """The prompt of a line. Raises PromptFile."""
    prompt = plain_text(text, f"{path}, line {number},", PromptFile, SAVE)
    if BOM in prompt:
        raise PromptFile(
            f"{path}, line {number}, holds U+FEFF at character {prompt.index(BOM) + 1}: a byte order mark, with which "
            "a file begins, so two files were joined without a line break between them. Put one there."
        )
    return prompt
