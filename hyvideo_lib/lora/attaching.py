"""LoRAs on a transformer for the length of a run: which act, how strongly, where; attached, and taken away again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from ..checkpoint.lora_layers import layer_sizes
from ..errors import InvalidSetting
from ..transformer import HunyuanVideoTransformer
from ..transformer.ops import Adaptable
from .adapters import make_adapters
from .blocks import ALL_BLOCKS, BlockChoice
from .cost import Cost, cost_of
from .read import Lora
from .strength import check_strength
from .update import Weighted


@dataclass(frozen=True, eq=False)
class LoraUse:
    """A LoRA as it is used: how strongly, and on which blocks. Raises InvalidSetting.

    strength: -10..10; 1 is as trained, 0 is off, below 0 turns the effect round.
    """

    lora: Lora
    strength: float = 1.0
    blocks: BlockChoice = ALL_BLOCKS

    def __post_init__(self) -> None:
        check_strength(self.strength)
        self.blocks.check(self.lora.config.num_double_blocks, self.lora.config.num_single_blocks)

    def describe(self) -> str:
        """The report on the file; one line for people."""
        return self.lora.coverage.describe()

    def warnings(self) -> dict[str, str]:
        """What a user should know of it, by codes: that it has no effect, that tensors of its file are not used."""
        told = {"lora_idle": self.idle_reason(), "lora_unmatched": self.lora.coverage.warning()}
        return {code: sentence for code, sentence in told.items() if sentence}

    def idle_reason(self) -> str | None:
        """A sentence on why it changes nothing, with what to do; None for one that acts."""
        file = self.lora.coverage.file
        chosen = [part for layer, parts in self.lora.updates.items() if self.blocks.includes(layer) for part in parts]
        if self.strength == 0:
            return f"{file} has no effect: its strength is 0. Give it another strength, or take it away."
        if not chosen:
            return (
                f"{file} has no effect: it changes nothing in the blocks that were chosen. It changes "
                f"{self.lora.coverage.where()}; choose among these, or leave the choice empty."
            )
        if all(part.is_zero() for part in chosen):
            return f"{file} has no effect: all that it would add is zero. Its training did not begin; use another file."
        return None


def collect_updates(loras: Sequence[LoraUse]) -> dict[str, list[Weighted]]:
    """What all LoRAs together add, by layer; those of strength 0 add nothing."""
    updates: dict[str, list[Weighted]] = {}
    for use in loras:
        if use.strength == 0:
            continue
        for layer, parts in use.lora.updates.items():
            if use.blocks.includes(layer):
                updates.setdefault(layer, []).extend((part, use.strength) for part in parts)
    return updates


def lora_bytes(loras: Sequence[LoraUse], item_size: int) -> int:
    """Bytes that LoRAs take on the device during a run, in a compute dtype of `item_size` bytes."""
    return item_size * sum(cost.numbers for cost in lora_costs(loras).values())


def lora_costs(loras: Sequence[LoraUse]) -> dict[str, Cost]:
    """What they take in each layer that is changed, by its path."""
    sizes = layer_sizes(loras[0].lora.config) if loras else {}
    return {name: cost_of(sizes[name], parts) for name, parts in collect_updates(loras).items()}


@contextmanager
def attach(model: HunyuanVideoTransformer, loras: Sequence[LoraUse]) -> Iterator[None]:
    """Let LoRAs act on a transformer within the block; afterwards, also after an error, it is as it was.

    Raises InvalidSetting for a LoRA that was read for a transformer of other sizes.
    """
    for use in loras:
        if use.lora.config != model.config:
            raise InvalidSetting(
                f"{use.lora.coverage.file} was read for a transformer of other sizes. Load it again for this one."
            )
    made = make_adapters(model, collect_updates(loras))
    before: list[tuple[Adaptable, tuple[object, ...] | None]] = []
    try:
        for name, adapter in made.items():
            layer = cast(Adaptable, model.get_submodule(name))
            before.append((layer, vars(layer).get("adapters")))
            layer.adapters = (*layer.adapters, adapter)
        yield
    finally:
        for layer, adapters in reversed(before):
            if adapters is None:
                del layer.adapters
            else:
                layer.adapters = adapters
        for adapter in made.values():  # whoever still holds one, such as the traceback of an error
            adapter.release()
