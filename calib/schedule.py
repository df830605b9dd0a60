"""The exit-aware schedule: which calls answer soonest, from when inputs stop and what a call of each length costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..runtime.errors import DynamicConfidenceError

Costs = Mapping[int, np.ndarray]
"""K -> milliseconds `[switched, step]` of a call of K steps that starts after 0, 1, … T - 1 steps.

They depend on the start: the first call of an input finds a new image, and an engine that skips what does not spike
needs less time where less does. After a call of another K (switched: 1) a call finds other tensors in the caches.
"""
SAME, OTHER = 0, 1
"""Rows of the costs."""
NONE = 0
"""The length of no call."""


def best_schedule(histogram: np.ndarray, costs: Costs) -> tuple[int, ...]:
    """Return the steps of the calls, one after another, with the least expected milliseconds until the exit.

        V(s, L) = min over K of  P(exit > s) cost_K(s, K != L) + V(s + K, K),   V(s >= T, L) = 0

    with L, the steps of the call before. V(0, L) is the latency: an input pays for every call that starts before its
    exit (dynamic programming; this is E(s) = min cost_K(s) + P(exit > s+K | exit > s) E(s+K) times P(exit > s)). The
    first call counts as switched, since most often the last one of the input before was another (`expected_latency`
    knows how often). What nothing is seen to reach costs nothing; there the calls are those that reach T soonest.
    Shapes: histogram `[step]`, the share of inputs that stop at each step 1 … T.
    Raises: DynamicConfidenceError for shares that do not add up to 1, or costs that are not positive, T for each K.
    """
    reaching = _reaching(histogram)
    _check_costs(costs, len(histogram))
    steps = len(histogram)
    # Expected milliseconds from step s on, and those of an input that runs to the end, which decide between equals.
    best: dict[tuple[int, int], tuple[float, float, int]] = {}
    for start in reversed(range(steps)):
        for last in costs if start else (NONE,):
            choices = []
            for size, cost in costs.items():
                ms = cost[OTHER if size != last else SAME, start]
                after = best.get((start + size, size), (0.0, 0.0, 0))
                choices.append((reaching[start] * ms + after[0], ms + after[1], -size))
            best[start, last] = min(choices)
    calls, last = [], NONE
    while sum(calls) < steps:
        last = -best[sum(calls), last][2]
        calls.append(last)
    return tuple(calls)


def expected_latency(calls: Sequence[int], histogram: np.ndarray, costs: Costs) -> float:
    """Return the mean milliseconds until the exit under a schedule, whose last call is repeated.

        sum over calls of  P(exit > steps done before it) * cost of the call

    The first call counts as switched as often as the last call of an input is of another length.
    Shapes and errors as for `best_schedule`; and DynamicConfidenceError for a call without a cost.
    """
    reaching = _reaching(histogram)
    _check_costs(costs, len(histogram))
    unknown = set(calls) - costs.keys()
    if unknown or not calls:
        raise DynamicConfidenceError(f"calls {list(calls)}: expected at least one, each with a cost: {list(costs)}.")
    total, done, number, last, as_first = 0.0, 0, 0, calls[0], 0.0
    while done < len(histogram):
        size = calls[min(number, len(calls) - 1)]
        total += float(reaching[done] * costs[size][OTHER if size != last else SAME, done])
        beyond = reaching[done + size] if done + size < len(histogram) else 0.0
        as_first += float(reaching[done] - beyond) * (size == calls[0])
        done, number, last = done + size, number + 1, size
    first = costs[calls[0]][:, 0]
    return total + (1.0 - as_first) * float(first[OTHER] - first[SAME])


def shortened(calls: Sequence[int]) -> tuple[int, ...]:
    """Leave out the repetitions at the end, which a reader adds again: `(8, 1, 1, 1)` -> `(8, 1)`."""
    found = list(calls)
    while len(found) > 1 and found[-1] == found[-2]:
        found.pop()
    return tuple(found)


def _reaching(histogram: np.ndarray) -> np.ndarray:
    """P(exit > s) for s = 0 … T - 1, exactly 0 behind the last step at which anything stops."""
    if histogram.ndim != 1 or not len(histogram) or histogram.min() < 0 or abs(histogram.sum() - 1) > 1e-9:
        raise DynamicConfidenceError(
            f"exit histogram of shape {histogram.shape} with sum {histogram.sum():g}: expected shares `[step]` that "
            "add up to 1; use histogram(exit_steps(...), steps)."
        )
    # From the end: differences from 1 would leave a rest of rounding where nothing is left.
    return histogram[::-1].cumsum()[::-1]


def _check_costs(costs: Costs, steps: int) -> None:
    if not costs or min(costs) < 1 or not all(_is_cost(cost, steps) for cost in costs.values()):
        raise DynamicConfidenceError(
            f"costs {dict(costs)}: expected [2, {steps}] positive milliseconds for each length of call, from 1 step on."
        )


def _is_cost(cost: np.ndarray, steps: int) -> bool:
    return cost.shape == (2, steps) and bool(((cost > 0) & (cost < np.inf)).all())
