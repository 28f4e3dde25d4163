"""How the VAE cuts a video: as asked for, as memory allows, and smaller when memory runs out.

The tiles are part of the result. So nothing is patched together when memory runs out: the whole video is made again in
the next smaller tiles, and is what a run that began with those would have made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch

from ..checkpoint.blueprint import build_meta_vae
from ..errors import InvalidTiles, OutOfMemory
from ..geometry import TEMPORAL_COMPRESSION, align_up
from ..memory.estimate import vae_bytes
from ..memory.fit import Tile, candidate_tiles, first_fitting
from ..memory.machine import gib
from ..memory.plan import with_reserve
from ..memory.ram import free_ram_bytes, free_swap_bytes
from ..memory.vram import free_device_bytes
from ..shortage import is_out_of_memory, reason_of, release
from ..vae import CausalVideoVAE, Tiles, TinyVAE, TinyVAEConfig, VAEConfig
from .dry_run import decode_work, encode_work, least_work

FIT, FIT_SHARED = "fit", "fit, shared norms"
PAIRS_OF_A_LATENT = 830_000
"""Of attention, that take as many operations as the convolutions for one latent of the released model: 1.7e9, counted
for decoding, by 2,048, a product and a sum in each of two products of 512 channels."""
FADE = round(Tiles.size * Tiles.overlap)
"""Pixels over which the reference's tiles fade into each other."""
TilesChoice = Tiles | str | None
"""Tiles, FIT for those that fit with the least to compute (FIT_SHARED: with shared norms), or None for no cuts."""
Result = TypeVar("Result")


def check_choice(choice: TilesChoice) -> None:
    """Raises InvalidTiles for a word other than FIT and FIT_SHARED."""
    if isinstance(choice, str) and choice not in (FIT, FIT_SHARED):
        raise InvalidTiles(f"tiles is {choice!r}, but as a word it must be {FIT!r} or {FIT_SHARED!r}.")


def tiles_settings(choice: TilesChoice) -> Any:
    """As plain values, for the settings inside a video."""
    return asdict(choice) if isinstance(choice, Tiles) else choice


def describe_size(tiles: Tiles | None) -> str:
    """ "tiles of 256 pixels and 64 frames"."""
    return f"tiles of {tiles.size} pixels and {tiles.frames} frames" if tiles else "one piece"


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be had where the VAE works; None if nobody says."""
    return free_ram_bytes() if device.type == "cpu" else free_device_bytes(device)


@lru_cache
def _sketch(config: VAEConfig, dtype: torch.dtype) -> CausalVideoVAE:
    return build_meta_vae(config).to(dtype).requires_grad_(False).eval()


@lru_cache(1024)
def _count(
    config: VAEConfig,
    dtype: torch.dtype,
    video: tuple[int, int, int],
    tiles: Tiles | None,
    is_encoding: bool,
    is_cpu: bool,
) -> int:
    count = encode_work if is_encoding else decode_work
    return count(_sketch(config, dtype), video, tiles, is_cpu)


@dataclass(frozen=True)
class VAEWork:
    """One pass of a VAE over a video of so many frames and pixels. dtype, weight_bytes: of the VAE.

    frames_at_once: of a VAE that goes through the video by itself, and is not cut into tiles. is_cpu: it works there.
    """

    config: VAEConfig | TinyVAEConfig
    dtype: torch.dtype
    weight_bytes: int
    frames: int
    height: int
    width: int
    is_encoding: bool = False
    is_cpu: bool = False
    frames_at_once: int | None = None

    @classmethod
    def of(
        cls,
        vae: CausalVideoVAE | TinyVAE,
        frames: int,
        height: int,
        width: int,
        device: torch.device,
        is_encoding: bool = False,
    ) -> VAEWork:
        """device: where it will work, which need not be where the VAE is now."""
        parameters = list(vae.parameters())
        weights, at_once = sum(parameter.nbytes for parameter in parameters), None
        if isinstance(vae, TinyVAE):
            at_once = TEMPORAL_COMPRESSION * vae.config.frames_at_once(height, width)
        size = frames, height, width
        return cls(vae.config, parameters[0].dtype, weights, *size, is_encoding, device.type == "cpu", at_once)

    @property
    def video(self) -> tuple[int, int, int]:
        """Frames, height and width in pixels."""
        return self.frames, self.height, self.width

    def num_bytes(self, tiles: Tiles | None) -> int:
        """Working memory, as a plan counts it: by running a tile of each kind without numbers. The tiny VAE's is
        estimated.
        """
        if isinstance(self.config, TinyVAEConfig):
            piece = min(self.frames, self.frames_at_once or self.frames), self.height, self.width
            return vae_bytes(self.config.block_channels, *piece, self.dtype.itemsize)
        return _count(self.config, self.dtype, self.video, tiles, self.is_encoding, self.is_cpu)

    def working_bytes(self, tiles: Tiles | None) -> int:
        """The same, with what should be kept free."""
        return with_reserve(self.num_bytes(tiles))

    def choose(self, choice: TilesChoice, free: int | None) -> Tiles | None:
        """The tiles that a choice means with so many free bytes; the reference's where nobody knows how many."""
        check_choice(choice)
        if self.frames_at_once:
            return None
        if not isinstance(choice, str):
            return choice
        like = Tiles(shared_norms=choice == FIT_SHARED)
        if free is None:
            return like
        if self._fits(None, free):
            return None
        tiles = self._candidates(like)
        smallest = self._tiles(min(tiles), like)
        if not self._fits(smallest, free):
            return smallest
        found = first_fitting(tiles, lambda tile: self._fits(self._tiles(tile, like), free))
        return self._tiles(found, like) if found else smallest

    def smaller(self, tiles: Tiles | None, free: int | None = None) -> Tiles | None:
        """The next smaller tiles, whose work takes at most half, and fits if anything does; None after the smallest.

        The smallest follow also where they take more than half.
        """
        if self.frames_at_once:
            return None
        like, before = tiles or Tiles(), self.num_bytes(tiles)
        candidates = self._candidates(like)

        def is_less(tile: Tile) -> bool:
            tiles = self._tiles(tile, like)
            if self._least(tiles) > before // 2 or not (free is None or self._fits(tiles, free)):
                return False
            return self.num_bytes(tiles) <= before // 2

        found = self._tiles(first_fitting(candidates, is_less) or min(candidates), like)
        return found if self.num_bytes(found) < before else None

    def _candidates(self, like: Tiles) -> list[Tile]:
        """Those with the least to compute first; where that is equal, the fewest."""

        def cost(tile: Tile) -> tuple[float, int]:
            tiles = self._tiles(tile, like)
            latents, number = tiles.cost(*self.video)
            return latents + tiles.attention_pairs(*self.video) / PAIRS_OF_A_LATENT, number

        return sorted(candidate_tiles(*self.video), key=cost)

    def _tiles(self, tile: Tile, like: Tiles) -> Tiles:
        """Tiles of that size and length, otherwise like others.

        An overlap as the reference's means its pixels: joins fade over as many in larger tiles, where time is not cut.
        """
        size, length = tile
        overlap = like.overlap
        if overlap in (Tiles.overlap, FADE / like.size):
            overlap = Tiles.overlap
            if size * overlap > FADE and size < max(self.height, self.width) and length >= self.frames:
                overlap = FADE / size
                length = align_up(length, TEMPORAL_COMPRESSION * (size // math.gcd(size, FADE)))
        try:
            return Tiles(size, length, overlap, like.shared_norms)
        except InvalidTiles:  # no whole number of latents
            return Tiles(size, length, shared_norms=like.shared_norms)

    def _fits(self, tiles: Tiles | None, free: int) -> bool:
        """Counted only where it is not plain that they take more."""
        return with_reserve(self._least(tiles)) <= free and self.working_bytes(tiles) <= free

    def _least(self, tiles: Tiles | None) -> int:
        assert isinstance(self.config, VAEConfig)
        return least_work(self.config, self.dtype, self.video, tiles, self.is_encoding, self.is_cpu)

    def _check_ram(self, tiles: Tiles | None) -> None:
        """Raises OutOfMemory for what RAM cannot hold. A system that has none left ends the process without a word."""
        free = free_ram_bytes() if self.is_cpu else None
        if free is not None and isinstance(self.config, VAEConfig):
            least = self._least(tiles)
            if least > free + free_swap_bytes():
                raise OutOfMemory(f"{gib(least)} at least, and {gib(free)} of RAM are free")

    def run(
        self,
        attempt: Callable[[Tiles | None], Result],
        tiles: Tiles | None,
        doing: str,
        advice: str,
        tell: Callable[[str, str], None],
        clean: Callable[[], None],
        free: Callable[[], int | None],
    ) -> Result:
        """attempt(tiles), or when memory runs out in it attempt(smaller ones), until the smallest there are.

        What RAM cannot hold is not tried where the VAE works there. doing, advice: words for the messages. tell: hears
        of every step down, in a sentence and in a few words. clean: gives back what a failed attempt had. Raises
        OutOfMemory with numbers, and whatever else attempt raises.
        """
        while True:
            try:
                self._check_ram(tiles)
                return attempt(tiles)
            except (MemoryError, RuntimeError, OutOfMemory) as error:
                if not isinstance(error, OutOfMemory) and not is_out_of_memory(error):
                    raise
                reason = reason_of(error.__cause__ or error)
                release(error)
            # Out of the block that holds the error, and with it everything that the failed attempt was working on.
            clean()
            following = self.smaller(tiles, free())
            if following is None:
                raise OutOfMemory(
                    f"Memory ran out while {doing} ({reason}) in {describe_size(tiles)}; no smaller tiles are left. "
                    f"Their work takes about {gib(self.num_bytes(tiles))} beside the VAE's {gib(self.weight_bytes)}; "
                    f"{gib(free())} are free now. {advice}"
                )
            tell(
                f"Memory ran out while {doing} in {describe_size(tiles)}; it starts again in {describe_size(following)}"
                f" with an overlap of {following.overlap:g}, which may show more seams.",
                f"{describe_size(following)} after {describe_size(tiles)}",
            )
            tiles = following
