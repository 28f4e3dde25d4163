"""Weights that a block multiplies with as copies: cast, joined, rounded, or with LoRAs in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch

from ..lora import Cost
from ..transformer import HunyuanVideoTransformer
from ..transformer.blocks import DoubleBlock, SingleBlock
from ..transformer.lean import ready_together
from ..transformer.ops import DENSE, Linear


def copied_bytes(model: HunyuanVideoTransformer, costs: Mapping[str, Cost], tokens: int) -> int:
    """Bytes of the most such weights that are there at one time, which is for as long as they are used.

    costs: of LoRAs, by their layers. tokens: of image and text.
    """
    names = {id(layer): name for name, layer in model.named_modules()}

    def is_copied(layer: Linear) -> bool:
        cost = costs.get(names[id(layer)])
        return rests_otherwise(layer, model.compute_dtype) or (cost is not None and cost.merging_pays(tokens))

    numbers = (
        sum(layer.in_features * rows for layer, rows in together if is_copied(layer))
        for block in model.blocks
        for together in ready_together(cast(DoubleBlock | SingleBlock, block))
    )
    return max(numbers, default=0) * model.compute_dtype.itemsize


def rests_otherwise(layer: Linear, dtype: torch.dtype) -> bool:
    """Whether the layer's weight is multiplied as something else than it rests as: cast, joined or rounded."""
    weight = getattr(layer, "weight", None)
    return weight is None or weight.dtype != dtype or layer.product is not DENSE
