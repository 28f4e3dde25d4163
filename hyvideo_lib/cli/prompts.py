"""Prompts from a file, one a line; a line that is not text is reported and does not hide the others."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..errors import PromptFile


class PromptLine(NamedTuple):
    """A prompt; `number` is its line in a file, None for one typed. `error` instead of a text that cannot be read."""

    text: str
    number: int | None = None
    error: PromptFile | None = None


def read_prompts(path: Path) -> list[PromptLine]:
    """The lines of a UTF-8 file but for blank ones and those that begin with #. Raises PromptFile if there are none."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PromptFile(f"The file of prompts {str(path)!r} cannot be read: {reason}. Check its name.") from error
    lines = [_read_line(number, line) for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)]
    prompts = [line for line in lines if line.error or (line.text and not line.text.startswith("#"))]
    if not prompts:
        raise PromptFile(f"{path} holds no prompts. Write one a line; blank lines and # comments are skipped.")
    return prompts


def _read_line(number: int, line: bytes) -> PromptLine:
    try:
        return PromptLine(line.decode("utf-8").strip(), number)
    except UnicodeDecodeError as error:
        text = line.decode("utf-8", "backslashreplace").strip()
        problem = f"Line {number} is not UTF-8 text (at its byte {error.start + 1}). Save the file as UTF-8."
        return PromptLine(text, number, PromptFile(problem))
