"""Costs of calls: by their start, by the call before; what was not measured is taken from what is nearest."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_confidence.calib import call_costs
from dynamic_confidence.calib.call_costs import CallSample, costs_of_calls, probing_calls, samples_of, typical


@given(st.sets(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 20), st.data())
def test_drawn_calls_reach_the_last_step(sizes: set[int], steps: int, data: st.DataObject):
    first = data.draw(st.sampled_from(sorted(sizes)))
    calls = probing_calls(sorted(sizes), first, steps, np.random.default_rng(data.draw(st.integers(0, 99))))
    assert calls[0] == first
    assert set(calls) <= sizes
    assert sum(calls) >= steps > sum(calls[:-1])


def test_every_second_drawn_call_is_of_another_length():
    calls = probing_calls((1, 2, 4), 1, 10_000, np.random.default_rng(0))
    changes = [one != other for one, other in pairwise(calls)]
    assert np.mean(changes) == pytest.approx(0.5, abs=0.05)
    assert min(calls.count(size) for size in (1, 2, 4)) > 1000


def test_runs_are_taken_apart():
    """An input that stops early has fewer times than calls; the next one's first call follows its last."""
    found = samples_of([((4, 1, 1), [9.0, 2.0]), ((1, 4), [3.0, 8.0])])
    assert found == [
        CallSample(4, 0, True, 9.0),
        CallSample(1, 4, True, 2.0),
        CallSample(1, 0, False, 3.0),
        CallSample(4, 1, True, 8.0),
    ]


def of(size: int, start: int, switched: bool, *ms: float) -> list[CallSample]:
    return [CallSample(size, start, switched, one) for one in ms]


def test_a_cost_is_the_median_of_the_nearest_samples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(call_costs, "ENOUGH", 3)
    samples = [
        *of(2, 0, False, 9.0, 9.0, 1.0),
        *of(2, 2, False, 4.0, 5.0, 6.0),
        *of(2, 4, False, 1.0),
        *of(2, 6, False, 2.0, 3.0),
        *of(2, 3, True, 7.0),
    ]
    cost = costs_of_calls(samples, 8)[2]
    # After 4 steps: 1, and of the six that are two steps away all, for none of them is nearer.
    assert cost[0].tolist() == [9.0, 5.0, 5.0, 4.5, 3.5, 2.0, 2.0, 2.0]
    assert cost[1].tolist() == [9.0, *[7.0] * 7]


def test_what_was_not_measured_is_taken_from_the_others():
    only_first = costs_of_calls(of(8, 0, True, 6.0, 7.0, 6.0), 3)
    assert only_first[8].tolist() == [[6.0] * 3, [6.0] * 3]
    only_later = costs_of_calls([*of(1, 0, True, 5.0), *of(1, 1, False, 2.0)], 3)
    assert only_later[1].tolist() == [[5.0, 2.0, 2.0], [5.0, 2.0, 2.0]]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 9), st.booleans(), st.floats(0.1, 9.0)), min_size=1))
def test_costs_lie_within_what_was_measured(rows: list[tuple[int, int, bool, float]]):
    samples = [CallSample(*row) for row in rows]
    for size, cost in costs_of_calls(samples, 10).items():
        own = [sample.ms for sample in samples if sample.steps == size]
        assert cost.shape == (2, 10)
        assert min(own) <= cost.min() <= cost.max() <= max(own)


def test_one_number_for_people():
    costs = {1: np.array([[9.0, 1.0, 2.0, 3.0], [9.0] * 4]), 4: np.array([[7.0], [8.0]])}
    assert typical(costs) == {1: 2.0, 4: 7.0}
