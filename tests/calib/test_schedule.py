"""The schedule with the least expected latency, against every sequence there is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_confidence.calib.exits import histogram
from dynamic_confidence.calib.schedule import best_schedule, expected_latency, shortened
from dynamic_confidence.runtime.errors import DynamicConfidenceError

COSTS = {1: 1.0, 2: 1.6, 4: 2.8}


def constant(cost: dict[int, float], steps: int) -> dict[int, np.ndarray]:
    """Costs that do not depend on the steps before a call."""
    return {size: np.full((2, steps), ms) for size, ms in cost.items()}


def every_schedule(steps: int, sizes: list[int]) -> Iterator[tuple[int, ...]]:
    """All sequences of calls that reach `steps` and make no call for nothing."""
    if steps <= 0:
        yield ()
        return
    for size in sizes:
        for rest in every_schedule(steps - size, sizes):
            yield (size, *rest)


def mean_latency(calls: tuple[int, ...], exits: list[int], cost: dict[int, np.ndarray]) -> float:
    """Input by input: it pays for calls until its exit is done. Any input may come before: how its last call was."""
    total, lasts = 0.0, []
    for exit_step in exits:
        done, last = 0, calls[0]
        for size in calls:
            total += cost[size][int(size != last), done]
            done, last = done + size, size
            if done >= exit_step:
                break
        lasts.append(last)
    same, other = cost[calls[0]][:, 0]
    return total / len(exits) + (other - same) * sum(last != calls[0] for last in lasts) / len(lasts)


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, list[int], dict[int, np.ndarray]]:
    steps = draw(st.integers(1, 8))
    exits = draw(st.lists(st.integers(1, steps), min_size=1, max_size=12))
    sizes = draw(st.sets(st.integers(1, 9), min_size=1, max_size=3))
    some = st.lists(st.floats(0.1, 9.0), min_size=2 * steps, max_size=2 * steps).map(np.array)
    return steps, exits, {size: draw(some).reshape(2, steps) for size in sorted(sizes)}


@given(cases())
def test_no_schedule_is_better(case: tuple[int, list[int], dict[int, np.ndarray]]):
    steps, exits, cost = case
    shares = histogram(np.array(exits), steps)
    found = best_schedule(shares, cost)
    assert sum(found) >= steps > sum(found[:-1])
    least = min(mean_latency(calls, exits, cost) for calls in every_schedule(steps, list(cost)))
    assert mean_latency(found, exits, cost) == pytest.approx(least)
    assert expected_latency(found, shares, cost) == pytest.approx(least)


@given(cases(), st.data())
def test_the_expected_latency_is_the_mean_over_inputs(case, data: st.DataObject):
    steps, exits, cost = case
    calls = tuple(data.draw(st.lists(st.sampled_from(list(cost)), min_size=1, max_size=6)))
    whole = calls + calls[-1:] * steps
    found = expected_latency(calls, histogram(np.array(exits), steps), cost)
    assert found == pytest.approx(mean_latency(whole, exits, cost))
    assert found == pytest.approx(expected_latency(whole, histogram(np.array(exits), steps), cost))
    again = shortened(whole)
    assert (again + again[-1:] * len(whole))[: len(whole)] == whole
    assert len(again) == 1 or again[-1] != again[-2]


@given(cases())
def test_it_is_never_worse_than_a_fixed_k(case: tuple[int, list[int], dict[int, np.ndarray]]):
    steps, exits, cost = case
    shares = histogram(np.array(exits), steps)
    best = expected_latency(best_schedule(shares, cost), shares, cost)
    assert all(best <= expected_latency((size,), shares, cost) * (1 + 1e-12) for size in cost)


@pytest.mark.parametrize(
    ("exits", "steps", "calls"),
    [
        ([8] * 9, 8, (4, 4)),  # nobody stops before the end: the cheapest way there
        ([1, 1, 1, 8], 8, (1, 4, 2, 1)),  # most stop at once
        ([4, 4, 5, 6], 8, (4, 1, 1, 2)),  # a long call as long as nobody stops, then single steps
        ([1, 1], 8, (1, 4, 2, 1)),  # behind the last exit seen: the cheapest way to the end
        ([1], 1, (1,)),
    ],
)
def test_long_calls_where_nothing_stops(exits: list[int], steps: int, calls: tuple[int, ...]):
    assert best_schedule(histogram(np.array(exits), steps), constant(COSTS, steps)) == calls


def test_the_cost_of_a_call_may_depend_on_its_start():
    """Four steps at once are dear at first, where all spikes, and cheap after that."""
    costs = {1: np.full((2, 8), 1.0), 4: np.tile([9.0, 9.0, *[2.5] * 6], (2, 1))}
    assert best_schedule(histogram(np.array([8]), 8), costs) == (1, 1, 4, 1, 1)


def test_a_change_of_length_may_cost():
    """4 and then single steps, or 4 and 4: it depends on what the first single step costs more."""
    shares = histogram(np.array([5, 5, 6, 8]), 8)
    costs = constant({1: 1.0, 4: 2.9}, 8)
    assert best_schedule(shares, costs) == (4, 1, 1, 1, 1)
    costs[1][1] = 2.2
    assert best_schedule(shares, costs) == (4, 4)


def test_the_first_call_of_a_schedule_is_switched_and_that_of_a_fixed_k_is_not():
    costs = {size: np.array([[1.0] * 4, [3.0] * 4]) for size in (1, 2)}
    shares = histogram(np.array([4]), 4)
    assert expected_latency((2,), shares, costs) == 2.0
    assert expected_latency((2, 2), shares, costs) == 2.0
    assert expected_latency((2, 1, 1), shares, costs) == 3.0 + 3.0 + 1.0


@pytest.mark.parametrize(
    ("shares", "cost", "message"),
    [
        ([0.5, 0.4], COSTS, r"exit histogram of shape \(2,\) with sum 0\.9: expected shares .* add up to 1"),
        ([], COSTS, r"exit histogram of shape \(0,\)"),
        ([1.5, -0.5], COSTS, "exit histogram"),
        ([1.0], {}, r"costs \{\}: expected \[2, 1\] positive milliseconds"),
        ([1.0], {0: 1.0}, r"costs \{0: array\(\[\[1\.\],\s+\[1\.\]\]\)\}: expected \[2, 1\] positive milliseconds"),
        ([1.0], {1: 0.0}, r"costs \{1: array\(\[\[0\.\],\s+\[0\.\]\]\)\}: expected \[2, 1\] positive milliseconds"),
        (
            [1.0],
            {1: float("nan")},
            r"costs \{1: array\(\[\[nan\],\s+\[nan\]\]\)\}: expected \[2, 1\] positive milliseconds",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(shares: list[float], cost: dict[int, float], message: str):
    with pytest.raises(DynamicConfidenceError, match=message):
        best_schedule(np.array(shares), constant(cost, len(shares)))
    with pytest.raises(DynamicConfidenceError, match=message):
        expected_latency((1,), np.array(shares), constant(cost, len(shares)))


@pytest.mark.parametrize("calls", [(), (1, 3)])
def test_a_call_without_a_cost_is_refused(calls: tuple[int, ...]):
    with pytest.raises(
        DynamicConfidenceError, match=r"calls \[.*\]: expected at least one, each with a cost: \[1, 2, 4"
    ):
        expected_latency(calls, np.array([1.0]), constant(COSTS, 1))
