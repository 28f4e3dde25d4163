"""How the VAE cuts a video: as asked for, as large as fits, and smaller when memory runs out.

The tiles are part of the result. So nothing is patched together when memory runs out: the whole video is made again in
the next smaller tiles, and is what a run that began with those would have made.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch

from ..errors import InvalidTiles, OutOfMemory
from ..geometry import TEMPORAL_COMPRESSION
from ..memory.estimate import vae_bytes
from ..memory.fit import fit_tiles, smaller_tiles
from ..memory.machine import gib
from ..memory.ram import free_ram_bytes
from ..memory.vram import free_device_bytes
from ..vae import CausalVideoVAE, Tiles, TinyVAE
from .shortage import is_out_of_memory, reason_of

FIT, FIT_SHARED = "fit", "fit, shared norms"
TilesChoice = Tiles | str | None
"""Tiles, FIT for the largest that fit (FIT_SHARED: with shared norms), or None for no cuts."""
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


@dataclass(frozen=True)
class VAEWork:
    """One pass of a VAE over a video of so many frames and pixels. item_size, weight_bytes: of the VAE.

    frames_at_once: of a VAE that goes through the video by itself, and is not cut into tiles.
    """

    block_channels: Sequence[int]
    item_size: int
    weight_bytes: int
    frames: int
    height: int
    width: int
    frames_at_once: int | None = None

    @classmethod
    def of(cls, vae: CausalVideoVAE | TinyVAE, frames: int, height: int, width: int) -> VAEWork:
        parameters = list(vae.parameters())
        weights, at_once = sum(parameter.nbytes for parameter in parameters), None
        if isinstance(vae, TinyVAE):
            at_once = TEMPORAL_COMPRESSION * vae.config.frames_at_once(height, width)
        item_size = parameters[0].element_size()
        return cls(vae.config.block_channels, item_size, weights, frames, height, width, at_once)

    def num_bytes(self, tiles: Tiles | None) -> int:
        """Working memory of one tile, estimated on the safe side."""
        size, length = (tiles.size, tiles.frames) if tiles else (max(self.height, self.width), self.frames)
        length = self.frames_at_once or length
        piece = min(self.frames, length), min(self.height, size), min(self.width, size)
        return vae_bytes(self.block_channels, *piece, self.item_size)

    def choose(self, choice: TilesChoice, free: int | None) -> Tiles | None:
        """The tiles that a choice means with so many free bytes; the reference's where nobody knows how many."""
        check_choice(choice)
        if self.frames_at_once:
            return None
        if not isinstance(choice, str):
            return choice
        is_shared = choice == FIT_SHARED
        if free is None:
            return Tiles(shared_norms=is_shared)
        found = fit_tiles(self.block_channels, self.frames, self.height, self.width, self.item_size, free)
        return Tiles(*found, shared_norms=is_shared) if found else None

    def smaller(self, tiles: Tiles | None, free: int | None = None) -> Tiles | None:
        """The next smaller tiles, whose work takes at most half, and fits if anything does; None after the smallest."""
        if self.frames_at_once:
            return None
        limit = self.num_bytes(tiles) // 2
        video = self.frames, self.height, self.width
        found = smaller_tiles(self.block_channels, *video, self.item_size, limit, free)
        if found is None:
            return None
        if tiles is None:
            return Tiles(*found)
        try:
            return Tiles(*found, tiles.overlap, tiles.shared_norms)
        except InvalidTiles:  # that overlap does not go with this size
            return Tiles(*found, shared_norms=tiles.shared_norms)

    def run(
        self,
        attempt: Callable[[Tiles | None], Result],
        tiles: Tiles | None,
        doing: str,
        advice: str,
        tell: Callable[[str], None],
        clean: Callable[[], None],
        free: Callable[[], int | None],
    ) -> Result:
        """attempt(tiles), or when memory runs out in it attempt(smaller ones), until the smallest there are.

        doing, advice: words for the messages. tell: hears of every step down. clean: gives back what a failed attempt
        had. Raises OutOfMemory with numbers, and whatever else attempt raises.
        """
        while True:
            try:
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
                f" with an overlap of {following.overlap:g}, which may show more seams."
            )
            tiles = following


def release(error: BaseException | None) -> None:
    """Let go of what the functions that an error came through still refer to; its message and lines stay."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__
