"""Sizes: pixels, frames, latents and tokens, and which of them HunyuanVideo accepts.

The VAE packs 8 x 8 pixels and 4 frames (after a first frame that stands alone) into one latent; the transformer packs
2 x 2 latents into one token. So frames are 4k + 1 and width and height multiples of 16.
"""

from __future__ import annotations

from .errors import InvalidFrames, InvalidSize

SPATIAL_COMPRESSION = 8
TEMPORAL_COMPRESSION = 4
PIXELS_PER_TOKEN = 16


def latent_frames(frames: int) -> int:
    """Latent frames of a clip of `frames` = 4k + 1 frames."""
    return (frames - 1) // TEMPORAL_COMPRESSION + 1


def pixel_frames(num_latent_frames: int) -> int:
    """Frames that so many latent frames decode to."""
    return (num_latent_frames - 1) * TEMPORAL_COMPRESSION + 1


def latent_shape(width: int, height: int, frames: int) -> tuple[int, int, int]:
    """(T, H, W) of the latents of a checked size."""
    return latent_frames(frames), height // SPATIAL_COMPRESSION, width // SPATIAL_COMPRESSION


def image_tokens(width: int, height: int, frames: int) -> int:
    """Tokens the transformer sees for a checked size."""
    return latent_frames(frames) * (height // PIXELS_PER_TOKEN) * (width // PIXELS_PER_TOKEN)


def nearest_sizes(value: int, unit: int, offset: int = 0) -> tuple[int, int]:
    """The accepted numbers unit*k + offset just below and above `value`, both at least the smallest positive one."""
    smallest = offset if offset > 0 else unit
    low = max(smallest, (value - offset) // unit * unit + offset)
    return low, max(smallest, low if low >= value else low + unit)


def check_frames(frames: int) -> None:
    """Raises InvalidFrames unless frames is 4k + 1."""
    if frames < 1 or frames % TEMPORAL_COMPRESSION != 1:
        low, high = nearest_sizes(frames, TEMPORAL_COMPRESSION, 1)
        near = f"Nearest: {low}." if low == high else f"Nearest: {low} or {high}."
        raise InvalidFrames(f"frames is {frames}, but must be 4k + 1 (1, 5, 9, ...). {near}")


def check_size(width: int, height: int) -> None:
    """Raises InvalidSize unless width and height are positive multiples of 16 pixels."""
    for name, value in (("width", width), ("height", height)):
        if value < PIXELS_PER_TOKEN or value % PIXELS_PER_TOKEN:
            low, high = nearest_sizes(value, PIXELS_PER_TOKEN)
            near = f"Nearest: {low}." if low == high else f"Nearest: {low} or {high}."
            raise InvalidSize(f"{name} is {value}, but must be a multiple of {PIXELS_PER_TOKEN} pixels. {near}")


def align_up(value: int, unit: int = PIXELS_PER_TOKEN) -> int:
    """The smallest multiple of `unit` that is at least `value` (the reference aligns sizes up)."""
    return -(-value // unit) * unit
