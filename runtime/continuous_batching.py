"""Continuous batching: a batch whose places are filled again as soon as their inputs have stopped."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

from .engine import Engine
from .errors import DynamicConfidenceError
from .exit_metrics import Run, restarted
from .exit_policy import ExitPolicy, reason_to_stop, scores
from .stepping import Answer, answer_at, call_input

Key = TypeVar("Key")


def answer_stream(engine: Engine, samples: Iterable[np.ndarray], policy: ExitPolicy) -> Iterator[tuple[int, Answer]]:
    """Answer still images, uint8 `[channel, y, x]`, and yield each with its number, from 0, as soon as it has stopped.

    The answers are those of `infer` on one image alone. They come in the order in which the images stop, which are
    taken one by one as places become free. The engine is this iterator's until it ends or is closed.
    Raises: DynamicConfidenceError for pixels that do not fit the network.
    """
    slots: Slots[int] = Slots(engine, policy)
    waiting = enumerate(samples)
    while True:
        slots.fill(list(islice(waiting, slots.free)))
        if slots.free == engine.batch:
            return
        yield from slots.step()


class Slots(Generic[Key]):
    """The places of an engine's batch, each with an input at its own time step, or free.

    What a free place holds is computed like the rest, and nobody looks at it. An input's milliseconds count from the
    `fill` that put it in; what the caller does between two steps is in them. The deadline is each input's own.
    """

    def __init__(self, engine: Engine, policy: ExitPolicy) -> None:
        """Reset the engine; all places are free."""
        self._engine, self._policy = engine, policy
        self._shape = engine.manifest.input.preprocessing.shape
        self._inputs: dict[int, _Input[Key]] = {}
        """By place."""
        self._run: Run | None = None
        self._first: np.ndarray | None = np.zeros((engine.batch, *self._shape), np.uint8)
        """What the first call takes; missing inputs are black. None after it."""
        engine.reset(policy.scale)

    @property
    def free(self) -> int:
        """How many inputs may be put in."""
        return self._engine.batch - len(self._inputs)

    def fill(self, samples: Sequence[tuple[Key, np.ndarray]]) -> None:
        """Put inputs into free places: a name for its answer, and pixels uint8 `[channel, y, x]`.

        Raises: DynamicConfidenceError for more inputs than places, or pixels that do not fit the network.
        """
        entered = time.perf_counter()
        if len(samples) > self.free:
            raise DynamicConfidenceError(f"{len(samples)} inputs for {self.free} free places: expected no more.")
        for _, pixels in samples:
            if pixels.shape != self._shape or pixels.dtype != np.uint8:
                raise DynamicConfidenceError(
                    f"input {pixels.dtype} {list(pixels.shape)}: expected uint8 {list(self._shape)}. Inputs that vary "
                    "in time run with `infer`."
                )
        if not samples:
            return
        rows = np.array([row for row in range(self._engine.batch) if row not in self._inputs][: len(samples)])
        pixels = np.stack([pixels for _, pixels in samples])
        if self._first is not None:
            self._first[rows] = pixels
        else:
            self._engine.refill(rows, pixels)
        self._inputs |= zip(rows.tolist(), (_Input(key, entered) for key, _ in samples), strict=True)
        self._run = restarted(self._run, rows)

    def step(self) -> list[tuple[Key, Answer]]:
        """Make one call of the engine and return the inputs that stopped in it; their places are free."""
        if not self._inputs:
            return []
        engine, policy, per_call = self._engine, self._policy, self._engine.manifest.steps_per_call
        output = engine.step(None if self._first is None else call_input(self._first, 0, engine))
        self._first = None
        now = time.perf_counter()
        found, self._run = scores(policy, output, self._run)
        finished: list[tuple[Key, Answer]] = []
        for k in range(per_call):
            for row, one in sorted(self._inputs.items()):
                one.steps += 1
                ms = (now - one.entered) * 1e3
                reason = reason_to_stop(policy, one.steps, found[k][row], output, k, row)
                if reason is None and one.steps == policy.max_steps:
                    reason = "last step"
                if reason is None and k == per_call - 1 and self._late(one, ms):
                    reason = "deadline"
                if reason is not None:
                    finished.append((one.key, answer_at(output, k, row, found[k][row], one.steps, ms, reason)))
                    del self._inputs[row]
        return finished

    def _late(self, one: _Input[Key], ms: float) -> bool:
        """Whether one more call, which is expected to take as long as the mean of those done, would end too late."""
        if self._policy.deadline_ms is None:
            return False
        calls = one.steps // self._engine.manifest.steps_per_call
        return ms + ms / calls > self._policy.deadline_ms


@dataclass
class _Input(Generic[Key]):
    """What runs in a place."""

    key: Key
    entered: float
    """Seconds, of `time.perf_counter`."""
    steps: int = 0
    """Done so far."""
