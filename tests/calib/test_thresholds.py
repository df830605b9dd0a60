"""The exact scan against brute force over all thresholds, the grid, the Pareto front and the choice."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_confidence.calib.exits import exit_steps
from dynamic_confidence.calib.thresholds import (
    PAPER_GRID,
    OperatingPoint,
    choose,
    choose_within,
    descend,
    exact_scan,
    fixed_accuracy,
    grid_points,
    pareto_front,
)
from dynamic_confidence.calib.trace import Trace
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Metric


def brute_force(confidence: np.ndarray, correct: np.ndarray, last_step: np.ndarray, threshold: float, min_step: int):
    """Mean steps and accuracy under one threshold, sample by sample."""
    used, right = 0, 0
    for p, ok, end in zip(confidence, correct, last_step.tolist(), strict=True):
        stop = next((t for t in range(min_step, end) if p[t - 1] > threshold), end)
        used, right = used + stop, right + bool(ok[stop - 1])
    return used / len(correct), right / len(correct)


@st.composite
def runs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Confidence (with many ties, 0 and 1 among them, or with none), correct, last_step and min_step."""
    samples, steps = draw(st.integers(1, 8)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([0, 1, 2, 5]))
    confidence = rng.integers(0, levels + 1, (samples, steps)) / levels if levels else rng.random((samples, steps))
    last_step = rng.integers(1, steps + 1, samples) if draw(st.booleans()) else np.full(samples, steps)
    return confidence, rng.random((samples, steps)) < 0.5, last_step, draw(st.integers(1, steps + 1))


@settings(max_examples=300, deadline=None)
@given(runs())
def test_scan_equals_brute_force_at_every_threshold(run: tuple[np.ndarray, np.ndarray, np.ndarray, int]):
    confidence, correct, last_step, min_step = run
    scan = exact_scan(confidence, correct, last_step, min_step)
    edges = np.unique(np.concatenate([[0.0, 1.0], confidence.ravel()]))
    candidates = np.unique(np.concatenate([edges, (edges[1:] + edges[:-1]) / 2, scan.threshold]))
    seen = set()
    for threshold in candidates.tolist():
        (row,) = np.flatnonzero((scan.low <= threshold) & (threshold < scan.high))
        expected = brute_force(confidence, correct, last_step, threshold, min_step)
        assert (scan.mean_steps[row], scan.accuracy[row]) == expected
        seen.add(int(row))
    assert seen == set(range(len(scan.low)))


@settings(max_examples=100, deadline=None)
@given(runs())
def test_scan_rows_tile_the_thresholds(run: tuple[np.ndarray, np.ndarray, np.ndarray, int]):
    scan = exact_scan(*run)
    assert scan.high[0] == np.inf
    assert scan.low[-1] == 0
    np.testing.assert_array_equal(scan.high[1:], scan.low[:-1])
    assert (np.diff(scan.mean_steps) < 0).all()
    assert scan.threshold[0] == 1
    assert ((scan.low <= scan.threshold) & (scan.threshold < scan.high)).all()
    assert [p.threshold for p in scan.points()] == scan.threshold.tolist()


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Small traces from few distinct logits, so that scores often tie; some samples stop on their own."""
    samples, steps, classes = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.integers(0, draw(st.sampled_from([2, 3, 9])), (samples, steps, classes)).astype(np.float32)
    last_step = rng.integers(1, steps + 1, samples) if draw(st.booleans()) else np.full(samples, steps)
    return Trace(logits, rng.integers(0, classes, samples), last_step)


@settings(max_examples=100, deadline=None)
@given(traces(), st.integers(1, 7), st.sampled_from([0.5, 3.0]))
@pytest.mark.parametrize("metric", get_args(Metric))
def test_scan_of_a_trace_equals_brute_force_for_every_metric(metric: Metric, trace: Trace, min_step: int, scale: float):
    scores = trace.scores(scale, metric)
    scan = exact_scan(scores, trace.correct, trace.last_step, min_step)
    edges = np.unique(np.concatenate([[0.0, 1.0], scores.ravel()]))
    for threshold in np.concatenate([edges, (edges[1:] + edges[:-1]) / 2]).tolist():
        (row,) = np.flatnonzero((scan.low <= threshold) & (threshold < scan.high))
        expected = brute_force(scores, trace.correct, trace.last_step, threshold, min_step)
        assert (scan.mean_steps[row], scan.accuracy[row]) == expected
        (point,) = grid_points(trace, scale, (threshold,), min_step, metric)
        assert (point.mean_steps, point.accuracy) == expected


def test_stored_thresholds_lie_strictly_between_records():
    confidence = np.random.default_rng(0).random((50, 6))
    scan = exact_scan(confidence, confidence > 0.5, np.full(50, 6))
    assert not np.isin(scan.threshold, confidence).any()


def test_neighbouring_floats_still_get_a_valid_threshold():
    below = np.nextafter(1.0, 0.0)
    for confidence in ([[below, 1.0, 0.5]], [[np.nextafter(below, 0.0), below, 0.5]]):
        scan = exact_scan(np.array(confidence), np.ones((1, 3), dtype=bool), np.array([3]))
        for point in scan.points():
            assert exit_steps(np.array(confidence), point.threshold, np.array([3]))[0] == point.mean_steps


def test_row_zero_never_exits_early_even_when_confidence_saturates():
    scan = exact_scan(np.ones((2, 4)), np.ones((2, 4), dtype=bool), np.array([4, 2]))
    np.testing.assert_array_equal(scan.mean_steps, [3, 1])
    np.testing.assert_array_equal(scan.threshold, [1, 0.5])


def test_scan_beats_or_equals_any_grid():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(200, 8, 5)).cumsum(axis=1).astype(np.float32)
    trace = Trace(logits, rng.integers(0, 5, 200), np.full(200, 8))
    baseline = float(fixed_accuracy(trace)[-1])
    scan = exact_scan(trace.confidence(2.0), trace.correct, trace.last_step)
    fine = choose(scan.points(), baseline)
    coarse = choose(grid_points(trace, 2.0), baseline)
    assert fine.mean_steps <= coarse.mean_steps
    assert choose(pareto_front(scan.points()), baseline) == fine


@pytest.mark.parametrize("min_step", [1, 3])
def test_grid_points_equal_brute_force(min_step: int):
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(40, 6, 4)).cumsum(axis=1).astype(np.float32)
    trace = Trace(logits, rng.integers(0, 4, 40), rng.integers(1, 7, 40))
    points = grid_points(trace, 3.0, min_step=min_step)
    assert [p.threshold for p in points] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1] == list(PAPER_GRID)
    for point in points:
        expected = brute_force(trace.confidence(3.0), trace.correct, trace.last_step, point.threshold, min_step)
        assert (point.mean_steps, point.accuracy) == expected


def test_threshold_one_has_the_baseline_accuracy():
    rng = np.random.default_rng(5)
    trace = Trace(1e6 * rng.random((30, 4, 3), dtype=np.float32), rng.integers(0, 3, 30), np.full(30, 4))
    assert grid_points(trace, 1.0)[-1] == OperatingPoint(1.0, 4.0, float(fixed_accuracy(trace)[-1]))


def test_fixed_accuracy_is_the_accuracy_of_each_step():
    logits = np.zeros((2, 3, 2), np.float32)
    logits[:, 1:, 1] = 1
    trace = Trace(logits, np.array([0, 1]), np.array([3, 3]))
    np.testing.assert_array_equal(fixed_accuracy(trace), [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(fixed_accuracy(trace.subset(np.array([0]))), [1, 0, 0])


points = st.builds(OperatingPoint, st.integers(0, 8).map(lambda k: k / 8), st.integers(1, 5), st.integers(0, 4))


@given(st.lists(points, max_size=12))
def test_pareto_front_is_its_definition(all_points: list[OperatingPoint]):
    front = pareto_front(all_points)
    assert all(a.mean_steps < b.mean_steps and a.accuracy < b.accuracy for a, b in pairwise(front))
    for point in all_points:
        at_least_as_good = [p for p in front if p.mean_steps <= point.mean_steps and p.accuracy >= point.accuracy]
        assert at_least_as_good
        if point in front:
            assert at_least_as_good == [point]


def test_equal_points_keep_the_more_accurate_then_the_higher_threshold():
    low, high = OperatingPoint(0.2, 3, 0.9), OperatingPoint(0.3, 3, 0.9)
    worse, slower = OperatingPoint(0.9, 3, 0.8), OperatingPoint(1.0, 4, 0.9)
    assert pareto_front([low, worse, slower, high]) == [high]
    assert choose([low, worse, slower, high], 0.8) == high


def test_choose_takes_the_fewest_steps_that_keep_the_accuracy():
    candidates = [OperatingPoint(0.5, 2, 0.7), OperatingPoint(0.8, 5, 0.79), OperatingPoint(1.0, 9, 0.8)]
    assert choose(candidates, 0.8).threshold == 1.0
    assert choose(candidates, 0.8, max_drop=0.01).threshold == 0.8
    assert 0.8 - 0.1 > 0.7
    assert choose(candidates, 0.8, max_drop=0.1).threshold == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: choose([OperatingPoint(0.5, 2, 0.7)], 0.8, 0.05),
            r"none of 1 thresholds reaches accuracy 0\.7500 \(best 0\.7000\); include threshold 1, .* larger max_drop",
        ),
        (lambda: choose([], 0.8), r"none of 0 thresholds reaches accuracy 0\.8000 \(best nan\)"),
        (lambda: choose([OperatingPoint(1, 2, 1)], 0.8, -0.1), r"max_drop is -0\.1, expected 0 or more; write 0\.005"),
        (
            lambda: exact_scan(np.zeros((2, 3)), np.zeros((2, 4), dtype=bool), np.array([3, 3])),
            r"scores have shape \(2, 3\) and correct \(2, 4\), expected the same .*; take both from the same trace",
        ),
        (
            lambda: exact_scan(np.full((1, 2), np.nan), np.zeros((1, 2), dtype=bool), np.array([2])),
            r"scores hold values outside 0\.\.1 or NaN, expected those of an exit metric; use Trace\.scores",
        ),
        (
            lambda: exact_scan(np.zeros((1, 2)), np.zeros((1, 2), dtype=bool), np.array([3])),
            r"last_step lies in 3\.\.3, expected 1\.\.2",
        ),
        (
            lambda: exact_scan(np.zeros((1, 2)), np.zeros((1, 2), dtype=bool), np.array([2]), 0),
            r"min_step is 0, expected 1 or more",
        ),
    ],
)
def test_bad_input_is_refused(call, message: str):
    with pytest.raises(DynamicConfidenceError, match=message):
        call()


def test_descend_stops_at_the_first_loss_even_where_a_lower_threshold_looks_lossless_again() -> None:
    accuracies = {1.0: 0.9, 0.8: 0.92, 0.6: 0.9, 0.4: 0.89, 0.2: 0.91}
    points = [OperatingPoint(threshold, 10 * threshold, accuracy) for threshold, accuracy in accuracies.items()]
    assert [p.threshold for p in descend(points, 0.9)] == [1.0, 0.8, 0.6]
    assert [p.threshold for p in descend(points, 0.9, max_drop=0.01)] == [1.0, 0.8, 0.6, 0.4, 0.2]
    assert choose(points, 0.9).threshold == 0.2
    assert choose(descend(points, 0.9), 0.9).threshold == 0.6


@given(st.lists(points, min_size=1, max_size=12), st.integers(1, 5))
def test_choose_within_is_the_best_that_is_cheap_enough(all_points: list[OperatingPoint], limit: int):
    cheap = [point for point in all_points if point.mean_steps <= limit]
    if not cheap:
        with pytest.raises(DynamicConfidenceError, match=rf"no threshold takes {limit} mean steps or fewer"):
            choose_within(all_points, limit)
        return
    found = choose_within(all_points, limit)
    assert found in cheap
    for point in cheap:
        assert (found.accuracy, -found.mean_steps, found.threshold) >= (
            point.accuracy,
            -point.mean_steps,
            point.threshold,
        )


def test_a_limit_that_no_threshold_keeps_names_the_nearest():
    candidates = [OperatingPoint(1.0, 16, 0.9), OperatingPoint(0.0, 3.4561, 0.7)]
    message = r"takes 2\.5 mean steps or fewer; the nearest takes 3\.456, with accuracy 70\.00 %.*--max-steps 3\.457\."
    with pytest.raises(DynamicConfidenceError, match=message):
        choose_within(candidates, 2.5)
    assert choose_within(candidates, 3.457).threshold == 0.0
