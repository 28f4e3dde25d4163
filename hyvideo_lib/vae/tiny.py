"""TAEHV: a tiny decoder of HunyuanVideo's latents, for previews. Made and described by Ollin Boer Bohan (madebyollin).

A row of 2D convolutions over single frames. What knows of time is the memory block, which sees its own input for the
frame before beside the one for this frame; and two growing layers, which turn a frame into two. T latent frames give
4T frames, of which the first three have too little past and are dropped: 4(T - 1) + 1, as the VAE gives.

Attributes are named by their place in the row, so that the released file's keys load as they are. Its encoder is not
built: latents to start from are worth the VAE's own.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidSetting
from ..geometry import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION
from ..host import HeadlessHost, Host
from .posterior import DiagonalGaussian
from .tiling import Tiles

ONLY_DECODES = "The tiny VAE only decodes previews; it does not encode. Load HunyuanVideo's VAE to start from a video."
LATENT_RANGE = 3.0
"""Latents are bent towards plus and minus this."""
DROPPED = TEMPORAL_COMPRESSION - 1
ELEMENTS = 2**28
"""About how many numbers the widest layer of a span has: memory does not grow with the video."""


@dataclass(frozen=True)
class TinyVAEConfig:
    """The defaults are the released file's. channels: of the four levels, innermost first.

    scaling: the VAE's; this decoder reads latents as the transformer has them, multiplied by it.
    """

    channels: tuple[int, int, int, int] = (256, 128, 64, 64)
    latent_channels: int = 16
    scaling: float = 0.476986

    has_encoder = False

    @property
    def block_channels(self) -> tuple[int, ...]:
        """As a VAEConfig has them, outermost first: what memory is estimated from."""
        return self.channels[::-1]

    def frames_at_once(self, height: int, width: int) -> int:
        """Latent frames that make a span of so many pixels; at least one."""
        return max(1, ELEMENTS // (TEMPORAL_COMPRESSION * self.channels[-1] * height * width))


class Clamp(nn.Module):
    """Bends numbers softly into -3..3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / LATENT_RANGE) * LATENT_RANGE


class MemBlock(nn.Module):
    """relu(convolutions(now, before) + now), for frames [T, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * channels, channels), nn.ReLU(), _conv(channels, channels), nn.ReLU(), _conv(channels, channels)
        )

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """before: the frame in front of x's first, [1, C, H, W]; zeros where the video begins."""
        past = torch.cat([before, x[:-1]])
        return F.relu(self.conv(torch.cat([x, past], dim=1)).add_(x), inplace=True)


class Grow(nn.Module):
    """A frame to `factor` frames that stand one after the other."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * factor, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(-1, *x.shape[1:])


class TinyVAE(nn.Module):
    """Decodes previews. The interface is CausalVideoVAE's; encoding is refused."""

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        self.config = config
        a, b, c, d = config.channels
        self.decoder = nn.Sequential(
            *(Clamp(), _conv(config.latent_channels, a), nn.ReLU()),
            *_level(a, b, growth=1),
            *_level(b, c, growth=2),
            *_level(c, d, growth=2),
            nn.ReLU(),
            _conv(d, 3),
        )

    cannot_encode = ONLY_DECODES

    def encode(self, video: Tensor, tiles: Tiles | None = None, host: Host | None = None) -> DiagonalGaussian:
        """Raises InvalidSetting: see the module's text."""
        raise InvalidSetting(ONLY_DECODES)

    def decode(self, latents: Tensor, tiles: Tiles | None = None, host: Host | None = None) -> Tensor:
        """Video [B, 3, 4(T - 1) + 1, 8H, 8W] in -1..1 of unscaled latents [B, C, T, H, W]. See `decode_spans`."""
        self._check(latents)
        return torch.cat([torch.cat(list(self.decode_spans(item, tiles, host)), dim=2) for item in latents.split(1)])

    @torch.no_grad()
    def decode_spans(
        self, latents: Tensor, tiles: Tiles | None = None, host: Host | None = None
    ) -> Generator[Tensor, None, None]:
        """The decoded video of latents [1, C, T, H, W] in spans [1, 3, n, 8H, 8W], a few latent frames each.

        tiles: not needed, and without effect: spans carry over what they know of the past, so they are exactly the
        whole. Raises InvalidSetting, and what the host raises when the user cancels.
        """
        self._check(latents)
        host = host or HeadlessHost()
        frames = (latents[0].to(next(self.parameters())) * self.config.scaling).transpose(0, 1)  # [T, C, H, W]
        memory: dict[int, Tensor] = {}
        parts = frames.split(self.config.frames_at_once(*(n * SPATIAL_COMPRESSION for n in latents.shape[3:])))
        for index, part in enumerate(parts):
            host.check_interrupt()
            pixels = self._advance(part, memory)[DROPPED if index == 0 else 0 :]
            host.step(index + 1, len(parts))
            yield pixels.clamp_(0, 1).mul_(2).sub_(1).transpose(0, 1).unsqueeze(0)
            del pixels

    def _advance(self, x: Tensor, memory: dict[int, Tensor]) -> Tensor:
        """The next frames [n, C, H, W] to [4n, 3, 8H, 8W]. memory: each block's last frame, taken and replaced."""
        for place, layer in enumerate(self.decoder):
            if isinstance(layer, MemBlock):
                before = memory.get(place)
                memory[place], x = x[-1:].clone(), layer(x, torch.zeros_like(x[:1]) if before is None else before)
            else:
                x = layer(x)
        return x

    def _check(self, latents: Tensor) -> None:
        if latents.ndim != 5 or latents.shape[1] != self.config.latent_channels or latents.shape[2] < 1:
            raise InvalidSetting(
                f"Latents are {list(latents.shape)}, but must be [B, {self.config.latent_channels}, T, H, W]. They "
                "were made for another model, or for still images."
            )


def _conv(in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)


def _level(in_channels: int, out_channels: int, growth: int) -> tuple[nn.Module, ...]:
    """Three memory blocks, twice the size in space, `growth` times the frames, and the step to the next width."""
    return (
        *(MemBlock(in_channels) for _ in range(3)),
        nn.Upsample(scale_factor=2),
        Grow(in_channels, growth),
        _conv(in_channels, out_channels, bias=False),
    )
