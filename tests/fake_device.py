"""A device whose streams run late: what is enqueued waits in queues, until it must run or the device feels like it.

It has PyTorch's streams and events as CUDA defines them, and keeps no order but the one that they ask for. What is done
with its memory is really done, when its turn comes, so a wait that is missing gives wrong numbers. Memory that nobody
refers to is handed out again at once, whatever in the queues still uses it, as PyTorch's allocator does. A thread that
works for the device is played as well, each of its jobs in one piece.
"""

from __future__ import annotations

import random
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PAGE = 4096
"""Bytes of any allocation, so that whatever is allocated next gets what was freed last."""


class Stop(Exception):  # noqa: N818
    """Something went wrong, or somebody cancelled."""


@dataclass(frozen=True)
class Pace:
    """How likely each goes on where it need not: 0 as late as it may, 1 as early as it can. seed: of the chances."""

    computing: float = 0.0
    copies: float = 0.0
    thread: float = 0.0
    seed: int = 0


class Memory:
    """Pages, each handed out as a tensor until no tensor lies in it any more."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._leases: dict[int, weakref.ref[memoryview]] = {}
        self._free: list[bytearray] = []

    def take(self, num_bytes: int) -> Tensor:
        """[num_bytes] uint8, with what was there before."""
        assert num_bytes <= PAGE
        page = self._free.pop() if self._free else bytearray(b"\xff" * PAGE)
        lease = memoryview(page)
        tensor = torch.frombuffer(lease, dtype=torch.uint8)
        self._pages[tensor.data_ptr()] = page
        self._leases[tensor.data_ptr()] = weakref.ref(lease, lambda _: self._free.append(page))
        return tensor[:num_bytes]

    def owns(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pages

    def unclaimed(self, tensor: Tensor) -> Tensor:
        """The tensor where it lies, which may be handed out again meanwhile; itself if it lies elsewhere."""
        page = self._pages.get(tensor.untyped_storage().data_ptr())
        if page is None:
            return tensor
        whole = torch.frombuffer(page, dtype=torch.uint8).view(tensor.dtype)
        return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


class Mark:
    """A point in a stream's queue, passed when all that was enqueued before it has run."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.is_passed = stream, False
        stream.queue.append(self.is_reached)

    def is_reached(self) -> None:
        self.is_passed = True


class Stream:
    """Runs its queue in order, and stands still at the marks of others that it waits for."""

    def __init__(self, device: FakeDevice, eagerness: float) -> None:
        self._device, self.eagerness = device, eagerness
        self.queue: deque[Mark | Callable[[], None]] = deque()
        self.num_run = 0
        """Operations, of all that were enqueued."""

    def wait_event(self, event: Event) -> None:
        if event.mark is not None:  # one that was never recorded holds nothing up
            self.queue.append(event.mark)
        self._device.go_on()

    def wait_stream(self, other: Stream) -> None:
        self.queue.append(Mark(other))
        self._device.go_on()

    def step(self) -> bool:
        """Run one thing; False if there is none that may."""
        if not self.queue or (isinstance(self.queue[0], Mark) and not self.queue[0].is_passed):
            return False
        done = self.queue.popleft()
        if not isinstance(done, Mark):
            done()
        return True

    def go_on(self, chance: random.Random) -> None:
        while chance.random() < self.eagerness and self.step():
            pass

    def run_to(self, mark: Mark) -> None:
        """Run what the mark needs, here and elsewhere, and nothing more."""
        while not mark.is_passed:
            if not self.step():
                awaited = self.queue[0]
                assert isinstance(awaited, Mark)
                awaited.stream.run_to(awaited)


class Event:
    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self.mark: Mark | None = None

    def record(self, stream: Stream) -> None:
        self.mark = Mark(stream)
        self._device.go_on()

    def synchronize(self) -> None:
        self._device.go_on()
        if self.mark is not None:
            self._device.wait_for(self.mark)


class Job:
    """What a thread is asked to do. As a future: `wait` and `result` have it done."""

    def __init__(self, thread: Thread, work: Callable[[], None]) -> None:
        self.thread, self._work = thread, work
        self.is_done = False
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except Stop as error:
            self._error = error.with_traceback(None)  # which would hold who waits for it, in one thread with it
        finally:
            self._work = lambda: None  # as a future, it keeps nothing alive
            self.is_done = True

    def result(self) -> None:
        self.thread.run_to(self)
        if self._error is not None:
            raise self._error


class Thread:
    """concurrent.futures.ThreadPoolExecutor with one worker."""

    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self._jobs: deque[Job] = deque()
        self._is_busy = False
        self.is_over = False

    def submit(self, work: Callable[..., None], *args: Any) -> Job:
        assert not self.is_over
        job = Job(self, lambda: work(*args))
        self._jobs.append(job)
        self._device.go_on()
        return job

    def step(self) -> bool:
        if not self._jobs or self._is_busy:
            return False
        self._is_busy = True
        try:
            with self._device.stream(self._device.computing):  # a thread begins on the first one
                self._jobs.popleft().run()
        finally:
            self._is_busy = False
        return True

    def run_to(self, job: Job) -> None:
        while not job.is_done:
            assert self.step()

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        assert wait
        assert cancel_futures
        self.step()  # what it is at
        self._jobs.clear()
        self.is_over = True


class FakeDevice(TorchDispatchMode):
    """The device, its module in PyTorch, and the mode in which operations on its memory are enqueued.

    fail_in: so many operations and waits for the thread later, Stop is raised once; None is never.
    """

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace, self._chance = pace, random.Random(pace.seed)
        self._memory = Memory()
        self.computing = Stream(self, pace.computing)
        self.streams = [self.computing]
        self._current = [self.computing]
        self._is_running = False
        self.threads: list[Thread] = []
        self.num_waits = 0
        """How often the host had to wait for the device."""
        self.fail_in: int | None = None
        self._pinned: list[tuple[int, weakref.ref[memoryview]]] = []

    # The module in PyTorch

    def Stream(self) -> Stream:  # noqa: N802
        self.streams.append(Stream(self, self._pace.copies))
        return self.streams[-1]

    def Event(self) -> Event:  # noqa: N802
        return Event(self)

    def current_stream(self, device: torch.device) -> Stream:
        return self._current[-1]

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self._current.append(stream)
        try:
            yield
        finally:
            self._current.pop()

    # concurrent.futures

    def ThreadPoolExecutor(self, workers: int, name: str) -> Thread:  # noqa: N802
        self.threads.append(Thread(self))
        return self.threads[-1]

    def wait(self, jobs: Sequence[Job]) -> None:
        self._risk()
        for job in jobs:
            job.thread.run_to(job)

    # Pinned memory, which PyTorch lets nobody else have while a copy from it is enqueued

    def empty_bytes(self, num_bytes: int, is_pinned: bool) -> Tensor:
        lease = memoryview(bytearray(max(1, num_bytes)))
        self._pinned.append((num_bytes, weakref.ref(lease)))
        return torch.frombuffer(lease, dtype=torch.uint8)[:num_bytes]

    def give_back_pinned(self, device: torch.device) -> None:
        self._pinned = [(num_bytes, lease) for num_bytes, lease in self._pinned if lease() is not None]

    @property
    def pinned_bytes(self) -> int:
        """Bytes that the system has not got back."""
        return sum(num_bytes for num_bytes, _ in self._pinned)

    # Tensors

    def put(self, tensor: Tensor) -> Tensor:
        """A copy in the device's memory, enqueued."""
        return self._like(tensor).copy_(tensor, non_blocking=True)

    def read(self, tensor: Tensor) -> Tensor:
        """A copy in the host's, after everything."""
        self.finish()
        return self._at_once(torch.clone, tensor)

    def finish(self) -> None:
        """Have everything done that anybody was asked for."""
        for thread in self.threads:
            while thread.step():
                pass
        while waiting := [stream for stream in self.streams if stream.queue]:
            (stream,) = self._chance.choices(waiting, [0.01 + stream.eagerness for stream in waiting])
            self._at_once(stream.step)

    def wait_for(self, mark: Mark) -> None:
        if not mark.is_passed:
            self.num_waits += 1
            self._at_once(mark.stream.run_to, mark)

    def go_on(self) -> None:
        """Whoever likes to does some of what it may."""
        for stream in self._chance.sample(self.streams, len(self.streams)):
            self._at_once(stream.go_on, self._chance)
        for thread in self.threads:
            while self._chance.random() < self._pace.thread and thread.step():
                pass

    def _at_once(self, call: Callable[..., Any], *args: Any) -> Any:
        before, self._is_running = self._is_running, True
        try:
            return call(*args)
        finally:
            self._is_running = before

    def _risk(self) -> None:
        if self.fail_in is not None:
            self.fail_in -= 1
            if self.fail_in < 0:
                self.fail_in = None
                raise Stop

    def _like(self, tensor: Tensor) -> Tensor:
        return self._memory.take(tensor.nbytes).view(tensor.dtype).view(tensor.shape)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_view = any(out.alias_info and not out.alias_info.is_write for out in func._schema.returns)
        if self._is_running or is_view:
            return func(*args, **kwargs)
        self._risk()
        found = [arg for arg in args if isinstance(arg, Tensor)]
        if found and not any(map(self._memory.owns, found)):  # the host's own
            return func(*args, **kwargs)
        return self._enqueue(func, args, kwargs)

    def _enqueue(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        stream, name, is_in_place = self._current[-1], func._schema.name, func._schema.is_mutable
        # It is run now for the shape alone: what it is computed from may not be there yet.
        out = args[0] if is_in_place else self._like(func(*args, **kwargs))
        target = self._memory.unclaimed(out)
        later = [self._memory.unclaimed(arg) if isinstance(arg, Tensor) else arg for arg in args]

        def run() -> None:
            stream.num_run += 1
            result = func(*later, **kwargs)
            if not is_in_place:
                target.copy_(result)

        if name != "aten::empty":
            stream.queue.append(run)
        if name == "aten::copy_" and not self._memory.owns(args[1]) and not (len(args) > 2 and args[2]):
            self.wait_for(Mark(stream))
        return out
