"""Tencent's fp8 keeps the scales of its weights in a file of their own, beside the file of the weights.

It is flat: the path of a module to one number. Without it the weights cannot be told from plainly cast ones.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import UnsupportedFile
from .read import Header, TensorInfo, map_tensors, read_header

logger = logging.getLogger(__name__)

MAP_ENDING = "_map"
SCALE = ".fp8_scale"
TENCENT_STEM = "model_states"
"""Part of the names of Tencent's own files."""


def map_beside(path: Path) -> Path:
    """Where the scale map of a file is looked for."""
    return path.with_name(f"{path.stem}{MAP_ENDING}.safetensors")


def read_scale_map(header: Header) -> dict[str, Tensor]:
    """The scales that lie beside a file of plain fp8 weights, as `<module>.fp8_scale`; empty if there are none.

    header: of the weights, in Tencent's names. Raises UnsupportedFile if the map is not that of these weights.
    """
    path = map_beside(header.path)
    if not path.is_file():
        if TENCENT_STEM in header.path.stem:
            logger.warning(
                "%s holds fp8 weights without scales. If it is Tencent's own, its scales are in a file whose name ends "
                "in %s.pt: convert both (hyvideo convert), or the video will be colourful noise.",
                header.path.name,
                MAP_ENDING,
            )
        return {}
    found = read_header(path)
    check_scale_map(found, header.tensors)
    return {name + SCALE: tensor for name, tensor in map_tensors(found).items()}


def check_scale_map(found: Header, weights: Mapping[str, TensorInfo]) -> None:
    """Refuse a map that gives anything but one number for each fp8 weight. Raises UnsupportedFile."""
    wanted = {
        name.removesuffix(".weight")
        for name, info in weights.items()
        if name.endswith(".weight") and info.dtype.startswith("float8")
    }
    odd = sorted(name for name, info in found.tensors.items() if name not in wanted or not is_scale(info))
    missing = sorted(wanted - found.tensors.keys())
    if odd or missing:
        complaint = f"it has {odd[0]!r}, which is no scale of one" if odd else f"it lacks {missing[0]!r}"
        raise UnsupportedFile(
            f"{found.path.name} is not the scale map of the fp8 weights beside it: {complaint}. Give the map that came "
            "with the weights, or take it away if the weights need none."
        )


def is_scale(info: TensorInfo) -> bool:
    """One number in 32 bits."""
    return info.numel == 1 and info.dtype == "float32"
