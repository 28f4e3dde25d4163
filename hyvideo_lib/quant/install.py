"""Weights in their storage form into a model: the layers that keep them so, and the state dict to load.

And the other way: weights out of their storage form into another, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..errors import UnsupportedFile
from ..transformer.ops import Linear
from .fp8 import FP8_DTYPES, cast_fp8, is_kept_in_plain_fp8
from .schemes import WEIGHT, StoredTensors, unpack
from .stored import ScaledWeight, StoredWeight

SHOWN = 10  # names listed of a complaint


def install(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    scheme: str,
    *,
    dtypes: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    dense_dtype: torch.dtype = torch.float32,
    ready: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Give a model on the meta device the layers for weights stored so; its state dict, to load strictly by assignment.

    tensors: under the model's names, with their companions; nothing of them is copied but scales. Names that the model
    has not are left out. scheme: a name in SCHEMES. dtypes: the header's dtypes by name, needed for "gguf". metadata:
    the file's, used by "comfyui_quant".
    dense_dtype: of weights in storage form that belong to other layers than Linears, which take them dense. ready:
    tensors of layers that are in the model already and take them as they are.
    Raises UnsupportedFile for tensors that are missing or do not fit, InvalidSetting for an unknown scheme.
    """
    unpacked = unpack(scheme, StoredTensors(tensors, dtypes or {}, metadata or {}))
    layers = dict(model.named_modules())
    state = {**unpacked.plain, **(ready or {})}
    for layer, weight in unpacked.stored.items():
        old = layers.get(layer)
        if isinstance(old, Linear):
            state |= {f"{layer}.{leaf}": tensor for leaf, tensor in _replace(model, layer, old, weight)}
        elif old is not None:
            state[layer + WEIGHT] = weight.dense(dense_dtype)
    return _fitting(model, state)


def restore(
    tensors: Mapping[str, Tensor],
    scheme: str,
    storage_dtype: torch.dtype,
    *,
    dtypes: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The tensors as they rest in another storage dtype, one by one; what comes out is of the scheme "fp8_scale".

    fp8 is the plain cast of the large weights; a scaled weight that has that dtype keeps it and its scale. What is kept
    out of fp8 becomes bfloat16 if it was in storage form and stays otherwise. 16 and 32 bits are for every matrix.
    Arguments and errors are those of `install`. Each tensor is made when it is asked for, so that two are never held.
    """
    unpacked = unpack(scheme, StoredTensors(tensors, dtypes or {}, metadata or {}))
    for name, tensor in unpacked.plain.items():
        is_cast = not is_kept_in_plain_fp8(name) if storage_dtype in FP8_DTYPES else tensor.ndim > 1
        yield name, _cast(tensor, storage_dtype) if is_cast else tensor
    for layer, weight in unpacked.stored.items():
        name = layer + WEIGHT
        if isinstance(weight, ScaledWeight) and weight.weight.dtype == storage_dtype:
            yield name, weight.weight
            yield f"{layer}.fp8_scale", weight.scale
        elif storage_dtype not in FP8_DTYPES:
            yield name, weight.dense(storage_dtype)
        elif is_kept_in_plain_fp8(name):
            yield name, weight.dense(torch.bfloat16)
        else:
            yield name, cast_fp8(weight.dense(torch.float32), storage_dtype)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dtype == dtype:
        return tensor
    return cast_fp8(tensor, dtype) if dtype in FP8_DTYPES else tensor.to(dtype)


def _replace(model: nn.Module, layer: str, old: Linear, weight: StoredWeight) -> Iterator[tuple[str, Tensor]]:
    """Put in the layer that keeps this weight; its state's entries that it takes."""
    wanted = (old.out_features, old.in_features)
    if weight.shape != wanted:
        raise UnsupportedFile(f"{layer}.weight is {list(weight.shape)}, expected {list(wanted)}. Use another file.")
    if type(old) is not Linear:
        raise UnsupportedFile(
            f"{layer}.weight is kept in parts and quantised, which is not supported together. Use a file in Tencent's "
            "or ComfyUI's layout, or a bf16 file."
        )
    with torch.device("meta"):
        new = weight.make_layer(old.in_features, old.out_features, old.bias is not None)
    parent, _, leaf = layer.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new.requires_grad_(False))
    taken = new.state_dict().keys()
    yield from ((leaf, tensor) for leaf, tensor in weight.entries().items() if leaf in taken)


def _fitting(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's state dict out of `state`, complete, with numbers where it computes with numbers."""
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise UnsupportedFile(
            f"Missing tensors ({len(missing)}): {', '.join(missing[:SHOWN])}{more}. Use another file."
        )
    for name, target in wanted.items():
        if target.is_floating_point() and not state[name].is_floating_point() and not _is_scaled(name, wanted):
            dtype = str(state[name].dtype).removeprefix("torch.")
            raise UnsupportedFile(
                f"{name} is {dtype} without a scale; floating-point numbers are needed. Use another file."
            )
    return {name: state[name] for name in wanted}


def _is_scaled(name: str, wanted: Mapping[str, Tensor]) -> bool:
    return name.endswith(WEIGHT) and f"{name.removesuffix(WEIGHT)}.weight_scale" in wanted
