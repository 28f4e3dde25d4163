"""Decode and encode with the true widths against diffusers' class: same weights, same inputs, same tiles.

diffusers tiles in time unless told not to: the untiled case switches that off. Then a long video to bytes, in spans as
they are done against as a whole; by a narrow VAE, since what differs is the video that lies beside the tile at work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.measure import Side, compare
from benchmarks.peers import diffusers_vae, set_tiles
from benchmarks.rows import OURS, Options, Row, compared_rows
from hyvideo_lib.geometry import latent_shape
from hyvideo_lib.vae import CausalVideoVAE, Tiles, VAEConfig
from hyvideo_lib.video import frames_from_pixels


@dataclass(frozen=True)
class Case:
    """A clip of frames x size x size pixels."""

    frames: int
    size: int
    tiles: Tiles | None = None

    @property
    def name(self) -> str:
        tiled = f"tiles {self.tiles.size} x {self.tiles.frames}" if self.tiles else "untiled"
        return f"{self.frames} x {self.size} x {self.size}, {tiled}"


CASES = (Case(9, 96), Case(1, 256), Case(17, 72, Tiles(size=64, frames=16)))
QUICK_CASES = (Case(5, 32), Case(17, 40, Tiles(size=32, frames=16)))
LONG_CASE, QUICK_LONG_CASE = Case(129, 128, Tiles(size=64, frames=16)), Case(33, 64, Tiles(size=32, frames=16))
QUICK_CONFIG = VAEConfig(block_channels=(8, 8, 16, 16), layers_per_block=1, norm_groups=4)


def run(options: Options) -> Iterator[Row]:
    torch.manual_seed(0)
    config, cases = (QUICK_CONFIG, QUICK_CASES) if options.is_quick else (VAEConfig(), CASES)
    # On the CPU only float32 is measured: nobody runs this VAE in 16 bits there.
    dtypes = options.dtypes if options.device.type == "cuda" else (torch.float32,)
    for dtype in dtypes:
        vae = CausalVideoVAE(config).to(options.device, dtype).requires_grad_(False).eval()
        for case in cases:
            for verb in ("decode", "encode"):
                name = f"{verb} {case.name}, {str(dtype).removeprefix('torch.')}"
                if options.wants(name):
                    sides = make_sides(vae, case, verb)
                    yield from compared_rows("vae", name, *compare(sides, options.repeats, options.device))
    case = QUICK_LONG_CASE if options.is_quick else LONG_CASE
    name = f"decode to bytes {case.name}, narrow, float32"
    if options.wants(name):
        vae = CausalVideoVAE(QUICK_CONFIG).to(options.device).requires_grad_(False).eval()
        yield from compared_rows("vae", name, *compare(streaming_sides(vae, case), options.repeats, options.device))


def streaming_sides(vae: CausalVideoVAE, case: Case) -> dict[str, Side]:
    """Frames that are taken as they come, and all at once. Both return some bytes of every frame."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, *latent_shape(case.size, case.size, case.frames), generator=generator)
    latents = latents.to(vae.quant_conv.weight)

    def streamed() -> Tensor:
        some = []
        for span in vae.decode_spans(latents, case.tiles):
            some.append(frames_from_pixels(span[0])[:, ::8, ::8].clone())
            del span
        return torch.cat(some)

    return {
        OURS: streamed,
        "whole": lambda: frames_from_pixels(vae.decode(latents, case.tiles)[0])[:, ::8, ::8].clone(),
    }


def make_sides(vae: CausalVideoVAE, case: Case, verb: str) -> dict[str, Side]:
    """The two sides of one case on one random input."""
    peer = diffusers_vae(vae)
    tiles = case.tiles
    set_tiles(peer, tiles and (tiles.size, tiles.frames, tiles.overlap))
    like = vae.quant_conv.weight
    generator = torch.Generator().manual_seed(1)
    if verb == "decode":
        latents = torch.randn(1, 16, *latent_shape(case.size, case.size, case.frames), generator=generator).to(like)
        return {OURS: lambda: vae.decode(latents, tiles), "diffusers": lambda: peer.decode(latents).sample}
    video = (2 * torch.rand(1, 3, case.frames, case.size, case.size, generator=generator) - 1).to(like)
    return {OURS: lambda: vae.encode(video, tiles).mean, "diffusers": lambda: peer.encode(video).latent_dist.mean}
