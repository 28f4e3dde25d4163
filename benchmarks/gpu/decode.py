"""Latents to bytes in RAM, in the reference's tiles and in those of `fit`, against diffusers, under memory caps.

Ours streams, as the product does: a span of frames becomes bytes before the next is decoded. diffusers decodes the
whole video, which then becomes bytes alike. What ran under a cap is not measured again in the same tiles under a larger
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.gpu import card
from benchmarks.gpu.clips import Clip, clips
from benchmarks.gpu.models import TINY_VAE, random_vae
from benchmarks.gpu.table import Table
from benchmarks.peers import diffusers_vae, set_tiles
from benchmarks.rows import OURS, Measurement, Options, Row, measured_row, skipped_row
from hyvideo_lib.pipeline.tiles import FIT, VAEWork, describe_size
from hyvideo_lib.vae import CausalVideoVAE, Tiles, VAEConfig

CAPS = (8.0, 12.0, 24.0)
"""GiB. The least first, which decides."""
REFERENCE = Tiles()
FITTING = f"{OURS}, fit"
REFERENCE_TILES = f"{OURS}, reference tiles"
PEER = "diffusers, reference tiles"


@torch.no_grad()
def run(options: Options) -> Iterator[Row]:
    table = Table("gpu decode", options)
    yield from table.rows_of(Decoding(table.benchmark, clips(options.is_quick)[0], options).cases())


class Decoding:
    """One clip, ours and diffusers' VAE with the same weights, and what was measured."""

    def __init__(self, benchmark: str, clip: Clip, options: Options) -> None:
        self._benchmark, self._clip, self._options, self._device = benchmark, clip, options, options.device
        self._vae, self._peer, self._latents = cache(self._make_vae), cache(self._make_peer), cache(self._make_latents)
        self._known: dict[tuple[str, Tiles | None], float] = {}
        self._results: dict[tuple[str, bool], Measurement] = {}

    def cases(self) -> Iterator[Case]:
        sides = {FITTING: self._fitting, REFERENCE_TILES: self._reference, PEER: self._diffusers}
        for gib in CAPS:
            case = f"{self._clip.name}, {gib:g} GiB"
            for side, rows in sides.items():
                yield Case(case, partial(self._capped, rows, case, gib), side)

    def _make_vae(self) -> CausalVideoVAE:
        config = TINY_VAE if self._options.is_quick else VAEConfig()
        vae = random_vae(config, torch.float16 if self._device.type == "cuda" else torch.float32, self._device)
        vae.decode(self._latents_for(vae)[:, :, :1, :8, :8])  # loads kernels
        return vae

    def _make_peer(self) -> Any:
        peer = diffusers_vae(self._vae())
        set_tiles(peer, (REFERENCE.size, REFERENCE.frames, REFERENCE.overlap))
        return peer

    def _latents_for(self, vae: CausalVideoVAE) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        shape = 1, vae.config.latent_channels, *self._clip.latents
        return torch.randn(shape, generator=generator).to(vae.quant_conv.weight)

    def _make_latents(self) -> Tensor:
        return self._latents_for(self._vae())

    def _capped(self, rows: Callable[[str, float], Iterator[Row]], case: str, gib: float) -> Iterator[Row]:
        with card.capped(self._device, gib):
            yield from rows(case, gib)

    def _fitting(self, case: str, gib: float) -> Iterator[Row]:
        """In the tiles that the fit mode takes; when memory runs out, in the next smaller ones, as in the product."""
        vae, clip, steps = self._vae(), self._clip, []
        self._latents()
        work = VAEWork.of(vae, clip.frames, clip.height, clip.width, self._device)
        tiles = work.choose(FIT, card.free_bytes(self._device, gib))

        def attempt(tiles: Tiles | None) -> tuple[Tiles | None, Measurement]:
            return tiles, self._measured(partial(streamed, vae, self._latents(), tiles, clip))

        def measure() -> tuple[Tiles | None, Measurement]:
            clean, free = partial(card.empty, self._device), partial(card.free_bytes, self._device, gib)
            return work.run(attempt, tiles, "decoding", "", steps.append, clean, free)

        yield from self._rows(case, gib, FITTING, tiles, measure, steps)

    def _reference(self, case: str, gib: float) -> Iterator[Row]:
        vae, latents = self._vae(), self._latents()
        measure = partial(self._measured, partial(streamed, vae, latents, REFERENCE, self._clip))
        yield from self._rows(case, gib, REFERENCE_TILES, REFERENCE, lambda: (REFERENCE, measure()))

    def _diffusers(self, case: str, gib: float) -> Iterator[Row]:
        peer, latents = self._peer(), self._latents()
        measure = partial(self._measured, lambda: to_bytes(peer.decode(latents).sample))
        yield from self._rows(case, gib, PEER, REFERENCE, lambda: (REFERENCE, measure()))

    def _measured(self, call: Callable[[], Tensor]) -> Measurement:
        return card.measure(call, self._device, self._options.repeats)

    def _rows(
        self,
        case: str,
        gib: float,
        side: str,
        planned: Tiles | None,
        measure: Callable[[], tuple[Tiles | None, Measurement]],
        steps: list[str] | None = None,
    ) -> Iterator[Row]:
        if (side, planned) in self._known:
            known = self._known[side, planned]
            yield skipped_row(self._benchmark, case, side, f"as under {known:g} GiB: the same tiles")
            return
        tiles, result = measure()
        self._known[side, planned] = gib
        more: dict[str, Any] = {"tiles": describe_size(tiles), "smaller_tiles": steps or []}
        if side != PEER and "held_bytes" in result.more:
            clip = self._clip
            work = VAEWork.of(self._vae(), clip.frames, clip.height, clip.width, self._device)
            more["predicted_bytes"] = work.num_bytes(tiles) + result.more["held_bytes"]
        yield {**measured_row(self._benchmark, case, side, result), **more}
        self._results[f"{side}, {gib:g} GiB", side == PEER] = result
        yield from self._ratios(case, side == PEER)

    def _ratios(self, case: str, is_peer: bool) -> Iterator[Row]:
        """What the last result makes known: ours against diffusers' of whatever cap."""
        ours, theirs = ([name for name in self._results if name[1] is side] for side in (False, True))
        for name in ours if is_peer else ours[-1:]:
            for peer in theirs[-1:]:
                ratio = card.ratio_apart(self._benchmark, case, peer[0], self._results[name], self._results[peer])
                yield {**ratio, "of": name[0]}


def streamed(vae: CausalVideoVAE, latents: Tensor, tiles: Tiles | None, clip: Clip) -> Tensor:
    """Bytes [F, H, W, 3] on the CPU, a span at a time, as the product makes them."""
    frames, done = torch.empty(clip.frames, clip.height, clip.width, 3, dtype=torch.uint8), 0
    for span in vae.decode_spans(latents, tiles):
        part = to_bytes(span)
        del span  # before the next one is made
        frames[done : done + len(part)] = part
        done += len(part)
    return frames


def to_bytes(pixels: Tensor) -> Tensor:
    """Bytes [F, H, W, 3] on the CPU of pixels [1, 3, F, H, W]."""
    from hyvideo_lib.video import frames_from_pixels  # wants NumPy, which other tables do without

    return frames_from_pixels(pixels[0])
