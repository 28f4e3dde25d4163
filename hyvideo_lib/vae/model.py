"""The causal 3D VAE: encoder, decoder, and the choice between whole and tiled.

Names are the released checkpoint's, so its keys load as they are. Inference goes through `encode` and `decode`;
training through `moments` and `pixels`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import InvalidSetting, InvalidSize
from ..geometry import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, check_frames
from ..host import HeadlessHost, Host
from .blocks import NORM_EPS, DownBlock, MidBlock, UpBlock, norm_silu_conv
from .causal import CausalConv3d
from .config import STRIDES, UPSAMPLES, VAEConfig
from .norms import TileNorm, note_statistics, using
from .posterior import DiagonalGaussian
from .tiling import T_AXIS, Axis, TileFn, Tiles, join, shrink, tile_space, time_spans

NO_ENCODER = (
    "This VAE's file has only a decoder, so it cannot turn a video into latents. Load a VAE that has an encoder too to "
    "start from a video."
)


def flat(blocks: nn.ModuleList) -> Iterator[nn.Module]:
    """The layers of all blocks, to be called one by one: a block called whole would keep its input alive to its end."""
    for block in blocks:
        yield from cast(DownBlock | UpBlock, block).layers()


class Encoder(nn.Module):
    """[B, 3, F, H, W] to moments [B, 2C, T, H/8, W/8], before the quantisation convolution."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_channels, config.norm_groups
        self.conv_in = CausalConv3d(3, widths[0])
        self.down_blocks = nn.ModuleList(
            [
                DownBlock(before, width, config.layers_per_block, groups, stride)
                for before, width, stride in zip((widths[0], *widths), widths, (*STRIDES, None), strict=False)
            ]
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = TileNorm(groups, widths[-1], NORM_EPS)
        self.conv_out = CausalConv3d(widths[-1], 2 * config.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for layer in flat(self.down_blocks):
            x = layer(x)
        return norm_silu_conv(self.conv_norm_out, self.conv_out, self.mid_block(x))


class Decoder(nn.Module):
    """[B, C, T, H, W] to [B, 3, 4(T - 1) + 1, 8H, 8W]; nothing bounds the output."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_channels[::-1], config.norm_groups
        self.conv_in = CausalConv3d(config.latent_channels, widths[0])
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            [
                UpBlock(before, width, config.layers_per_block + 1, groups, factors)
                for before, width, factors in zip((widths[0], *widths), widths, (*UPSAMPLES, None), strict=False)
            ]
        )
        self.conv_norm_out = TileNorm(groups, widths[-1], NORM_EPS)
        self.conv_out = CausalConv3d(widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for layer in flat(self.up_blocks):
            x = layer(x)
        return norm_silu_conv(self.conv_norm_out, self.conv_out, x)


class CausalVideoVAE(nn.Module):
    """HunyuanVideo's VAE. Pixels are -1..1; latents are unscaled (multiply by `config.scaling` for the transformer)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        if config.has_encoder:
            self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.has_encoder:
            self.quant_conv = nn.Conv3d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv3d(config.latent_channels, config.latent_channels, 1)

    @property
    def cannot_encode(self) -> str:
        """Why it takes no video, in a sentence; empty if it does."""
        return "" if self.config.has_encoder else NO_ENCODER

    def moments(self, video: Tensor) -> Tensor:
        """Mean and log variance [B, 2C, T, H, W] of a whole video: one pass, gradients allowed."""
        return self.quant_conv(self.encoder(video))

    def pixels(self, latents: Tensor) -> Tensor:
        """Whole latents to video: one pass, gradients allowed."""
        return self.decoder(self.post_quant_conv(latents))

    @torch.no_grad()
    def encode(self, video: Tensor, tiles: Tiles | None = None, host: Host | None = None) -> DiagonalGaussian:
        """The posterior of video [B, 3, F, H, W] in -1..1, one batch item at a time.

        F is 4k + 1, H and W multiples of 8. tiles=None is untiled; Tiles() is the reference. An image is one frame.
        The video may be on the CPU, whatever the VAE is on: tiles come over one by one.
        Raises InvalidSetting (also for a VAE without an encoder), InvalidFrames, InvalidSize, or what host raises when
        the user cancels (asked before every tile).
        """
        if self.cannot_encode:
            raise InvalidSetting(self.cannot_encode)
        if video.ndim != 5 or video.shape[1] != 3:
            raise InvalidSetting(f"The video is {list(video.shape)}, but must be [B, 3, F, H, W].")
        check_frames(video.shape[2])
        if any(n % SPATIAL_COMPRESSION for n in video.shape[3:]):
            raise InvalidSize(f"The video is {video.shape[4]} x {video.shape[3]} pixels, not multiples of 8.")
        cuts = None
        if tiles:
            time, space = tiles.time * TEMPORAL_COMPRESSION, tiles.space * SPATIAL_COMPRESSION
            cuts = Cuts((time, tiles.time), (space, tiles.space))

        def whole(tile: Tensor) -> Tensor:
            return self.moments(tile.to(self.quant_conv.weight))

        return DiagonalGaussian.from_moments(self._map(video, whole, cuts, host))

    @torch.no_grad()
    def decode(self, latents: Tensor, tiles: Tiles | None = None, host: Host | None = None) -> Tensor:
        """Video [B, 3, 4(T - 1) + 1, 8H, 8W] (about -1..1, not clamped) of unscaled latents [B, C, T, H, W].

        tiles and host as in `encode`. The dtype is the VAE's. Raises InvalidSetting for latents of another shape.
        """
        self._check_latents(latents)
        return self._map(latents.to(self.post_quant_conv.weight), self.pixels, _decoding_cuts(tiles), host)

    @torch.no_grad()
    def decode_spans(
        self, latents: Tensor, tiles: Tiles | None = None, host: Host | None = None
    ) -> Generator[Tensor, None, None]:
        """What `decode` returns of one video [1, C, T, H, W], bit for bit, in spans [1, 3, n, 8H, 8W] along time.

        A span comes as soon as it is final: blended with the one before it. Nothing here holds on to it, so memory for
        more than one is needed only by a caller who keeps them. Raises as `decode`, when the first span is asked for.
        """
        self._check_latents(latents)
        if latents.shape[0] != 1:
            raise InvalidSetting(f"Latents are {list(latents.shape)}, but spans are of one video: [1, C, T, H, W].")
        latents, cuts = latents.to(self.post_quant_conv.weight), _decoding_cuts(tiles)
        yield from self._spans(latents, self.pixels, self._span_fn(latents, self.pixels, cuts, host), cuts)

    def _check_latents(self, latents: Tensor) -> None:
        if latents.ndim != 5 or latents.shape[1] != self.config.latent_channels or latents.shape[2] < 1:
            raise InvalidSetting(
                f"Latents are {list(latents.shape)}, but must be [B, {self.config.latent_channels}, T, H, W]. They "
                "were made for another model, or for still images."
            )

    def _map(self, x: Tensor, whole: TileFn, cuts: Cuts | None, host: Host | None) -> Tensor:
        """Apply `whole` to x, cut where it is longer than a tile: time outside, space inside, as the reference does."""
        one_span = self._span_fn(x, whole, cuts, host)
        return join([join(self._spans(item, whole, one_span, cuts), T_AXIS) for item in x.split(1)], axis=0)

    def _spans(self, item: Tensor, whole: TileFn, one_span: TileFn, cuts: Cuts | None) -> Iterator[Tensor]:
        """One video's results along time, each when it is final."""
        if cuts and cuts.has_shared_norms and cuts.reach(item.shape[2:]):
            one_span = self._sharing_norms(item, whole, one_span, cuts)
        if cuts and item.shape[T_AXIS] > cuts.time[0].length:
            yield from time_spans(item, one_span, *cuts.time)
        else:
            yield one_span(item)

    def _sharing_norms(self, item: Tensor, whole: TileFn, one_span: TileFn, cuts: Cuts) -> TileFn:
        """one_span, with the statistics of a small copy of the video. They are on the norms only while it runs: between
        two spans the VAE is anyone's.
        """
        noted = note_statistics(self, lambda: whole(shrink(item, cuts.time[0], cuts.space[0])))

        def shared(span: Tensor) -> Tensor:
            with using(noted):
                return one_span(span)

        return shared

    def _span_fn(self, x: Tensor, whole: TileFn, cuts: Cuts | None, host: Host | None) -> TileFn:
        """What makes one span, in tiles where it is larger than one. The host hears of every tile of all of x."""
        host = host or HeadlessHost()
        total = x.shape[0] * _count(x.shape[2:], cuts)
        done = 0

        def one_tile(tile: Tensor) -> Tensor:
            nonlocal done
            host.check_interrupt()
            result = whole(tile)
            done += 1
            host.step(done, total)
            return result

        def one_span(span: Tensor) -> Tensor:
            if cuts and max(span.shape[3:]) > cuts.space[0].length:
                return tile_space(span, one_tile, *cuts.space)
            return one_tile(span)

        return one_span


@dataclass(frozen=True)
class Cuts:
    """Tiles along time and along both axes of space, each in units of what goes in and of what comes out."""

    time: tuple[Axis, Axis]
    space: tuple[Axis, Axis]
    has_shared_norms: bool = False

    def reach(self, shape: torch.Size) -> bool:
        """Whether a video of (T, H, W) is larger than one tile."""
        return shape[0] > self.time[0].length or max(shape[1:]) > self.space[0].length


def _decoding_cuts(tiles: Tiles | None) -> Cuts | None:
    if tiles is None:
        return None
    time, space = (tiles.time, tiles.time * TEMPORAL_COMPRESSION), (tiles.space, tiles.space * SPATIAL_COMPRESSION)
    return Cuts(time, space, tiles.shared_norms)


def _count(shape: torch.Size, cuts: Cuts | None) -> int:
    """Tiles of a video of (T, H, W)."""
    if cuts is None:
        return 1
    (frames, height, width), time, space = shape, cuts.time[0], cuts.space[0]
    count = 1
    if max(height, width) > space.length:
        count = len(space.lengths(height)) * len(space.lengths(width))
    if frames > time.length:
        count *= len(time.lengths(frames, extra=1))
    return count
