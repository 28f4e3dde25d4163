"""The numbers that define one transformer."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidSetting


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the transformer. The released T2V model is `TransformerConfig(16, 16, 3072, 24, 20, 40)`.

    in_channels: 16 for T2V and token-replace I2V, 33 for latent-concat I2V. rope_axes: channels of a head that turn
    with time, height and width; their sum is the width of a head. text_dim, pooled_dim: widths of the LLM's states and
    of the CLIP vector. has_guidance: the distilled guidance scale is an input.
    """

    in_channels: int
    out_channels: int
    hidden_size: int
    num_heads: int
    num_double_blocks: int
    num_single_blocks: int
    rope_axes: tuple[int, int, int] = (16, 56, 56)
    rope_theta: float = 256.0
    mlp_ratio: float = 4.0
    text_dim: int = 4096
    pooled_dim: int = 768
    num_refiner_blocks: int = 2
    patch_size: tuple[int, int, int] = (1, 2, 2)
    has_guidance: bool = True

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise InvalidSetting(f"hidden_size {self.hidden_size} cannot be split into {self.num_heads} heads.")
        if sum(self.rope_axes) != self.head_dim or any(axis % 2 for axis in self.rope_axes):
            raise InvalidSetting(
                f"rope_axes {self.rope_axes} must be even and sum to the width of a head, {self.head_dim}."
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        return round(self.hidden_size * self.mlp_ratio)
