"""What the host adds to the engine's calls: the stepping loop beside a bare one, and the confidence alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from types import TracebackType
from typing import NamedTuple

import numpy as np

from ...runtime.confidence import max_softmax
from ...runtime.engine import Engine, StepOutput
from ...runtime.exit_policy import policy_from_manifest
from ...runtime.manifest import Manifest
from ...runtime.stepping import call_input, infer, usual_calls
from .record import Overhead


def overhead(engine: Engine, pixels: np.ndarray, inferences: int) -> Overhead:
    """Measure it for one image after another, all their steps.

        per time step = Σ (start of call c + 1 − end of call c) / steps of all calls but the last; 0 for a single call
        once          = start of the first call − start − time in reset + end − end of the last call

    The loops take turns, and on a real engine: beside one that does nothing the code would be in the caches.
    Shapes: pixels uint8 `[image, channel, y, x]`. Units: microseconds.
    """
    timed, manifest = _TimedEngine(engine), engine.manifest
    # Not `without_exit`: the loop computes the scores of the network's own metric, as with early exit.
    policy = replace(policy_from_manifest(manifest, threshold=1.0), quiet_after=None)
    sizes = _calls(manifest)
    # After each call but the last a gap follows; the last is followed by the end.
    steps = sum(size or manifest.steps_per_call for size in sizes[:-1])
    bare, loop, confidence_us = [], [], []
    for index in range(inferences):
        image = pixels[index % len(pixels)][None]
        first = call_input(image, 0, engine)
        bare.append(_outside(timed, lambda first=first: _bare(timed, first, policy.scale, sizes), steps))
        loop.append(_outside(timed, lambda image=image: infer(timed, image, policy), steps))
        logits = infer(engine, image, policy).logits
        started = time.perf_counter_ns()
        max_softmax(logits, policy.scale)
        confidence_us.append((time.perf_counter_ns() - started) / 1e3)
    return Overhead(
        loop_us=[found.step_us for found in loop],
        bare_us=[found.step_us for found in bare],
        loop_once_us=[found.once_us for found in loop],
        bare_once_us=[found.once_us for found in bare],
        confidence_us=confidence_us,
    )


def _calls(manifest: Manifest) -> list[int | None]:
    """The steps of each call that `infer` makes for all of them; None: the usual number."""
    sizes = usual_calls(manifest)
    calls: list[int | None] = []
    done = 0
    while done < manifest.max_steps:
        size = sizes[min(len(calls), len(sizes) - 1)]
        calls.append(None if size == manifest.steps_per_call else size)
        done += size
    return calls


class _Outside(NamedTuple):
    """Microseconds of an inference that are not spent in the engine."""

    step_us: float
    """Between its calls, per time step."""
    once_us: float
    """Before the first and after the last."""


def _outside(timed: _TimedEngine, run: Callable[[], object], steps: int) -> _Outside:
    """Time an inference, of so many steps before its last call."""
    timed.calls, timed.reset_ns, started = [], 0, time.perf_counter_ns()
    run()
    ended, calls = time.perf_counter_ns(), timed.calls
    between = sum(after - before for (_, before), (after, _) in pairwise(calls))
    once = calls[0][0] - started - timed.reset_ns + ended - calls[-1][1]
    return _Outside(between / max(steps, 1) / 1e3, once / 1e3)


def _bare(engine: Engine, first: np.ndarray, scale: float, sizes: Sequence[int | None]) -> None:
    """Call the engine and do nothing else."""
    engine.reset(scale)
    new = first
    for size in sizes:
        engine.step(new, size)
        new = None


class _TimedEngine:
    """An engine that notes when its calls start and end, and how long its reset takes, in nanoseconds."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.reset_ns = engine, 0
        self.calls: list[tuple[int, int]] = []
        self.manifest, self.batch, self.backend = engine.manifest, engine.batch, engine.backend

    def __enter__(self) -> _TimedEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Whoever opened the engine closes it."""

    def reset(self, scale: float) -> None:
        started = time.perf_counter_ns()
        self._engine.reset(scale)
        self.reset_ns = time.perf_counter_ns() - started

    def step(self, pixels: np.ndarray | None = None, steps: int | None = None) -> StepOutput:
        started = time.perf_counter_ns()
        output = self._engine.step(pixels, steps)
        self.calls.append((started, time.perf_counter_ns()))
        return output

    def refill(self, rows: np.ndarray, pixels: np.ndarray) -> None:
        self._engine.refill(rows, pixels)
