"""Latents that outlive a run which fails: in ComfyUI's temporary folder while it goes on, then in its output folder.

ComfyUI empties the temporary folder when it starts and when it stops, and to stop it is what people do to free a card.
A file is named by what is in it, so that the same latents are kept once, however often their run fails.
"""

from __future__ import annotations

import filecmp
import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor

from ..hyvideo_lib.atomic import move_file
from ..hyvideo_lib.errors import BadInput, HyvError, OutputExists
from . import comfy_host

logger = logging.getLogger(__name__)


@contextmanager
def keeping(*videos: Tensor, is_only_copy: bool = False) -> Iterator[Callable[[Tensor], None]]:
    """Keep latents [1, C, T, H, W] until the block is over, a file for each; what it yields takes one more.

    If the block fails they are moved to the output folder, and the error says so and what to do with them. If it is
    cancelled they stay in the temporary one: then nothing is wrong, and ComfyUI may still have them itself.
    is_only_copy: it has not, as they are of a node that is not done; then they are moved all the same.
    """
    paths: list[Path] = []

    def keep(latents: Tensor) -> None:
        try:
            paths.append(_save(latents.float().cpu()))
        except HyvError as error:
            logger.warning("latents could not be kept while the run goes on: %s", error)

    for latents in videos:
        keep(latents)
    try:
        yield keep
    except comfy_host.interruption_type():
        if is_only_copy and paths:
            logger.warning("cancelled. %s", _rescue(paths))
        else:
            logger.info("cancelled; until ComfyUI stops its latents are in %s", _listed(paths))
        raise
    except BadInput:
        _forget(paths)
        raise
    except HyvError as error:
        raise type(error)(f"{error} {_rescue(paths)}".strip()) from error
    except Exception:
        logger.error("%s", _rescue(paths))
        raise
    _forget(paths)


def _save(latents: Tensor) -> Path:
    from ..hyvideo_lib.pipeline import save_native_latents

    content = hashlib.sha256(str(list(latents.shape)).encode() + latents.flatten().numpy().tobytes())
    path = comfy_host.temp_folder() / f"hyvideo-{content.hexdigest()[:12]}.latent"
    with suppress(OutputExists):
        save_native_latents(path, latents)
    return path


def _rescue(paths: list[Path]) -> str:
    """Move files to the output folder; where they are now and what to do with them, in words."""
    if not paths:
        return ""
    moved = [_moved(path) for path in paths]
    left = "" if moved != paths else " They last until ComfyUI stops: copy them elsewhere before."
    return (
        f"The latents are kept in {_listed(moved)}.{left} To make a video of one: copy the file into "
        f"{comfy_host.input_folder()}, press R and choose it in Load Latent, which goes where the sampler did; or run "
        "`python -m hyvideo_lib generate --decode FILE --vae FILE` in this pack's folder."
    )


def _moved(path: Path) -> Path:
    """Where the file is after it should have moved to the output folder."""
    place = comfy_host.output_folder() / path.name
    try:
        move_file(path, place)
    except OutputExists:
        if not filecmp.cmp(path, place, shallow=False):
            return path
        _forget([path])
    except HyvError as error:
        logger.warning("latents could not be moved from %s: %s", path, error)
        return path
    return place


def _forget(paths: list[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _listed(paths: list[Path]) -> str:
    return ", ".join(map(str, paths))
