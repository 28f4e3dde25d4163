"""Bytes a run will need beside the weights, from sizes alone. Estimates on the safe side, not measurements.

Counted from the forms that run without gradients: what is alive at the fullest moment, plus a quarter.
"""

from __future__ import annotations

from collections.abc import Sequence

MARGIN = 1.25
TOKEN_BUFFERS = 8
"""Token-wide buffers in the compute dtype: residual 1, query, key, value 3, their rotation in float32 2, attention's
result 1, the next one 1."""
CHUNK_TOKENS = 2048
"""Tokens that the MLP takes at a time (transformer.lean)."""
PIXEL_BUFFERS = 3
"""Buffers as wide as the decoder's widest full-size layer."""


def transformer_bytes(hidden_size: int, mlp_ratio: float, tokens: int, item_size: int, batch: int = 1) -> int:
    """Working bytes of one forward. tokens: image and text; item_size: bytes of a number in the compute dtype."""
    wide = TOKEN_BUFFERS * tokens * hidden_size
    chunk = min(tokens, CHUNK_TOKENS) * hidden_size * 2 * (1 + mlp_ratio)
    return int(MARGIN * item_size * (batch * wide + chunk))


def vae_bytes(block_channels: Sequence[int], frames: int, height: int, width: int, item_size: int) -> int:
    """Working bytes of decoding or encoding one piece of so many frames and pixels, in the VAE's dtype.

    The fullest moment is at full size, where the last level but one still has its channels.
    """
    widest = block_channels[min(1, len(block_channels) - 1)]
    return int(MARGIN * PIXEL_BUFFERS * widest * frames * height * width * item_size)


def text_bytes(hidden_size: int, inner_size: int, tokens: int, item_size: int, is_cast: bool) -> int:
    """Working bytes of a text encoder's fullest moment, in the middle of an MLP.

    hidden_size, inner_size: widths of a token outside and inside the MLP. item_size: of a number in the compute dtype.
    is_cast: weights are stored otherwise, so that the largest is there once more in the compute dtype. Alive are the
    residual, its norm, and inside the MLP two or three tensors: what was gated, what it multiplies, the product.
    """
    cast = hidden_size * inner_size * item_size if is_cast else 0
    wide, inner = tokens * hidden_size * item_size, tokens * inner_size * item_size
    return max(2 * wide + 3 * inner, 2 * wide + 2 * inner + cast)
