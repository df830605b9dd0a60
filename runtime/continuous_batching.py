"""Continuous batching: a batch whose places are filled again as soon as their inputs have stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

from .engine import Engine
from .errors import DynamicConfidenceError
from .exit_metrics import Run, restarted
from .exit_policy import ExitPolicy, Reason, judge
from .stepping import Answer, call_input

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
        self._keys: dict[int, Key] = {}
        self._running = np.zeros(engine.batch, bool)
        self._steps = np.zeros(engine.batch, np.int64)
        self._entered = np.zeros(engine.batch)
        self._run: Run | None = None
        self._first: np.ndarray | None = np.zeros((engine.batch, *self._shape), np.uint8)
        """What the first call takes; missing inputs are black. None after it."""
        engine.reset(policy.scale)

    @property
    def free(self) -> int:
        """How many inputs may be put in."""
        return self._engine.batch - len(self._keys)

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
        rows = np.flatnonzero(~self._running)[: len(samples)]
        pixels = np.stack([pixels for _, pixels in samples])
        if self._first is not None:
            self._first[rows] = pixels
        else:
            self._engine.refill(rows, pixels)
        self._keys |= zip(rows.tolist(), (key for key, _ in samples), strict=True)
        self._running[rows], self._steps[rows], self._entered[rows] = True, 0, entered
        self._run = restarted(self._run, rows)

    def step(self) -> list[tuple[Key, Answer]]:
        """Make one call of the engine and return the inputs that stopped in it; their places are free."""
        if not self._keys:
            return []
        engine, policy, per_call = self._engine, self._policy, self._engine.manifest.steps_per_call
        output = engine.step(None if self._first is None else call_input(self._first, 0, engine))
        self._first = None
        ms = (time.perf_counter() - self._entered) * 1e3
        # One more call is expected to take as long as the mean of those done.
        deadline = math.inf if policy.deadline_ms is None else policy.deadline_ms
        late = ms + ms / (self._steps // per_call + 1) > deadline
        finished: list[tuple[Key, Answer]] = []
        for k in range(per_call):
            self._steps += 1
            spikes = None if output.spikes is None else output.spikes[k]
            score, sure, still, self._run = judge(
                policy, self._steps, output.logits[k], output.confidence[k], spikes, self._run
            )
            last = self._steps == policy.max_steps
            stopped = self._running & (sure | still | last | (late & (k == per_call - 1)))
            for row in np.flatnonzero(stopped).tolist():
                other: Reason = "last step" if last[row] else "deadline"
                answer = Answer(
                    int(output.label[k, row]),
                    float(output.confidence[k, row]),
                    float(score[row]),
                    int(self._steps[row]),
                    float(ms[row]),
                    "confident" if sure[row] else "quiescent" if still[row] else other,
                    output.logits[k, row].copy(),
                )
                finished.append((self._keys.pop(row), answer))
            self._running &= ~stopped
        return finished
