"""How far a block's working memory is cut down: heads that attend in groups, tokens that are handled in chunks."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidSetting


@dataclass(frozen=True)
class LeanConfig:
    """What the lean blocks are told. It changes memory and a little time, not the result. Raises InvalidSetting.

    head_groups: attention in so many goes; queries, keys and values of one group's heads exist at a time. More than
    there are heads is one go for each. chunk_tokens: tokens that norms, projections and the MLP take at once; None is
    an eighth of the video, from 512 to 2,048.
    """

    head_groups: int = 1
    chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.head_groups < 1:
            raise InvalidSetting(f"head_groups is {self.head_groups}, but must be 1 or more.")
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise InvalidSetting(f"chunk_tokens is {self.chunk_tokens}, but must be 1 or more, or None.")

    def chunk_size(self, tokens: int) -> int:
        """Tokens that are handled at once, of so many."""
        if self.chunk_tokens is not None:
            return self.chunk_tokens
        return min(MAX_CHUNK_TOKENS, max(MIN_CHUNK_TOKENS, tokens // 8))


MIN_CHUNK_TOKENS = 512
"""Smaller pieces leave the matrix multiplications too thin. A chunk's MLP is nine tokens wide per token, so an eighth
of the video costs about as much as one token-wide buffer."""
MAX_CHUNK_TOKENS = 2048
SMALLEST_CHUNKS = (512, 256)
"""Tokens that are handled at once when head groups alone do not do. Thinner products take longer."""


def lean_steps(num_heads: int) -> list[LeanConfig]:
    """From the fewest head groups to one for each head, then smaller chunks: a step takes no more memory than the one
    before, and no less time."""
    groups = [count for count in range(1, num_heads + 1) if num_heads % count == 0]
    return [*map(LeanConfig, groups), *(LeanConfig(num_heads, chunk) for chunk in SMALLEST_CHUNKS)]
