"""What a call costs: milliseconds by its steps, by the steps before it, and by whether the call before was as long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from .schedule import OTHER, SAME, Costs

ENOUGH = 12
"""Samples that a median is taken of, where there are so many."""


class CallSample(NamedTuple):
    """One call, timed."""

    steps: int
    """K."""
    start: int
    """Steps of the input that were done before."""
    switched: bool
    """Whether the call before, perhaps of another input, was of another K."""
    ms: float


def probing_calls(sizes: Sequence[int], first: int, steps: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Draw calls that reach `steps`: one of `first`, then each as long as the one before or, half the time, not."""
    calls = [first]
    while sum(calls) < steps:
        others = [size for size in sizes if size != calls[-1]]
        calls.append(int(rng.choice(others)) if others and rng.random() < 0.5 else calls[-1])
    return tuple(calls)


def costs_of_calls(samples: Sequence[CallSample], steps: int) -> dict[int, np.ndarray]:
    """Return the milliseconds of a call of each K, `[switched, step]`: of one that starts after so many steps.

        cost_K(s) = median of the `ENOUGH` samples that start nearest to s

    of more where several are as near, of fewer where there are no more. The first call of an input finds another image
    and is on its own. Where all calls of a K were switched, or none, the others stand for those.
    """
    found: dict[int, np.ndarray] = {}
    for size in sorted({sample.steps for sample in samples}):
        own = [sample for sample in samples if sample.steps == size]
        costs = np.zeros((2, steps))
        for row, switched in ((SAME, False), (OTHER, True)):
            for first in (True, False):
                at = slice(0, 1) if first else slice(1, steps)
                costs[row, at] = _nearest(_alike(own, switched, first), np.arange(steps)[at])
        found[size] = costs
    return found


def typical(costs: Costs) -> dict[int, float]:
    """One number per K: the median over the starts, but the first, of calls as long as the one before."""
    return {size: float(np.median(cost[SAME, 1:] if cost.shape[1] > 1 else cost[SAME])) for size, cost in costs.items()}


def _alike(samples: Sequence[CallSample], switched: bool, first: bool) -> list[CallSample]:
    """Those of the same kind; where there are none, those that differ in the one, in the other, or in both."""
    for also_switched, also_first in ((False, False), (True, False), (False, True), (True, True)):
        wanted = (switched != also_switched, first != also_first)
        found = [sample for sample in samples if (sample.switched, sample.start == 0) == wanted]
        if found:
            return found
    return []


def _nearest(samples: Sequence[CallSample], starts: np.ndarray) -> np.ndarray:
    """The median of the samples nearest to each start, `[start]`."""
    at, ms = np.array([sample.start for sample in samples]), np.array([sample.ms for sample in samples])
    medians = []
    for start in starts:
        away = np.abs(at - start)
        medians.append(np.median(ms[away <= np.sort(away)[min(ENOUGH, len(away)) - 1]]))
    return np.array(medians)


def samples_of(runs: Iterable[tuple[Sequence[int], Sequence[float]]]) -> list[CallSample]:
    """Take runs apart, one input after another: of each, the steps of its calls, and the ms of those that were made."""
    found, before = [], 0  # the length of no call
    for calls, ms in runs:
        starts = chain((0,), np.cumsum(calls).tolist())
        for size, start, time in zip(calls, starts, ms, strict=False):  # an input may have stopped before the last call
            found.append(CallSample(size, start, size != before, time))
            before = size
    return found
