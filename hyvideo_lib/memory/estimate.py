"""Bytes a run will need beside the weights, from sizes alone. Estimates on the safe side, not measurements.

Counted from the forms that run without gradients: what is alive at the fullest moment, plus a margin.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..transformer import LeanConfig, TransformerConfig

MARGIN = 1.25
BLOCK_MARGIN = 1.05
"""Of the transformer's blocks, whose buffers are known one by one."""
SCRATCH_BYTES = 2**20
"""Of an attention kernel, for itself."""
NORM_BYTES = 8
"""Of a number while a chunk is normed and modulated: twice float32."""
SMALLEST_CHUNKS = (512, 256)
"""Tokens that are handled at once when head groups alone do not do. Thinner products take longer."""
PIXEL_BUFFERS = 3
"""Buffers as wide as the decoder's widest full-size layer."""


def transformer_bytes(
    hidden_size: int,
    mlp_ratio: float,
    tokens: int,
    item_size: int,
    batch: int = 1,
    lean: LeanConfig = LeanConfig(),  # noqa: B008 (frozen)
) -> int:
    """Working bytes of one forward. tokens: image and text; item_size: bytes of a number in the compute dtype.

    The fullest moment of a block is one of three: a chunk on its way into attention, attention itself, or a chunk in
    the MLP. The residual stream is there all the time; with head groups the result of attention is, too.
    """
    wide = batch * tokens * hidden_size * item_size
    chunk = batch * min(tokens, lean.chunk_size(tokens)) * hidden_size
    kept = wide * (1 if lean.head_groups == 1 else 2)
    into = kept + 3 * wide / lean.head_groups + chunk * (NORM_BYTES + item_size)
    attending = kept + 4 * wide / lean.head_groups + SCRATCH_BYTES
    after = 2 * wide + chunk * item_size * 2 * (1 + mlp_ratio)
    return int(BLOCK_MARGIN * max(into, attending, after))


def lean_steps(num_heads: int) -> list[LeanConfig]:
    """From the fewest head groups to one for each head, then smaller chunks: each step takes less memory."""
    groups = [count for count in range(1, num_heads + 1) if num_heads % count == 0]
    return [*map(LeanConfig, groups), *(LeanConfig(num_heads, chunk) for chunk in SMALLEST_CHUNKS)]


def choose_lean(
    config: TransformerConfig, tokens: int, item_size: int, batch: int, free_bytes: int | None
) -> LeanConfig:
    """The first of `lean_steps` whose work fits into `free_bytes`; the last where none does. None is without bound."""
    steps = lean_steps(config.num_heads)
    if free_bytes is None:
        return steps[0]
    for step in steps:
        if transformer_bytes(config.hidden_size, config.mlp_ratio, tokens, item_size, batch, step) <= free_bytes:
            return step
    return steps[-1]


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
    embeddings, the layer's input, the residual, its norm, and inside the MLP two or three tensors: what was gated, what
    it multiplies, the product.
    """
    cast = hidden_size * inner_size * item_size if is_cast else 0
    wide, inner = tokens * hidden_size * item_size, tokens * inner_size * item_size
    return 4 * wide + 2 * inner + max(inner, cast)
