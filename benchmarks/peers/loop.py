"""What the stepping loop adds to the calls of the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np

from ...runtime.engine import Engine, StepOutput, open_engine
from ...runtime.exit_policy import ExitPolicy
from ...runtime.stepping import infer
from .ours import PLAIN, to_the_end

BARE, LOOP = "bare_us", "loop_us"


def loop_cost(path: Path, pixels: np.ndarray, threads: int, inferences: int) -> dict[str, list[float]]:
    """Microseconds per time step outside the engine's calls, one value per inference.

    `loop_us`: of `infer`, for one image after another. `bare_us`: of a loop that does nothing but call the engine, so
    what timing the calls costs. The difference is what the loop adds. Both in turn, and on a real engine: beside one
    that does nothing the code would be in the caches.
    """
    found: dict[str, list[float]] = {BARE: [], LOOP: []}
    with open_engine(path, threads=threads, backend=PLAIN.backend) as engine:
        timed, policy = _TimedEngine(engine), to_the_end(engine, engine.manifest.max_steps)
        for index in range(inferences):
            image = pixels[index % len(pixels)][None]
            for key, run in ((BARE, _bare), (LOOP, infer)):
                found[key].append(_outside(run, timed, image, policy) / policy.max_steps / 1e3)
    return found


def _outside(
    run: Callable[[Engine, np.ndarray, ExitPolicy], object], timed: _TimedEngine, image: np.ndarray, policy: ExitPolicy
) -> int:
    """Nanoseconds of an inference that are not spent in the engine."""
    timed.inside, started = 0, time.perf_counter_ns()
    run(timed, image, policy)
    return time.perf_counter_ns() - started - timed.inside


def _bare(engine: Engine, image: np.ndarray, policy: ExitPolicy) -> None:
    engine.reset(policy.scale)
    engine.step(image)
    for _ in range(policy.max_steps - 1):
        engine.step()


class _TimedEngine:
    """An engine that adds up how long its calls take, in nanoseconds."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.inside = engine, 0
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
        self.inside += time.perf_counter_ns() - started

    def step(self, pixels: np.ndarray | None = None, steps: int | None = None) -> StepOutput:
        started = time.perf_counter_ns()
        output = self._engine.step(pixels, steps)
        self.inside += time.perf_counter_ns() - started
        return output

    def refill(self, rows: np.ndarray, pixels: np.ndarray) -> None:
        self._engine.refill(rows, pixels)
