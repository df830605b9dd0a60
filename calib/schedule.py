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
DONE = (0.0, 0.0, 0)
"""What comes after T costs nothing."""


def best_schedule(histogram: np.ndarray, costs: Costs) -> tuple[int, ...]:
    """Return the steps of the calls, one after another, with the least expected milliseconds until the exit.

        V_F(s, L) = min over K of  P(exit > s) cost_K(s, K != L) + P(s < exit <= s + K) [K != F] d_F + V_F(s + K, K)
        latency   = min over F of  cost_F(0, same) + V_F(F, F),   V_F(s >= T, L) = 0

    with L, the steps of the call before, F, those of the first call, and d_F = cost_F(0, other) - cost_F(0, same): an
    input pays for every call that starts before its exit, and whether the first one is switched depends on the last one
    of the input before (dynamic programming; this is E(s) = min cost_K(s) + P(exit > s+K | exit > s) E(s+K) times
    P(exit > s)). What nothing is seen to reach costs nothing; there the calls are those that reach T soonest.
    Shapes: histogram `[step]`, the share of inputs that stop at each step 1 … T.
    Raises: DynamicConfidenceError for shares that do not add up to 1, or costs that are not positive, T for each K.
    """
    reaching = _reaching(histogram)
    _check_costs(costs, len(histogram))
    # Of equals the one that costs an input least which runs to the end, and of these the one with the longest call.
    return min((_best_after(first, reaching, costs) for first in costs), key=lambda found: found[0])[1]


def _best_after(first: int, reaching: np.ndarray, costs: Costs) -> tuple[tuple[float, float, int], tuple[int, ...]]:
    """Find the best schedule that begins with a call of `first` steps: what is compared, and its calls."""
    steps, switch = len(reaching) - 1, float(costs[first][OTHER, 0] - costs[first][SAME, 0])
    # Expected milliseconds from step s on, those of an input that runs to the end, and less the steps of the next call.
    best: dict[tuple[int, int], tuple[float, float, int]] = {}
    for start in reversed(range(min(first, steps), steps)):
        for last in costs:
            choices = []
            for size, cost in costs.items():
                ms, end = cost[OTHER if size != last else SAME, start], min(start + size, steps)
                stops = float(reaching[start] - reaching[end])
                after = best.get((end, size), DONE)
                choices.append(
                    (reaching[start] * ms + stops * switch * (size != first) + after[0], ms + after[1], -size)
                )
            best[start, last] = min(choices)
    calls, ms = [first], float(costs[first][SAME, 0])
    after = best.get((first, first), DONE)
    while sum(calls) < steps:
        calls.append(-best[sum(calls), calls[-1]][2])
    return (ms + after[0], ms + after[1], -first), tuple(calls)


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
        as_first += float(reaching[done] - reaching[min(done + size, len(histogram))]) * (size == calls[0])
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
    """P(exit > s) for s = 0 … T, exactly 0 from the last step on at which anything stops."""
    if histogram.ndim != 1 or not len(histogram) or histogram.min() < 0 or abs(histogram.sum() - 1) > 1e-9:
        raise DynamicConfidenceError(
            f"exit histogram of shape {histogram.shape} with sum {histogram.sum():g}: expected shares `[step]` that "
            "add up to 1; use histogram(exit_steps(...), steps)."
        )
    # From the end: differences from 1 would leave a rest of rounding where nothing is left.
    return np.append(histogram[::-1].cumsum()[::-1], 0.0)


def _check_costs(costs: Costs, steps: int) -> None:
    if not costs or min(costs) < 1 or not all(_is_cost(cost, steps) for cost in costs.values()):
        raise DynamicConfidenceError(
            f"costs {dict(costs)}: expected [2, {steps}] positive milliseconds for each length of call, from 1 step on."
        )


def _is_cost(cost: np.ndarray, steps: int) -> bool:
    return cost.shape == (2, steps) and bool(((cost > 0) & (cost < np.inf)).all())
