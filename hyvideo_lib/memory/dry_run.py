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

CONVOLUTION = torch.ops.aten.convolution.default
PAD_3D = torch.ops.aten.replication_pad3d.default
UNFOLDED_NUMBERS = 20480
"""Up to so many in the first four dims of an input, PyTorch convolves one item itself."""


class AllocationCounter(TorchDispatchMode):
    """Bytes of the storages that operations inside this context made: `level` now, `peak` at most.

    Storages that were there before, such as weights and inputs, are not counted. What an operation allocates inside
    itself and gives back before it ends is not seen. On a CPU (is_cpu) that is counted for convolutions
    (`convolution_copies`), and results are in the order that they have there; elsewhere the operations used here take
    little so.
    """

    def __init__(self, is_cpu: bool = False) -> None:
        super().__init__()
        self.is_cpu = is_cpu
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
        order = cpu_order(func, args) if self.is_cpu else None
        if order:
            result = result.contiguous(memory_format=order)
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._know(tensor, tensor.untyped_storage().nbytes())
        if self.is_cpu and func is CONVOLUTION:
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


def cpu_order(func: Any, args: tuple[Any, ...]) -> torch.memory_format | None:
    """How a CPU's result of an operation lies in memory, where the meta device's may lie otherwise."""
    if func is PAD_3D and not args[0].is_contiguous():
        return torch.channels_last_3d
    if func is not CONVOLUTION or is_unfolded(args[0]):
        return None
    if args[0].ndim == 4:
        return torch.channels_last if has_channels_innermost(args[0]) or has_channels_innermost(args[1]) else None
    return torch.channels_last_3d if has_channels_innermost(args[0]) else None


def has_channels_innermost(x: Tensor) -> bool:
    """Whether PyTorch takes an image or a video to be channels-last, which of one item its strides need not be."""
    order = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return x.is_contiguous(memory_format=order) and not x.is_contiguous() and x.stride(0) == max(x.stride())


def is_unfolded(x: Tensor) -> bool:
    """Whether PyTorch convolves x itself on a CPU, and not its library."""
    return len(x) == 1 and x.shape[:4].numel() <= UNFOLDED_NUMBERS


def convolution_copies(x: Tensor, weight: Tensor, out: Tensor) -> int:
    """Bytes that PyTorch 2.13 with oneDNN takes on a CPU for a moment to convolve x, as its allocator tells them.

    A small input is unfolded, a copy for every tap. Else in 2D the weight is put into the library's order, after one
    with channels innermost if it is not so; in 3D input and weight are, the input after a contiguous copy.
    """
    kernel = weight.shape[2:]
    if kernel.numel() == 1:
        return 0
    if is_unfolded(x):
        return out[:, :1].nbytes * weight[0].numel() + (0 if x.is_contiguous() else x.nbytes)
    if len(kernel) == 2:
        return weight.nbytes * (1 if weight.is_contiguous(memory_format=torch.channels_last) else 2)
    if x.is_contiguous():
        return weight.nbytes + x.nbytes
    return weight.nbytes + max(weight.nbytes, 2 * x.nbytes)


class _AsOnDevice(TorchFunctionMode):
    """What PyTorch does otherwise on the meta device, before operations are seen.

    Attention is as the fused kernels do it: nothing but its result, laid out like the query. The unfused way, with its
    table of all pairs, is taken by no device here. A group norm on a CPU leaves channels innermost where they are so;
    everywhere else it copies such an input first.
    """

    def __init__(self, is_cpu: bool) -> None:
        super().__init__()
        self._is_cpu = is_cpu

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        if func is F.group_norm and self._is_cpu and args[0].is_meta and has_channels_innermost(args[0]):
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def count_peak(call: Callable[[], object], counter: AllocationCounter | None = None) -> int:
    """The most bytes that the call holds at once beside what was there before it.

    call: computes on meta tensors that it holds already. counter: the one to use, for a caller that adds spikes.
    """
    counter = counter or AllocationCounter()
    with _AsOnDevice(counter.is_cpu), counter:
        result = call()
    del result
    return counter.peak
