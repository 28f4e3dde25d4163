"""Colours between files and RGB: which matrix and range a file's numbers are in, and conversion that rounds.

ffmpeg's scaler cuts off instead of rounding unless it is told otherwise, which makes every picture darker each time.
"""

from __future__ import annotations

import re

from ..errors import UnsupportedFile

ACCURATE = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
UNMARKED = ("unknown", "unspecified", "reserved")
_MATRICES = {
    "bt709": "bt709",
    "bt470bg": "bt601",
    "smpte170m": "bt601",
    "fcc": "fcc",
    "smpte240m": "smpte240m",
    "bt2020nc": "bt2020",
}
"""As ffmpeg names what a file says, and what its scaler takes."""
_RGB = re.compile(r"(0|a|x|x2)?(rgb|bgr)|gbr|pal8|mono|gray|ya\d|xyz|bayer")
_DEEP = re.compile(r"\d(le|be)$")
_ALPHA = re.compile(r"yuva|gbrap|ayuv|vuya|ya\d|argb|abgr|rgba|bgra|rgbaf|pal8")
HDR = {"smpte2084": "PQ", "arib-std-b67": "HLG"}
HD_LONG, HD_SHORT = 1280, 576
"""Unmarked video of this long side, or of a shorter side above that, is BT.709 to players; anything smaller BT.601."""


def is_rgb(pixel_format: str) -> bool:
    """Whether numbers of a format are no YUV, so that no matrix belongs to them."""
    return _RGB.match(pixel_format) is not None


def has_alpha(pixel_format: str) -> bool:
    """Whether a format has transparency; of a palette it is not known."""
    return _ALPHA.match(pixel_format) is not None and pixel_format != "pal8"


def matrix_of(space: str, pixel_format: str, width: int, height: int) -> str | None:
    """The matrix, as the scaler names it, of a file's mark (or of its size without one); None for RGB.

    Raises UnsupportedFile for a mark that cannot be converted.
    """
    if is_rgb(pixel_format):
        return None
    if space in UNMARKED:
        is_hd = max(width, height) >= HD_LONG or min(width, height) > HD_SHORT
        return "bt709" if is_hd else "bt601"
    if space not in _MATRICES:
        raise UnsupportedFile(
            f"its colours are in {space}, which cannot be read here, but must be in one of: {', '.join(_MATRICES)}. "
            "Convert it to BT.709 first."
        )
    return _MATRICES[space]


def to_rgb(width: int, height: int, pixel_format: str, matrix: str | None, is_full: bool) -> str:
    """Filters that scale to a size and convert to 8-bit RGB."""
    size = f"scale={width}:{height}:{ACCURATE}"
    if matrix is None:
        return f"{size},format=rgb24"
    if is_full and _DEEP.search(pixel_format):
        # Of full range above 8 bits the scaler's RGB is up to 1/255 too bright, its limited range is not.
        limited = f"{size}:in_range=pc:out_range=tv,format=yuv444p12le,"
        return limited + to_rgb(width, height, "yuv444p12le", matrix, False)
    return f"{size}:in_color_matrix={matrix}:in_range={'pc' if is_full else 'tv'}:out_range=pc,format=rgb24"


def from_rgb() -> str:
    """Filters that convert 8-bit RGB to 4:2:0 as BT.709, marked so."""
    bt709 = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
    return f"scale=out_color_matrix=bt709:out_range=tv:{ACCURATE},format=yuv420p,{bt709}"
