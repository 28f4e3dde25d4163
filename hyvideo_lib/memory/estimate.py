"""Bytes that a VAE and a text encoder will need beside their weights, from sizes alone.

Counted from the forms that run without gradients: what is alive at the fullest moment.
"""

from __future__ import annotations

from collections.abc import Sequence

MARGIN = 1.25
PIXEL_BUFFERS = 3
"""Buffers as wide as the decoder's widest full-size layer."""


def vae_bytes(block_channels: Sequence[int], frames: int, height: int, width: int, item_size: int) -> int:
    """Working bytes of decoding one piece of so many frames and pixels by the tiny VAE, on the safe side.

    The fullest moment is at full size, where the last level but one still has its channels.
    """
    widest = block_channels[min(1, len(block_channels) - 1)]
    return int(MARGIN * PIXEL_BUFFERS * widest * frames * height * width * item_size)


def text_bytes(hidden_size: int, inner_size: int, tokens: int, item_size: int, is_cast: bool) -> int:
    """Working bytes of a text encoder's fullest moment, in the middle of an MLP.

    hidden_size, inner_size: widths of a token outside and inside the MLP. item_size: of a number in the compute dtype.
    is_cast: weights are stored otherwise, so that the largest is there once more in the compute dtype. Alive are the
    embeddings, the layer's input, the residual, its norm, and inside the MLP two or three tensors: what was gated, what
    it multiplies, the product.
    """
    cast = hidden_size * inner_size * item_size if is_cast else 0
    wide, inner = tokens * hidden_size * item_size, tokens * inner_size * item_size
    return 4 * wide + 2 * inner + max(inner, cast)
