"""Call a network on the device again and again: its memory, its stream, what is copied when, and what is waited for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import TracebackType

import numpy as np

from ..cuda import Cuda
from ..cuda.errors import CudaError
from ..engine import StepOutput, check_input, interrupted
from .device_buffers import Layout, Turn, initial_states, next_call, refill_copies, refilled

Enqueue = Callable[[int], None]
"""Gives the loop's stream one call of the network in this direction, with the addresses of `Layout.tensors`."""


class DeviceLoop:
    """Buffers, stream and events of one engine, released by the stack it was made with; `start` before the first step.

    The stream keeps its order: a reset or an image that comes while a call launched ahead is under way takes effect
    after that call. A step waits for its answer, so no copy that it made still reads pinned memory when the host
    writes there again; after an interrupted one a copy may, but only for a call whose answer nobody gets, and after a
    refill one may, but all it copied is copied again before the next call.
    """

    def __init__(self, cuda: Cuda, layout: Layout, ahead_until: int, stack: ExitStack) -> None:
        self._cuda, self._layout, self._ahead_until = cuda, layout, ahead_until
        self.address = stack.enter_context(cuda.device_memory(layout.size))
        self.stream = stack.enter_context(cuda.stream())
        self._done = [stack.enter_context(cuda.event()) for _ in range(2)]
        self._pixels = cuda.pinned_memory(layout.pixels.nbytes).reshape(layout.pixels.shape)
        self._scale = cuda.pinned_memory(layout.scale.nbytes)
        self._answers = [cuda.pinned_memory(layout.answer_bytes) for _ in range(2)]
        self._outputs = [
            StepOutput(**{name: place.view(memory) for name, place in layout.answers.items()})
            for memory in self._answers
        ]
        self._launch: list[Callable[[], None]] = []
        self._turn: Turn | None = None
        initial = initial_states(layout)
        cuda.copy_to_device(self.address + layout.initial, initial, self.stream)
        cuda.synchronize(self.stream)  # only then may `initial` go

    def start(self, enqueue: Enqueue, graphs: bool, require_capturable: Callable[[], None], stack: ExitStack) -> str:
        """Call the network once in each direction, then capture each as a CUDA graph where that is wanted and possible.

        `require_capturable` raises a CudaError where it is known beforehand not to be.
        Returns what came of it: `CUDA graphs`, `no CUDA graphs`, or `no CUDA graphs: <reason>`.
        """
        cuda = self._cuda
        stack.push(self._finish)
        self._launch = [partial(self._call, enqueue, direction) for direction in range(2)]
        self._pixels.fill(0)
        self._copy_pixels()
        self.reset(1.0)
        for launch in self._launch:
            launch()  # a first call may compile and allocate, which a capture must not
        cuda.synchronize(self.stream)
        if not graphs:
            return "no CUDA graphs"
        with ExitStack() as captured:
            try:
                require_capturable()
                made = [captured.enter_context(cuda.capture(launch, self.stream)) for launch in self._launch]
            except CudaError as error:
                return f"no CUDA graphs: {error.reason}"
            self._launch = [partial(cuda.launch, graph, self.stream) for graph in made]
            stack.push(captured.pop_all())
        stack.push(self._finish)  # before the graphs go, too
        return "CUDA graphs"

    def reset(self, scale: float) -> None:
        layout, stream = self._layout, self.stream
        self._turn = None  # until both copies are on their way
        self._scale.view(np.float32)[0] = scale
        self._cuda.copy_to_device(self.address + layout.scale.offset, self._scale, stream)
        first, initial = self.address + layout.state_sets[0], self.address + layout.initial
        self._cuda.copy_on_device(first, initial, layout.state_bytes, stream)
        self._turn = Turn()

    def step(self, pixels: np.ndarray | None) -> StepOutput:
        last = self._last_turn("step")
        if pixels is not None:
            check_input(pixels, self._pixels.shape)
        current = last.direction
        launches, turn = next_call(last, pixels is not None, self._ahead_until)
        self._turn = None  # until all of it has gone well
        if pixels is not None:
            np.copyto(self._pixels, pixels)
            self._copy_pixels()
        for direction in launches:
            self._launch[direction]()
            self._cuda.record(self._done[direction], self.stream)
        self._cuda.wait(self._done[current])
        self._turn = turn
        return self._outputs[current]

    def refill(self, rows: np.ndarray, pixels: np.ndarray) -> None:
        """On the stream, behind a call launched ahead: that one has read its states and image when they change."""
        turn = refilled(self._last_turn("refill"))
        if not len(rows):
            return
        self._turn = None  # until all of it is on its way
        for target, source, size in refill_copies(self._layout, turn.direction, rows.tolist()):
            self._cuda.copy_on_device(self.address + target, self.address + source, size, self.stream)
        # All images go again: pinned memory holds them, and a copy per row would cost more than it saves.
        self._pixels[..., rows, :, :, :] = pixels
        self._copy_pixels()
        self._turn = turn

    def _last_turn(self, method: str) -> Turn:
        if self._turn is None:
            raise interrupted(method)
        return self._turn

    def _finish(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is under way, so that nothing is released in the middle of a call."""
        try:
            self._cuda.synchronize(self.stream)
        except CudaError:
            if error is None:  # else that error came first, and is the one to tell
                raise

    def _copy_pixels(self) -> None:
        self._cuda.copy_to_device(self.address + self._layout.pixels.offset, self._pixels, self.stream)

    def _call(self, enqueue: Enqueue, direction: int) -> None:
        enqueue(direction)
        source = self.address + self._layout.answer_sets[direction]
        self._cuda.copy_to_host(self._answers[direction], source, self.stream)
