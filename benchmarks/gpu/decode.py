"""Latents to pixels in the reference's tiles and in the largest that fit, against diffusers, under caps of memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu import card
from benchmarks.gpu.clips import Clip, clips
from benchmarks.gpu.models import TINY_VAE, random_vae
from benchmarks.peers import diffusers_vae, set_tiles
from benchmarks.rows import OURS, Options, Row, measured_row, ratio_row, skipped_row
from hyvideo_lib.pipeline import FIT, VAEWork
from hyvideo_lib.vae import CausalVideoVAE, Tiles, VAEConfig

CAPS = (24.0, 12.0, 8.0)
REFERENCE = Tiles()
PEER = "diffusers, reference tiles"


@torch.no_grad()
def run(options: Options) -> Iterator[Row]:
    config = TINY_VAE if options.is_quick else VAEConfig()
    dtype = torch.float16 if options.device.type == "cuda" else torch.float32
    vae = random_vae(config, dtype, options.device)
    for clip in clips(options.is_quick)[-1:]:
        for gib in CAPS:
            case = f"{clip.name}, {gib:g} GiB"
            if options.wants(case):
                with card.capped(options.device, gib):
                    yield from of_case(vae, clip, gib, case, options)


def of_case(vae: CausalVideoVAE, clip: Clip, gib: float, case: str, options: Options) -> Iterator[Row]:
    like = vae.quant_conv.weight
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, vae.config.latent_channels, *clip.latents, generator=generator).to(like)
    peer = diffusers_vae(vae)
    set_tiles(peer, (REFERENCE.size, REFERENCE.frames, REFERENCE.overlap))
    fitting = fitted(vae, clip, gib, options.device)
    tiles = "untiled" if fitting is None else f"{fitting.size} px, {fitting.frames} frames"
    sides = {
        f"{OURS}, reference tiles": lambda: vae.decode(latents, REFERENCE),
        f"{OURS}, fit ({tiles})": lambda: vae.decode(latents, fitting),
        PEER: lambda: peer.decode(latents).sample,
    }
    results = {}
    for side, call in sides.items():
        try:
            results[side] = card.measure(call, options.device, options.repeats)
        except torch.OutOfMemoryError:
            card.empty(options.device)
            yield skipped_row("gpu decode", case, side, card.OUT_OF_MEMORY)
            continue
        yield measured_row("gpu decode", case, side, results[side])
    for side, result in results.items():
        if side != PEER and PEER in results:
            yield {**ratio_row("gpu decode", case, PEER, result, results[PEER]), "of": side}


def fitted(vae: CausalVideoVAE, clip: Clip, gib: float, device: torch.device) -> Tiles | None:
    """What the fit mode takes under this cap."""
    work = VAEWork.of(vae, clip.frames, clip.height, clip.width, device)
    return work.choose(FIT, card.free_bytes(device, gib))
