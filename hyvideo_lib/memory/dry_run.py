"""Working memory counted, not estimated: a computation is run on tensors without numbers, and every allocation is seen.

On the meta device operations give tensors of the right shapes and dtypes that hold nothing. What the same code would
take with numbers is the sum of the storages that are alive at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

CONVOLUTIONS = (torch.ops.aten.convolution.default,)
ORDERED = (torch.ops.aten.replication_pad3d.default,)
"""They keep channels innermost on a CPU, and not on the meta device."""
UNFOLDED_NUMBERS = 20480
"""Up to so many in the first four dims of an input, PyTorch convolves one item itself."""


class AllocationCounter(TorchDispatchMode):
    """Bytes of the storages that operations inside this context made: `level` now, `peak` at most.

    Storages that were there before, such as weights and inputs, are not counted. What an operation allocates inside
    itself and gives back before it ends is not seen. On a CPU (is_cpu) that is counted for convolutions
    (`convolution_copies`); elsewhere the operations used here take little so.
    """

    def __init__(self, is_cpu: bool = False) -> None:
        super().__init__()
        self._copied = CONVOLUTIONS if is_cpu else ()
        self._ordered = ORDERED if is_cpu else ()
        self.level = self.peak = 0
        self._known: set[int] = set()

    def add_spike(self, num_bytes: int) -> None:
        """Something outside this context takes so much for a moment."""
        self.peak = max(self.peak, self.level + num_bytes)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for tensor in tree_iter((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._know(tensor, 0)
        result = func(*args, **(kwargs or {}))
        if func in self._ordered and not args[0].is_contiguous():
            result = result.contiguous(memory_format=torch.channels_last_3d)
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._know(tensor, tensor.untyped_storage().nbytes())
        if func in self._copied:
            self.add_spike(convolution_copies(args[0], args[1], result))
        return result

    def _know(self, tensor: Tensor, num_bytes: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.level += num_bytes
            self.peak = max(self.peak, self.level)
            weakref.finalize(storage, self._forget, key, num_bytes)

    def _forget(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.level -= num_bytes


def convolution_copies(x: Tensor, weight: Tensor, out: Tensor) -> int:
    """Bytes that PyTorch 2.13 with oneDNN takes on a CPU for a moment to convolve x, as its allocator tells them.

    A small input is unfolded, a copy for every tap. Else in 2D the weight is put into the library's order, after one
    with channels innermost if it is not so; in 3D input and weight are, the input after a contiguous copy.
    """
    kernel = weight.shape[2:]
    if kernel.numel() == 1:
        return 0
    if len(x) == 1 and x.shape[:4].numel() <= UNFOLDED_NUMBERS:
        return out[:, :1].nbytes * weight[0].numel() + (0 if x.is_contiguous() else x.nbytes)
    if len(kernel) == 2:
        return weight.nbytes * (1 if weight.is_contiguous(memory_format=torch.channels_last) else 2)
    if x.is_contiguous():
        return weight.nbytes + x.nbytes
    return weight.nbytes + max(weight.nbytes, 2 * x.nbytes)


class _FusedAttention(TorchFunctionMode):
    """Attention as the fused kernels do it: nothing but its result, laid out like the query.

    On the meta device PyTorch would take the unfused way, whose table of all pairs no device computes here.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def count_peak(call: Callable[[], object], counter: AllocationCounter | None = None) -> int:
    """The most bytes that the call holds at once beside what was there before it.

    call: computes on meta tensors that it holds already. counter: the one to use, for a caller that adds spikes.
    """
    counter = counter or AllocationCounter()
    with _FusedAttention(), counter:
        result = call()
    del result
    return counter.peak
