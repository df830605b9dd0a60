"""The protocol `Cuda` on host memory: a list of what was asked for. It is no GPU and shows nothing about one.

What it does show is the order: with `late`, nothing on the stream is done before somebody waits for it, as the contract
of a stream allows, so a host that writes too early or reads too early gets a wrong answer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from dynamic_confidence.runtime.cuda.errors import CudaError

ADDRESS = 1 << 20
STREAM = 7


class QueuedMemory:
    package, device, target = "queue 1.0", "host memory", "sm89"

    def __init__(self, *, late: bool = True, captures: bool = True, fails_at: int | None = None) -> None:
        self.late, self.captures, self.fails_at = late, captures, fails_at
        self.memory = np.empty(0, np.uint8)
        self.queue: list[Callable[[], None]] = []
        self.recorded: dict[str, int] = {}
        self.done = self.calls = 0
        self.alive: list[str] = []
        self.made: list[str] = []
        self.capturing: list[Callable[[], None]] | None = None

    def device_memory(self, size: int) -> object:
        self.memory = np.full(size, 0xAB, np.uint8)
        return self._resource("memory", ADDRESS)

    def pinned_memory(self, size: int) -> np.ndarray:
        self._count()
        return np.full(size, 0xCD, np.uint8)

    def stream(self) -> object:
        return self._resource("stream")

    def handle(self, stream: object) -> int:
        return STREAM

    def event(self) -> object:
        return self._resource(f"event {len(self.made)}")

    def copy_to_device(self, target: int, source: np.ndarray, stream: object) -> None:
        place = slice(target - ADDRESS, target - ADDRESS + source.nbytes)
        kept = weakref.ref(source)  # a copy keeps nothing alive

        def copy() -> None:
            array = kept()
            assert array is not None, "the source of a copy went before the copy"
            self.memory[place] = array.reshape(-1).view(np.uint8)

        self.give(copy)

    def copy_to_host(self, target: np.ndarray, source: int, stream: object) -> None:
        place = slice(source - ADDRESS, source - ADDRESS + target.nbytes)
        self.give(lambda: target.__setitem__(slice(None), self.memory[place]))

    def copy_on_device(self, target: int, source: int, size: int, stream: object) -> None:
        to, of = (slice(start - ADDRESS, start - ADDRESS + size) for start in (target, source))
        self.give(lambda: self.memory.__setitem__(to, self.memory[of]))

    def record(self, event: str, stream: object) -> None:
        self._count()
        self.recorded[event] = len(self.queue)

    def wait(self, event: str) -> None:
        self._count()
        self._work_until(self.recorded[event])

    def synchronize(self, stream: object) -> None:
        self._count()
        self._work_until(len(self.queue))

    @contextmanager
    def capture(self, work: Callable[[], None], stream: object) -> Iterator[list[Callable[[], None]]]:
        if not self.captures:
            raise CudaError("this queue has none")
        self._count()
        self.capturing = []
        try:
            work()
            graph = self.capturing
        finally:
            self.capturing = None
        with self._resource(f"graph {len(self.made)}"):
            yield graph

    def launch(self, graph: list[Callable[[], None]], stream: object) -> None:
        for work in graph:
            self.give(work)

    def give(self, work: Callable[[], None]) -> None:
        """Put work on the stream, or into the graph that is being captured."""
        self._count()
        if self.capturing is not None:
            self.capturing.append(work)
            return
        self.queue.append(work)
        if not self.late:
            self._work_until(len(self.queue))

    def _work_until(self, end: int) -> None:
        assert self.capturing is None, "waiting while a graph is captured"
        while self.done < end:
            self.queue[self.done]()
            self.done += 1

    @contextmanager
    def _resource(self, name: str, value: object = None) -> Iterator[object]:
        self._count()
        self.alive.append(name)
        self.made.append(name)
        try:
            yield name if value is None else value
        finally:
            assert self.alive.pop() == name
            assert self.done == len(self.queue) or self.fails_at, f"{name} is released in the middle of a call"

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.fails_at:
            raise CudaError("cudaQueue failed: as the test asked")
