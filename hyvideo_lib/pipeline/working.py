"""What sampling takes on a device beside the transformer's weights: a plan says it, and a run goes by it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..attention import AUTO
from ..caches import CacheConfig
from ..geometry import align_up
from ..lora import LoraUse, attach, lora_bytes
from ..memory import Offloader
from ..memory.memo import KEPT
from ..memory.plan import choose_way
from ..sampling import GuidanceConfig
from ..transformer import HunyuanVideoTransformer, LeanConfig
from ..transformer.lean_config import lean_steps
from .dry_run import transformer_work

LATENT_COPIES = 4
"""float32: the latents, the velocity, and what a solver keeps of the step before."""
TENSORS = 16
"""As long as all tokens, that both passes of a forward hold at a time, at most and roughly."""
SMALL_SHARE = 8
"""Of the free RAM, an eighth: what takes less need not be counted, which takes seconds of a new process."""


@dataclass(frozen=True, eq=False)
class SampleWork:
    """Of sampling latents of (T, H, W) with a text of so many tokens, padding included.

    model: with weights anywhere, also without numbers. source: where they come from; None if all are in place.
    steps: of the schedule. attention: the backend that is asked for.
    """

    model: HunyuanVideoTransformer
    source: Offloader | None
    latent_shape: tuple[int, int, int]
    text_tokens: int
    steps: int
    guidance: GuidanceConfig
    cache: CacheConfig | None = None
    loras: tuple[LoraUse, ...] = ()
    attention: str = AUTO

    @property
    def image_tokens(self) -> int:
        image = 1
        for side, patch in zip(self.latent_shape, self.model.config.patch_size, strict=True):
            image *= align_up(side, patch) // patch
        return image

    @property
    def tokens(self) -> int:
        """Of image and text."""
        return self.image_tokens + self.text_tokens

    def is_small(self, free: int) -> bool:
        """Whether it plainly takes but a small share of so many bytes. Nothing is run for that."""
        width = self.tokens * self.model.config.hidden_size * self.model.compute_dtype.itemsize
        return SMALL_SHARE * TENSORS * width <= free

    def bytes_in(self, lean: LeanConfig) -> int:
        """With blocks as lean as that."""
        with attach(self.model, self.loras):
            return self._bytes_in(lean)

    def fitted(self, free: int | None) -> tuple[LeanConfig, int]:
        """How lean the blocks should be, and what sampling takes then, with `free` bytes for weights and work together.

        None is without bound. The first of `lean_steps` beside which all weights stay, or that takes up to half of it
        all and leaves room for what must be there; the last where none does.
        """
        weights, least = (self.source.num_bytes, self.source.least_bytes) if self.source else (0, 0)
        with attach(self.model, self.loras):
            ways = ((lean, self._bytes_in(lean)) for lean in lean_steps(self.model.config.num_heads))
            return choose_way(ways, weights, free, least)

    def _bytes_in(self, lean: LeanConfig) -> int:
        batch = 2 if self.guidance.uses_cfg and self.guidance.batched else 1
        work = transformer_work(self.model, self.latent_shape, self.text_tokens, batch, lean, self.attention)
        return work + sum(self._beside())

    def _beside(self) -> Iterator[int]:
        """What is there in every form of the blocks."""
        config, item_size = self.model.config, self.model.compute_dtype.itemsize
        branches = 2 if self.guidance.uses_cfg else 1
        frames, height, width = self.latent_shape
        yield LATENT_COPIES * 4 * config.out_channels * frames * height * width
        yield lora_bytes(self.loras, item_size)
        if self.source:
            yield memo_bytes(self.source, self.model, self.steps, branches)
        if self.cache:
            yield self.cache.device_bytes(config.hidden_size, self.image_tokens, item_size, branches)

    @property
    def ram_bytes(self) -> int:
        """What waits in RAM meanwhile, where the device is another."""
        branches = 2 if self.guidance.uses_cfg else 1
        sizes = self.model.config.hidden_size, self.image_tokens, self.model.compute_dtype.itemsize, branches
        return self.cache.host_bytes(*sizes) if self.cache else 0


def memo_bytes(source: Offloader, model: HunyuanVideoTransformer, steps: int, branches: int) -> int:
    """The modulating vectors of all steps, and the largest of the layers that make them."""
    numbers = sum(modulation.linear.out_features for modulation in model.modulations)
    return branches * min(steps, KEPT) * numbers * model.compute_dtype.itemsize + source.visit_bytes
