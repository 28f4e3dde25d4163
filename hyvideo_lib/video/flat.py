"""Videos that show nothing: every frame black, or of one colour. They are written all the same, with a warning."""

from __future__ import annotations

import logging

from torch import Tensor

logger = logging.getLogger(__name__)

SPREAD = 2.5 / 255
"""Of 0..1, between two bytes: frames whose numbers lie no further apart show nothing to an eye."""
DARK = 8.5 / 255


class FlatWatch:
    """Looks at a video that comes in parts, and says at its end whether it shows nothing."""

    def __init__(self) -> None:
        self._frames, self._spread, self._highest = 0, 0.0, 0.0

    def look(self, frames: Tensor) -> None:
        """Note the next frames [F, H, W, 3], bytes, or floating numbers in 0..1."""
        if not frames.numel():
            return
        scale = 1.0 if frames.is_floating_point() else 255.0
        # Per colour and frame, without a copy: the colours of one frame may lie far apart.
        low, high = (found.float() / scale for found in frames.flatten(1, 2).aminmax(dim=1))  # [F, 3] each
        self._frames += len(frames)
        self._spread = max(self._spread, float((high - low).max()))
        self._highest = max(self._highest, float(high.max()))

    def find(self) -> str | None:
        """What to tell the user of a video that shows nothing; None for any other.

        All frames must be flat: a film may begin in the dark.
        """
        if not self._frames or self._spread > SPREAD:
            return None
        what = "black" if self._highest <= DARK else "of one colour"
        return (
            f"All {self._frames} frames are {what}. Likely causes: a file that does not belong to the others (VAE, "
            "text encoders, LoRA), too few steps, a guidance or shift far from the model's, or a dtype that overflows. "
            "Try the model's own settings, and float32 for the VAE."
        )

    def warn(self) -> None:
        """Log what there is to tell."""
        message = self.find()
        if message:
            logger.warning("%s", message)
