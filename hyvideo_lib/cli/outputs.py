"""Names of the files that a run writes."""

from __future__ import annotations

import time
from pathlib import Path

from ..errors import InvalidSetting

FOLDER = Path("output")


def default_output() -> Path:
    """A name in output/ that no earlier run has: the time."""
    return FOLDER / time.strftime("hyvideo-%Y%m%d-%H%M%S.mp4")


def numbered(path: Path, prompts: int, videos: int) -> list[list[Path]]:
    """Names for every video of every prompt: -1, -2, ... behind the stem for the prompt, then for the video of it.

    A count of one gets no number, so a single video is `path` itself.
    """

    def numbers(count: int) -> list[str]:
        return [""] if count == 1 else [f"-{index}" for index in range(1, count + 1)]

    return [[path.with_name(f"{path.stem}{p}{v}{path.suffix}") for v in numbers(videos)] for p in numbers(prompts)]


def check_suffix(path: Path, suffix: str, option: str) -> Path:
    """`path` itself. Raises InvalidSetting unless it ends in `suffix`."""
    if path.suffix.lower() != suffix:
        raise InvalidSetting(f"{option} is {str(path)!r}, but must end in {suffix}.")
    return path


def check_apart(path: Path, *sources: Path) -> None:
    """Raises InvalidSetting if the new file is one of those that it is made from; --force is for others."""
    for source in sources:
        if path.exists() and source.exists() and path.samefile(source):
            raise InvalidSetting(f"OUT is {source} itself, which is read. Give the new file another name.")
