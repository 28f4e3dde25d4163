"""Videos that show nothing: every frame black, or of one colour. They are written all the same, with a warning."""

from __future__ import annotations

import logging

from torch import Tensor

logger = logging.getLogger(__name__)

SPREAD = 2.5 / 255
"""Of 0..1, between two bytes: frames whose numbers lie no further apart show nothing to an eye."""
DARK = 8.5 / 255


def find_flat(frames: Tensor) -> str | None:
    """What to tell the user of a video that shows nothing; None for any other.

    frames: [F, H, W, 3], bytes, or floating numbers in 0..1. All frames must be flat: a film may begin in the dark.
    """
    if not frames.numel():
        return None
    scale = 1.0 if frames.is_floating_point() else 255.0
    # Per colour and frame, without a copy: the colours of one frame may lie far apart.
    low, high = (found.float() / scale for found in frames.flatten(1, 2).aminmax(dim=1))  # [F, 3] each
    if float((high - low).max()) > SPREAD:
        return None
    what = "black" if float(high.max()) <= DARK else "of one colour"
    return (
        f"All {len(frames)} frames are {what}. Likely causes: a file that does not belong to the others (VAE, text "
        "encoders, LoRA), too few steps, a guidance or shift far from the model's, or a dtype that overflows. Try the "
        "model's own settings, and float32 for the VAE."
    )


def warn_if_flat(frames: Tensor) -> bool:
    """Log the warning of `find_flat`, if there is one; whether there was."""
    message = find_flat(frames)
    if message:
        logger.warning("%s", message)
    return message is not None
