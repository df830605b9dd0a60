"""Latency at batch 1, with and without early exit: the inferences take turns, and every sample is kept."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...calib.evaluation import Evaluation
from ...runtime.engine import Engine
from ...runtime.errors import CheckFailed, DynamicConfidenceError
from ...runtime.exit_policy import ExitPolicy, without_exit
from ...runtime.stepping import Answers, infer
from .memory import MemoryUse
from .record import Energy, NotMeasured, Overhead, Throughput

if TYPE_CHECKING:
    from .subjects import Subject

WARM_UP_S = 0.2
Track = Callable[[Iterable[Any], str], Iterable[Any]]
"""Wraps what is gone through, and a word for it, for a progress bar. It must not run beside what is timed."""


class Sample(NamedTuple):
    """One image in one round: an inference with early exit and one without."""

    ms: float
    ms_without_exit: float
    steps: int
    label: int
    label_without_exit: int
    call_ends_ms: list[float]
    """Without early exit: when each call was done."""


@dataclass(eq=False)
class Measured:
    """An engine and what was measured of it so far: when a measurement is stopped, this is what there is."""

    subject: Subject
    engine: Engine
    policy: ExitPolicy
    threads: int | None
    open_ms: float
    first_call_ms: float
    memory: MemoryUse
    rounds: list[list[Sample]] = field(default_factory=list)
    evaluation: Evaluation | None = None
    overhead: Overhead | None = None
    throughput: list[Throughput] = field(default_factory=list)
    energy: Energy | NotMeasured = field(default_factory=lambda: NotMeasured(reason="it ended before"))
    complete: bool = False

    def __post_init__(self) -> None:
        self.endless = without_exit(self.policy)

    @property
    def ms_per_image(self) -> float:
        """Of an inference without early exit: the median so far."""
        return float(np.median([sample.ms_without_exit for round_ in self.rounds for sample in round_]))


def warm_up(one: Measured) -> float:
    """Run real inferences both ways for `WARM_UP_S` at least; return the median milliseconds of both together."""
    took, end = [], time.perf_counter() + WARM_UP_S
    while not took or time.perf_counter() < end:
        sample = _sample(one, len(took) % len(one.subject.pixels), exit_first=True)
        took.append(sample.ms + sample.ms_without_exit)
    return float(np.median(took))


def take_turns(engines: Sequence[Measured], rounds: int, seconds: float, track: Track) -> None:
    """Time all images in their order, round by round: each engine in turn, with early exit and without in turn.

    The order of engines and ways is reversed in every second round. After the first round it ends when the seconds are
    over. Samples are added to the engines one by one, so that those of a measurement that is stopped are there.
    Raises: CheckFailed when an engine fails, or when an exact network answers otherwise than in the first round.
    """
    end, count = time.perf_counter() + seconds, len(engines[0].subject.pixels)
    with _no_garbage_collector():
        for round_ in range(rounds):
            forwards = round_ % 2 == 0
            for one in engines:
                one.rounds.append([])
            gc.collect()
            for index in track(range(count), f"round {round_ + 1} of at most {rounds}"):
                if round_ and time.perf_counter() > end:
                    return
                for one in engines if forwards else reversed(engines):
                    sample = _sample(one, index, exit_first=forwards)
                    _check_same(one, index, sample)
                    one.rounds[-1].append(sample)


def _sample(one: Measured, index: int, *, exit_first: bool) -> Sample:
    """Infer an image both ways. Raises: CheckFailed when the engine fails."""
    pixels = one.subject.pixels[index : index + 1]
    try:
        if exit_first:
            (ms, early), (whole_ms, whole) = _timed(one, pixels, one.policy), _timed(one, pixels, one.endless)
        else:
            (whole_ms, whole), (ms, early) = _timed(one, pixels, one.endless), _timed(one, pixels, one.policy)
    except (DynamicConfidenceError, MemoryError):
        raise
    except Exception as error:
        raise CheckFailed(
            f"{one.subject.path}: {one.engine.backend} failed on image {one.subject.images.names[index]} "
            f"({type(error).__name__}: {error}). Try another --backend, or ask `dc-doctor` what this machine can run."
        ) from error
    answer = early.rows[0]
    return Sample(ms, whole_ms, answer.steps, answer.label, whole.rows[0].label, whole.call_ends_ms)


def _timed(one: Measured, pixels: np.ndarray, policy: ExitPolicy) -> tuple[float, Answers]:
    started = time.perf_counter_ns()
    answers = infer(one.engine, pixels, policy)
    return (time.perf_counter_ns() - started) / 1e6, answers


def _check_same(one: Measured, index: int, sample: Sample) -> None:
    """Raise CheckFailed unless an image is answered as in the first round; half precision may differ."""
    if len(one.rounds) == 1 or one.engine.manifest.numerics.precision == "fp16":
        return
    found, first = (
        f"{s.label} after {s.steps} steps and {s.label_without_exit} after all" for s in (sample, one.rounds[0][index])
    )
    if found != first:
        raise CheckFailed(
            f"{one.subject.path}: image {one.subject.images.names[index]} was answered {found}, in the first round "
            f"{first}: expected the same. This is a bug, or memory that fails: please report it."
        )


@contextlib.contextmanager
def _no_garbage_collector() -> Iterator[None]:
    """What it would collect in the middle of an inference is this measurement's own."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
