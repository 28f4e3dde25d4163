"""The changes that a module's tensors make, method by method, once its header says that they fit (`lora_roles`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ..checkpoint.lora_roles import Extent
from ..checkpoint.lora_tensors import DIFF, DOWN, HADA, HADA_CORES, MID, OFT_BLOCKS, OFT_R, OFT_SCALED, RESCALE, UP
from .change import Change, Whole
from .dora import Decomposed
from .hadamard import Hadamard, untucked
from .kronecker import Kronecker
from .oft import TurnedInputs, TurnedOutputs
from .update import LowRank

Tensors = Mapping[str, Tensor]


def _make_lora(tensors: Tensors, extent: Extent, scale: float) -> LowRank:
    return LowRank(tensors[DOWN].flatten(1), tensors[UP].flatten(1), scale)


def _make_tucker_lora(tensors: Tensors, extent: Extent, scale: float) -> LowRank:
    up = tensors[UP].flatten(1)
    _, down = untucked(tensors[MID], up.mT, tensors[DOWN].flatten(1))
    return LowRank(down, up, scale)


def _make_loha(tensors: Tensors, extent: Extent, scale: float) -> Hadamard:
    def side(core: str, up: str, down: str) -> tuple[Tensor, Tensor]:
        factors = tensors[up].flatten(1), tensors[down].flatten(1)
        return untucked(tensors[core], *factors) if core in tensors else factors

    first, second = side(HADA_CORES[0], HADA[0], HADA[1]), side(HADA_CORES[1], HADA[2], HADA[3])
    return Hadamard(first[0], first[1], second[0], second[1], scale)


def _make_lokr(tensors: Tensors, extent: Extent, scale: float) -> Kronecker:
    sides: list[Tensor] = []
    for number in "12":
        whole, up, down = (tensors.get(f"lokr_w{number}{end}") for end in ("", "_a", "_b"))
        core = tensors.get(f"lokr_t{number}")
        if whole is not None:
            sides.append(whole.flatten(1))
            continue
        if up is None or down is None:
            raise TypeError("a side of LoKr is a matrix or a product of two")
        if core is not None:
            left, right = untucked(core, up.flatten(1), down.flatten(1))
        else:
            left, right = up.flatten(1).float(), down.flatten(1).float()
        sides.append(left @ right)
    return Kronecker(sides[0], sides[1], scale)


def _make_oft_outputs(tensors: Tensors, extent: Extent, scale: float) -> TurnedOutputs:
    """scale: alpha itself, which LyCORIS and kohya take as a bound for each row."""
    rescale = tensors[RESCALE].reshape(-1, 1) if RESCALE in tensors else None
    return TurnedOutputs(tensors[OFT_BLOCKS], extent.width, scale * extent.rows, rescale)


def _make_oft_inputs(tensors: Tensors, extent: Extent, scale: float) -> TurnedInputs:
    is_scaled = OFT_SCALED in tensors and bool(tensors[OFT_SCALED].reshape(()))
    return TurnedInputs(tensors[OFT_R], extent.rows, extent.width, is_scaled)


def _make_whole(tensors: Tensors, extent: Extent, scale: float) -> Whole:
    return Whole(tensors[DIFF])


MAKERS: Mapping[str, Callable[[Tensors, Extent, float], Change]] = {
    "LoRA": _make_lora,
    "LoRA with a Tucker core": _make_tucker_lora,
    "LoHa": _make_loha,
    "LoKr": _make_lokr,
    "OFT of outputs": _make_oft_outputs,
    "OFT of inputs": _make_oft_inputs,
    "whole difference": _make_whole,
}
"""From tensors by role and the scale to the change; a function for each method of `lora_roles.METHODS`."""


def decomposed(inner: Change, magnitude: Tensor) -> Decomposed:
    """DoRA around a change. [N] are rows' lengths, [1, N, ...] columns', but for PEFT's convolutions."""
    rows, _ = inner.shape
    if magnitude.ndim == 1 or magnitude.shape[0] != 1 or magnitude.numel() == 1:
        return Decomposed(inner, magnitude.reshape(-1, 1))
    is_rows = magnitude.ndim == 5 and magnitude.numel() == rows != inner.shape[1]
    return Decomposed(inner, magnitude.reshape(-1, 1) if is_rows else magnitude.reshape(1, -1))
