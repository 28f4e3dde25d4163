"""Layers that let transformers' text encoders rest as their files have them and compute in 16 or 32 bits.

The library's own classes multiply in the dtype that their weights have. Here the weights stay as they are stored, fp8
or in GGUF's blocks, and each is brought to the compute dtype when it is used; a prompt is encoded once, so that costs
a moment, while a cast of the whole would cost up to 16 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..quant.fp8 import dequantize_scaled
from ..quant.ggml import dequantize_ggml
from ..quant.rotation import dequantize_rotated
from ..quant.schemes import StoredTensors, unpack
from ..quant.stored import BlockWeight, ScaledWeight, StoredWeight
from ..transformer.ops import Linear


class StoredEmbedding(nn.Module):
    """An embedding whose rows are brought to `compute_dtype` after they were looked up.

    stored: [V, D] in any float dtype, or a weight in a storage form; only its shape and its form are used here.
    """

    def __init__(self, stored: Tensor | StoredWeight, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.compute_dtype = compute_dtype
        self.ggml_type = stored.ggml_type if isinstance(stored, BlockWeight) else ""
        self.rotation = stored.rotation if isinstance(stored, ScaledWeight) else 0
        for name, tensor in _entries(stored).items():
            self.register_buffer(name, torch.empty_like(tensor, device="meta"))

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors [..., D] of ids [...]."""
        rows = _look_up(self.weight, ids)
        if self.ggml_type:
            return dequantize_ggml(rows, self.ggml_type, self.compute_dtype)
        scale = self._buffers.get("weight_scale")
        if scale is None:
            return rows.to(self.compute_dtype)
        scale = scale if scale.numel() == 1 else scale[ids]
        if self.rotation:
            return dequantize_rotated(rows, scale, self.rotation, self.compute_dtype)
        return dequantize_scaled(rows, scale, self.compute_dtype)

    weight: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StoredEmbedding:
        """Tensors move between devices but keep their dtype; cast to another one, it is computed in that."""
        before = torch.empty(0, dtype=self.compute_dtype)
        self.compute_dtype = fn(before).dtype
        for name, tensor in self._buffers.items():
            if tensor is not None:
                moved = fn(tensor)
                self._buffers[name] = moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
        return self


class Embeddings:
    """The embeddings of a model: their weights out of a file's tensors, and the layers that keep them.

    taken: the names of those tensors, companions included. Arguments as `quant.install`'s. Raises as it does.
    """

    def __init__(
        self,
        model: nn.Module,
        tensors: Mapping[str, Tensor],
        scheme: str,
        dtypes: Mapping[str, str],
        metadata: Mapping[str, str],
    ) -> None:
        layers = {name for name, layer in model.named_modules() if isinstance(layer, nn.Embedding)}
        own = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] in layers}
        unpacked = unpack(scheme, StoredTensors(own, dtypes, metadata))
        self.taken = frozenset(own)
        self._weights: dict[str, Tensor | StoredWeight] = {
            name.rpartition(".")[0]: tensor for name, tensor in unpacked.plain.items()
        }
        self._weights |= unpacked.stored

    def cast(self, dtype: torch.dtype) -> None:
        """Let them rest in another dtype."""
        for layer, weight in self._weights.items():
            self._weights[layer] = weight.to(dtype) if isinstance(weight, Tensor) else weight.dense(dtype)

    def use(self, model: nn.Module, compute_dtype: torch.dtype) -> dict[str, Tensor]:
        """Put the layers into the model, which is on the meta device; the tensors that they take, by name."""
        state: dict[str, Tensor] = {}
        for layer, weight in self._weights.items():
            parent, _, leaf = layer.rpartition(".")
            setattr(model.get_submodule(parent), leaf, StoredEmbedding(weight, compute_dtype))
            state |= {f"{layer}.{name}": tensor for name, tensor in _entries(weight).items()}
        return state


def _entries(weight: Tensor | StoredWeight) -> dict[str, Tensor]:
    if isinstance(weight, Tensor):
        return {"weight": weight}
    return {name: tensor for name, tensor in weight.entries().items() if name != "input_scale"}


def _look_up(weight: Tensor, ids: Tensor) -> Tensor:
    if weight.dtype.itemsize == 1:  # not every device can look up fp8, bytes it can
        return F.embedding(ids, weight.view(torch.uint8)).view(weight.dtype)
    return F.embedding(ids, weight)


def use_cast_linears(model: nn.Module) -> None:
    """Replace the Linears of a model on the meta device by ones that cast their weights on use."""
    for parent, name, layer in list(_children(model)):
        if type(layer) is nn.Linear:
            with torch.device("meta"):
                cast = Linear(layer.in_features, layer.out_features, layer.bias is not None)
            setattr(parent, name, cast.requires_grad_(False))


def halve_heads(model: nn.Module, head_dim: int) -> None:
    """Let the q and k of a Llama from llama.cpp come out as Hugging Face's layers give them.

    The converters interleave the two halves of every head among the rows of these weights. Putting the outputs back in
    order gives the same numbers as doing it to the weights, and leaves those mapped from the file.
    """
    for _, name, layer in _children(model):
        if name in ("q_proj", "k_proj"):
            layer.register_forward_hook(partial(_halve, head_dim))


def _halve(head_dim: int, layer: nn.Module, args: Any, output: Tensor) -> Tensor:
    """[..., N x (D / 2, 2)] to [..., N x (2, D / 2)]."""
    pairs = output.unflatten(-1, (-1, head_dim // 2, 2))
    return pairs.transpose(-1, -2).flatten(-3)


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, child) of every module in it."""
    for parent in model.modules():
        for name, child in parent.named_children():
            yield parent, name, child
