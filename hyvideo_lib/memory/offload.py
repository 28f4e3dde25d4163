"""Offload: a frozen model's weights at home (as they were loaded, perhaps mapped from a file) or on a device.

Going home copies nothing: the tensors that were there all along are put back in place, and the device's copies are
dropped. A transformer may leave some of its blocks at home even while it runs; `through` then brings each one over for
as long as it computes: by a copy in its turn, or through slots that are filled while other blocks compute.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from .block_stream import BlockStream
from .block_swap import BlockSwap, choose_blocks, fit_resident, slot_bytes
from .copy_engine import HostBlock, can_stream
from .memo import ModulationMemo, VectorsFn
from .pinned import PinnedPool
from .traffic import Traffic

CopyFn = Callable[[Tensor, torch.device], Tensor]
OnLoanFn = Callable[[Sequence[nn.Module]], AbstractContextManager[object]]
IDLE_SHARE = 0.25
"""Of the pinned memory, that blocks which came to stay on the device may leave unused: all of it is given back then."""


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; itself if it is there."""
    return tensor.to(device)


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return sum(tensor.nbytes for _, _, tensor in _own_tensors(module))


class _Part:
    """Some tensors of a module that move together."""

    def __init__(self, tensors: Iterable[tuple[nn.Module, str, Tensor]], copy_fn: CopyFn) -> None:
        self.home = list(tensors)
        self._copy_fn = copy_fn
        self.num_bytes = sum(tensor.nbytes for _, _, tensor in self.home)
        self.is_away = False
        self.moved_bytes = 0
        """Copied so far; what is on the device already is not."""

    def move(self, device: torch.device) -> None:
        self.lend(self._copy(tensor, device) for _, _, tensor in self.home)
        self.is_away = True

    def _copy(self, tensor: Tensor, device: torch.device) -> Tensor:
        copied = self._copy_fn(tensor, device)
        if copied is not tensor:
            self.moved_bytes += tensor.nbytes
        return copied

    def lend(self, tensors: Iterable[Tensor]) -> None:
        """Let the module have these in place of those at home."""
        try:
            for (owner, name, _), tensor in zip(self.home, tensors, strict=True):
                _put(owner, name, tensor)
        except BaseException:
            self.go_home()  # half a model on a full device helps nobody
            raise

    def go_home(self) -> None:
        for owner, name, tensor in self.home:
            _put(owner, name, tensor)
        self.is_away = False


class Offloader:
    """Moves one frozen module between home and a device. Not thread-safe; one user at a time.

    blocks: parts of the module that may stay at home during a run, in the order they compute; num_double of them come
    first and count as double blocks. swap: which of them must, and how far ahead they are fetched. The device may be
    home itself, and then nothing is ever copied. copy_fn: how a tensor gets to a device. can_stream_fn: whether copies
    to a device can run beside computing. aside: the blocks' modulations, which are always at home but while they
    are visited, and whose vectors are remembered (memory.memo). keep_pinned: whether streamed blocks may be copied into
    pinned memory for as long as the module is loaded, which pays where they are streamed again and again. on_loan_fn:
    makes the context in which a block computes if its tensors are all copies that nothing needs after its turn, from
    the modules that hold them.
    """

    def __init__(
        self,
        module: nn.Module,
        blocks: Sequence[nn.Module] = (),
        num_double: int = 0,
        swap: BlockSwap | None = None,
        copy_fn: CopyFn = copy_to_device,
        can_stream_fn: Callable[[torch.device], bool] = can_stream,
        aside: Sequence[nn.Module] = (),
        keep_pinned: bool = True,
        on_loan_fn: OnLoanFn = nullcontext,
    ) -> None:
        self.module = module
        self._block_modules = list(blocks)
        self._keep_pinned = keep_pinned
        self._on_loan_fn = on_loan_fn
        self.swap = swap or BlockSwap()
        self._can_stream_fn = can_stream_fn
        self._aside_modules = list(aside)
        self._memo = ModulationMemo()
        self._aside = {id(part): _Part(_own_tensors(part), copy_fn) for part in aside}
        apart = {id(child) for part in aside for child in part.modules()}
        inside = apart | {id(child) for block in blocks for child in block.modules()}
        self._fixed = _Part((entry for entry in _own_tensors(module) if id(entry[0]) not in inside), copy_fn)
        self._blocks = [
            _Part((entry for entry in _own_tensors(block) if id(entry[0]) not in apart), copy_fn) for block in blocks
        ]
        self._holders = [[child for child in block.modules() if id(child) not in apart] for block in blocks]
        self._places = {id(block): place for place, block in enumerate(blocks)}
        self._hosts: dict[int, HostBlock] = {}
        self._pool: PinnedPool | None = None
        self._stream: BlockStream | None = None
        self._streamed = Traffic()  # through streams that are closed, and by blocks copied in their turn
        swapped = choose_blocks(self.swap, num_double, len(blocks) - num_double)
        self._candidates = [i for i in range(len(blocks)) if i not in swapped]
        self.block_bytes = [part.num_bytes for part in self._blocks]
        self.fixed_bytes = self._fixed.num_bytes
        """Bytes of what is on the device whenever the module is loaded."""
        staying = self.fixed_bytes + sum(self.block_bytes[i] for i in self._candidates)
        self.num_bytes = staying + slot_bytes(self.block_bytes, self._candidates, self.swap.prefetch + 1)
        """Bytes on the device if everything is there that ever stays there, and slots for what does not."""
        self.least_bytes = self.fixed_bytes + slot_bytes(self.block_bytes, (), self.swap.prefetch + 1)
        """Bytes that have to be there in any case: slots for the blocks, all of which wait at home."""
        self.visit_bytes = max((part.num_bytes for part in self._aside.values()), default=0)
        """Bytes that a visit takes beside them."""
        self.is_apart = False
        """Whether home is elsewhere: something was copied to get to the device."""
        self.aside_bytes = sum(part.num_bytes for part in self._aside.values())
        self.device: torch.device | None = None
        """Where it is loaded; None while at home."""

    @property
    def loaded_bytes(self) -> int:
        """Bytes that are on the device now, slots of streamed blocks among them; 0 while at home."""
        slots = self._stream.num_bytes if self._stream else 0
        return slots + sum(part.num_bytes for part in (self._fixed, *self._blocks) if part.is_away)

    @property
    def traffic(self) -> Traffic:
        """What was copied to the device so far, and how long computing waited for streamed blocks."""
        copied = sum(part.moved_bytes for part in (self._fixed, *self._blocks, *self._aside.values()))
        return Traffic(copied) + self._streamed + (self._stream.traffic if self._stream else Traffic())

    @property
    def num_swapped(self) -> int:
        """Blocks that are at home while the module is loaded."""
        return sum(not part.is_away for part in self._blocks)

    def load(self, device: str | torch.device, budget: int | None = None) -> int:
        """Bring the module to the device, of its blocks as many as `budget` bytes allow; the bytes that came.

        budget: for the whole module, in bytes; None is without bound. What has to be there comes in any case. A module
        that is loaded already gets more or fewer blocks.
        """
        device = torch.device(device)
        if self.device not in (None, device):
            self.go_home()
        before = self.loaded_bytes
        self.device = device
        try:
            self._place(budget)
            self._unpin_idle()
            if self.num_swapped:
                self._open_stream()
        except BaseException:
            self.go_home()
            raise
        self.is_apart = self.traffic.moved_bytes > 0
        return self.loaded_bytes - before

    def _place(self, budget: int | None) -> None:
        """Send blocks home and bring others, as `budget` bytes allow."""
        assert self.device is not None
        for_blocks = None if budget is None else max(0, budget - self.fixed_bytes)
        num_slots = self._prefetch + 1  # one is being computed
        kept = set(fit_resident(self.block_bytes, self._candidates, for_blocks, num_slots))
        swapped = [i for i in range(len(self._blocks)) if i not in kept]
        if self._stream and self._stream.blocks != frozenset(swapped):
            self._close_stream()
        for i in swapped:
            if self._blocks[i].is_away:
                self._blocks[i].go_home()
        for part in (self._fixed, *(self._blocks[i] for i in sorted(kept))):
            if not part.is_away:
                part.move(self.device)

    @property
    def _prefetch(self) -> int:
        return self.swap.prefetch if self.device is not None and self._can_stream_fn(self.device) else 0

    def _open_stream(self) -> None:
        """Slots for the blocks that are at home, where they can be streamed."""
        if self._stream or not self._prefetch:
            return
        assert self.device is not None
        hosts = {i: self._host(i) for i, part in enumerate(self._blocks) if not part.is_away}
        if self._keep_pinned and self._pool is None:
            self._pool = PinnedPool(sum(host.layout.num_bytes for host in hosts.values()), self.device)
        self._stream = BlockStream(hosts, self._prefetch, self.device, self._pool)

    def _unpin_idle(self) -> None:
        """Give back pinned memory of which much holds blocks that are on the device now."""
        idle = sum(
            host.layout.num_bytes
            for place, host in self._hosts.items()
            if host.pinned is not None and self._blocks[place].is_away
        )
        if self._pool and idle > IDLE_SHARE * self._pool.num_bytes:
            self._unpin()

    def _unpin(self) -> None:
        """Give back the blocks' copies in pinned memory. Nothing streams."""
        for host in self._hosts.values():
            host.unpin()
        self._pool = None

    def unload(self, num_bytes: int) -> int:
        """Send blocks home until `num_bytes` are free, or all of them are; the bytes that left. Copies nothing."""
        before = self.loaded_bytes
        if self.device is not None and self._blocks:
            self._place(max(0, before - num_bytes))  # slots for them are made when they are needed
        return before - self.loaded_bytes

    def go_home(self) -> None:
        """Take everything off the device, and give pinned memory back."""
        self._close_stream()
        self._unpin()
        self._memo.clear()
        for part in (self._fixed, *self._blocks):
            part.go_home()  # one that is lent just now as well
        self.device = None

    def remember(self, *vecs: Tensor | None) -> VectorsFn:
        """What to ask for modulating vectors in a pass with these conditioning vectors [B, D]."""
        return self._memo.remember(self.visit, *vecs)

    @property
    def memo_bytes(self) -> int:
        """Bytes of the modulating vectors on the device, which count as working memory, not as weights."""
        return self._memo.num_bytes

    def forget(self) -> int:
        """Let go of the modulating vectors, which are computed again when they are asked for; the bytes that left."""
        num_bytes = self.memo_bytes
        self._memo.clear()
        return num_bytes

    def fill(self, vecs: Sequence[Tensor], check_fn: Callable[[], None] = lambda: None) -> None:
        """Compute the modulating vectors of the next conditionings, memo.KEPT at most, each weight being brought once.

        check_fn: called between the weights; may raise.
        """
        self._memo.fill(self.visit, self._aside_modules, vecs, check_fn)

    @contextmanager
    def visit(self, part: nn.Module) -> Iterator[None]:
        """A part that was put aside, on the device while the caller computes with it; any other is left alone."""
        found = self._aside.get(id(part))
        if found is None or self.device is None:
            yield
            return
        found.move(self.device)
        try:
            yield
        finally:
            found.go_home()

    def through(self, blocks: Iterable[nn.Module]) -> Generator[nn.Module, None, None]:
        """The blocks one by one, each on the device while the caller has it."""
        for block in blocks:
            with self._brought(self._places.get(id(block))):
                yield block

    @contextmanager
    def bringing(self, check_fn: Callable[[], None] = lambda: None) -> Iterator[None]:
        """In this context a block comes by being called: for a module whose own loop calls its blocks.

        check_fn: called before each of them; may raise.
        """
        with ExitStack() as hooks, ExitStack() as brought:

            def bring(block: nn.Module, args: object) -> None:
                check_fn()
                brought.enter_context(self._brought(self._places[id(block)]))

            def let_go(block: nn.Module, args: object, result: object) -> None:
                brought.close()

            for block in self._block_modules:
                hooks.callback(block.register_forward_pre_hook(bring).remove)
                hooks.callback(block.register_forward_hook(let_go, always_call=True).remove)
            yield

    @contextmanager
    def _brought(self, place: int | None) -> Iterator[None]:
        if place is None or self.device is None or self._blocks[place].is_away:
            yield
            return
        part, holders = self._blocks[place], self._holders[place]
        self._open_stream()
        try:
            if self._stream:
                with self._stream.brought(place) as tensors, self._on_loan_fn(holders):
                    part.lend(tensors)
                    yield
            else:
                before = part.moved_bytes
                part.move(self.device)
                moved = part.moved_bytes - before
                if moved:
                    self._streamed = replace(self._streamed, stalled_seconds=None)
                with self._on_loan_fn(holders) if moved == part.num_bytes else nullcontext():
                    yield
        finally:
            part.go_home()

    def _host(self, place: int) -> HostBlock:
        return self._hosts.setdefault(place, HostBlock([tensor for _, _, tensor in self._blocks[place].home]))

    def _close_stream(self) -> None:
        if self._stream:
            stream, self._stream = self._stream, None
            stream.close()
            self._streamed += stream.traffic


def _own_tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """(owner, name, tensor) of every parameter and buffer."""
    for child in module.modules():
        for name, tensor in (*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)):
            yield child, name, tensor.data


def _put(owner: nn.Module, name: str, tensor: Tensor) -> None:
    if name in owner._parameters:
        owner._parameters[name].data = tensor  # type: ignore[union-attr]
    else:
        owner._buffers[name] = tensor
