"""What tiles cost: how far a decode in tiles is from the uncut one, where tiles meet and elsewhere.

    python -m benchmarks.vae_seams --out benchmarks/results/vae_seams.jsonl

Two decoders: the demo's, on latents of drawn clips (four of them side by side, so that there is something to cut), and
the released widths with random weights, on random latents. Every group norm sees one tile at a time. To find out what
that costs, each cut is decoded again with statistics from elsewhere:

- `own`: each tile's, as the product does it;
- `small`: of one decode of the whole video from latents at half the size, which costs a quarter of a decode more;
- `tile`: of one decode of latents so small that they fit into a tile: the time of one tile more;
- `mean`: the mean over all tiles of a first pass, which doubles the time;
- `whole`: of the uncut decode: the bound of what any such scheme can reach.

PSNR in dB against the uncut decode, for pixels of -1..1, within the overlaps of tiles and outside of them. The slope of
the error, in thousandths of a pixel's range per pixel, says how steeply it changes there: what shows as a seam.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyvideo_lib.checkpoint import load_vae
from hyvideo_lib.demo import assets
from hyvideo_lib.demo.world import SCENES, draw_clips
from hyvideo_lib.vae import CausalVideoVAE, Tiles, VAEConfig, lean

PEAK = 2.0
"""From the darkest to the brightest pixel."""
Statistics = list[tuple[Tensor, Tensor]]
"""Mean and mean square [groups], float64, of every norm in the order of the decode."""


@dataclass(frozen=True)
class Case:
    name: str
    vae: CausalVideoVAE
    latents: Tensor
    cuts: Sequence[Tiles]


def demo_case(is_quick: bool) -> Case:
    """Four clips as one picture of 128 x 128, encoded."""
    vae = load_vae(assets.VAE)
    clips, _ = draw_clips(SCENES[:: len(SCENES) // 4][:4], generator=torch.Generator().manual_seed(0))
    rows = [torch.cat([clips[i], clips[i + 1]], dim=-1) for i in (0, 2)]
    video = torch.cat(rows, dim=-2).unsqueeze(0)
    cuts = [Tiles(32, 64)] if is_quick else [*(Tiles(size, 64) for size in (32, 64, 96)), Tiles(96, 96, 1 / 6)]
    return Case("demo", vae, vae.encode(video).mean, cuts)


def wide_case(is_quick: bool) -> Case:
    """The released widths; 5 frames of 64 x 64."""
    torch.manual_seed(0)
    config = VAEConfig((8, 8, 16, 16), layers_per_block=1, norm_groups=4) if is_quick else VAEConfig()
    vae = CausalVideoVAE(config).requires_grad_(False).eval()
    latents = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    return Case("released widths, random weights", vae, latents, [Tiles(32, 64)])


class Norms:
    """The decoder's group norms under control: they note their statistics, or use given ones."""

    def __init__(self, vae: CausalVideoVAE) -> None:
        self.seen: list[Statistics] = []
        self.given: Statistics | None = None
        self._norms = {name: norm for name, norm in vae.decoder.named_modules() if isinstance(norm, nn.GroupNorm)}
        self._vae = vae

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within it every call of `decoder` is one entry of `seen`."""
        hooks = [self._vae.decoder.register_forward_pre_hook(lambda *_: self.seen.append([]))]
        hooks += [norm.register_forward_hook(self._hook) for norm in self._norms.values()]
        least, lean.MIN_PIXELS = lean.MIN_PIXELS, 10**12  # the plain blocks, which call their norms
        try:
            yield
        finally:
            lean.MIN_PIXELS = least
            for hook in hooks:
                hook.remove()

    def _hook(self, norm: nn.GroupNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        x = inputs[0].unflatten(1, (norm.num_groups, -1)).double()  # [1, groups, C / groups, T, H, W]
        index = len(self.seen[-1])
        self.seen[-1].append((x.mean((0, 2, 3, 4, 5)), x.square().mean((0, 2, 3, 4, 5))))
        if self.given is None:
            return None
        mean, square = (value.view(1, -1, 1, 1, 1, 1) for value in self.given[index])
        normed = ((x - mean) * (square - mean**2 + norm.eps).rsqrt()).flatten(1, 2).to(output)
        return normed * norm.weight.view(1, -1, 1, 1, 1) + norm.bias.view(1, -1, 1, 1, 1)


def mean_of(passes: Sequence[Statistics]) -> Statistics:
    """The mean over tiles, which count alike."""
    return [
        (torch.stack([mean for mean, _ in tiles]).mean(0), torch.stack([square for _, square in tiles]).mean(0))
        for tiles in zip(*passes, strict=True)
    ]


def joins(tiles: Tiles, height: int, width: int) -> Tensor:
    """[height, width]: whether a pixel lies where two tiles overlap."""
    axis = tiles.space * 8

    def along(size: int) -> Tensor:
        mask = torch.zeros(size, dtype=torch.bool)
        for start in list(axis.starts(size))[1:]:
            mask[start : start + axis.shared] = True
        return mask

    return along(height)[:, None] | along(width)[None, :]


def psnr(found: Tensor, wanted: Tensor, mask: Tensor) -> float:
    """Over the pixels of a mask [H, W]; both are [1, 3, F, H, W]."""
    error = (found - wanted)[..., mask].double().square().mean().item()
    return 10 * math.log10(PEAK**2 / error) if error else math.inf


def slope(found: Tensor, wanted: Tensor, mask: Tensor) -> float:
    """Mean change of the error from one pixel to the next in its row, over the pixels of a mask."""
    steps = (found - wanted).diff(dim=-1)[..., mask[:, 1:]]
    return steps.abs().double().mean().item() / PEAK


@torch.no_grad()
def rows_of(case: Case) -> Iterator[dict[str, Any]]:
    norms = Norms(case.vae)
    with norms.watched():
        wanted = case.vae.decode(case.latents)
        whole = norms.seen[-1]

        def shrunken(side: int) -> Statistics:
            size = (case.latents.shape[2], side, side)
            case.vae.decode(F.interpolate(case.latents, size, mode="area"))
            return norms.seen[-1]

        side = case.latents.shape[-1]
        for tiles in case.cuts:
            norms.seen.clear()
            norms.given = None
            found = {"own": case.vae.decode(case.latents, tiles)}
            mean = mean_of(norms.seen)
            given = {"small": shrunken(side // 2), "tile": shrunken(tiles.space.length), "mean": mean, "whole": whole}
            for name, norms.given in given.items():
                found[name] = case.vae.decode(case.latents, tiles)
            norms.given = None
            mask = joins(tiles, *wanted.shape[3:])
            for name, video in found.items():
                yield {
                    "benchmark": "vae_seams",
                    "case": f"{case.name}, {wanted.shape[2]} x {wanted.shape[3]} x {wanted.shape[4]}",
                    "tiles": f"{tiles.size} x {tiles.frames}",
                    "overlap_pixels": (tiles.space * 8).shared,
                    "statistics": name,
                    "psnr_joins": round(psnr(video, wanted, mask), 2),
                    "psnr_elsewhere": round(psnr(video, wanted, ~mask), 2),
                    "slope_joins": round(1000 * slope(video, wanted, mask), 2),
                    "slope_elsewhere": round(1000 * slope(video, wanted, ~mask), 2),
                    "joined_share": round(mask.float().mean().item(), 3),
                }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vae_seams", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the rows to this file as well")
    words = parser.parse_args(argv)
    for make in (wide_case, demo_case):
        for row in rows_of(make(words.quick)):
            line = json.dumps({**row, "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__})
            print(line, flush=True)
            if words.out:
                with words.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
