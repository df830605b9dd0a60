"""Time several calls in turn, in one process: raw samples, forwards and backwards, until the medians stand still."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..latency.statistics import spread

WARM_UP_S = 0.2
ROUNDS, QUICK_ROUNDS, MOST_ROUNDS = 7, 3, 200
SPREAD = 0.01
"""Half the 95 % interval of a median, as a fraction of it, that is small enough."""

Call = Callable[[int], object]
"""What is timed; it is told the number of the round."""


@dataclass
class Samples:
    """One entry per round."""

    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


def interleaved(
    calls: Mapping[str, Call],
    seconds: float,
    *,
    quick: bool = False,
    least: int = ROUNDS,
    told: Callable[[str], None] = lambda _: None,
) -> dict[str, Samples]:
    """Warm each call up, then time all of them round by round, the order reversed in every second round.

    It ends when the spread of every median is small, or when the next round would probably end after `seconds`, but
    never before `least` rounds (`QUICK_ROUNDS` and no more when quick). `told` hears how long a round takes.
    """
    started = time.perf_counter()
    for call in calls.values():
        _warm_up(call)
    samples = {name: Samples() for name in calls}
    names, first = list(calls), time.perf_counter()
    for round_ in range(QUICK_ROUNDS if quick else MOST_ROUNDS):
        for name in names if round_ % 2 == 0 else reversed(names):
            _time(calls[name], round_, samples[name])
        now = time.perf_counter()
        if round_ == 0:
            told(f"timing; a round takes {now - first:.1f} s")
        late = now + (now - first) / (round_ + 1) > started + seconds
        if round_ + 1 >= least and (late or all(spread(s.wall_ms) < SPREAD for s in samples.values())):
            break
    return samples


def _warm_up(call: Call) -> None:
    end = time.perf_counter() + WARM_UP_S
    call(0)
    while time.perf_counter() < end:
        call(0)


def _time(call: Call, round_: int, samples: Samples) -> None:
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    call(round_)
    samples.wall_ms.append((time.perf_counter_ns() - wall) / 1e6)
    samples.cpu_ms.append((time.process_time_ns() - cpu) / 1e6)
