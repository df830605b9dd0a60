"""Exit steps against a plain loop, the statistics of exits against their definitions and the published log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_confidence.calib.exits import (
    capped_curve,
    exit_steps,
    histogram,
    saving,
)
from dynamic_confidence.runtime.confidence import max_softmax
from dynamic_confidence.runtime.errors import DynamicConfidenceError

PUBLISHED = Path(__file__).resolve().parents[2] / "../shared/data/published_trace.json"


def first_exit(confidence: list[float], threshold: float, last_step: int, min_step: int) -> int:
    for t, p in enumerate(confidence, start=1):
        if t == last_step or (t >= min_step and p > threshold):
            return t
    raise AssertionError("last_step lies beyond the last step")


def histogram_behind(mean_steps: np.ndarray) -> np.ndarray:
    """P(exit >= j) = L_j - L_{j-1}, L_0 = 0; p_j = P(exit >= j) - P(exit >= j+1). Source: Dynamic Confidence, 5.3.3."""
    return -np.diff(np.diff(mean_steps, prepend=0.0), append=0.0)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_exit_steps_equal_a_plain_loop(data: st.DataObject):
    samples, steps = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    # Few distinct values, so that confidences often equal each other and the threshold.
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    confidence = rng.integers(0, 5, (samples, steps)) / 4
    last_step = rng.integers(1, steps + 1, samples)
    threshold, min_step = data.draw(st.integers(0, 8)) / 8, data.draw(st.integers(1, steps + 1))
    expected = [
        first_exit(row, threshold, int(end), min_step) for row, end in zip(confidence.tolist(), last_step, strict=True)
    ]
    got = exit_steps(confidence, threshold, last_step, min_step)
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == np.int64


def test_threshold_one_never_exits_early_even_when_confidence_saturates():
    confidence = max_softmax(np.full((2, 5, 3), [1000.0, 0, 0]), scale=1)
    assert (confidence == 1).all()
    np.testing.assert_array_equal(exit_steps(confidence, 1.0, np.array([5, 3])), [5, 3])


@pytest.mark.parametrize("classes", [2, 3, 7, 10, 49, 100, 1000])
def test_threshold_one_over_k_does_not_fire_while_all_logits_are_equal(classes: int):
    logits = np.zeros((1, 3, classes))
    logits[0, 2, 0] = 0.1
    assert exit_steps(max_softmax(logits, scale=1), 1 / classes, np.array([3]))[0] == 3
    assert exit_steps(max_softmax(logits[:, 1:], scale=1), 1 / classes, np.array([2]))[0] == 2


def test_min_step_holds_back_an_earlier_exit():
    confidence = np.array([[0.9, 0.1, 0.9, 0.9]])
    exits = [int(exit_steps(confidence, 0.5, np.array([4]), m)[0]) for m in (1, 2, 3, 4, 5)]
    assert exits == [1, 3, 3, 4, 4]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9).flatmap(lambda T: st.tuples(st.just(T), st.lists(st.integers(1, T), min_size=1, max_size=30))))
def test_histogram_is_the_shares_and_is_behind_the_capped_means(case: tuple[int, list[int]]):
    steps, exits = case[0], np.array(case[1])
    fractions = histogram(exits, steps)
    np.testing.assert_array_equal(fractions, [case[1].count(t) / len(case[1]) for t in range(1, steps + 1)])
    curve, _ = capped_curve(np.ones((len(exits), steps), dtype=bool), exits)
    np.testing.assert_allclose(histogram_behind(curve), fractions, atol=1e-12)


def test_capped_curve_is_the_definition():
    rng = np.random.default_rng(1)
    correct, exits = rng.random((20, 7)) < 0.5, rng.integers(1, 8, 20)
    mean_steps, accuracy = capped_curve(correct, exits)
    for cap in range(1, 8):
        stops = [min(int(e), cap) for e in exits]
        assert mean_steps[cap - 1] == sum(stops) / 20
        assert accuracy[cap - 1] == sum(bool(correct[i, t - 1]) for i, t in enumerate(stops)) / 20


def test_capped_curve_of_a_run_that_never_exits_is_the_fixed_accuracy():
    correct = np.random.default_rng(2).random((9, 5)) < 0.5
    mean_steps, accuracy = capped_curve(correct, np.full(9, 5))
    np.testing.assert_array_equal(mean_steps, [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(accuracy, correct.mean(axis=0))


def test_published_log():
    if not PUBLISHED.exists():
        pytest.skip("the published trace (published_trace.json) is not shipped with the repository")
    published = json.loads(PUBLISHED.read_text())["dynamic_confidence"]
    capped_means = np.array(published["mean_steps_when_capped_at_step"])
    fractions = histogram_behind(capped_means)
    np.testing.assert_allclose(100 * fractions[6:12], [0.12, 3.82, 26.70, 29.96, 13.48, 6.32], atol=1e-9)
    np.testing.assert_allclose(fractions[:6], 0, atol=1e-12)
    assert round(100 * fractions[:21].sum(), 2) == 94.97
    assert round(100 * fractions[26], 2) == 3.38

    counts = np.rint(fractions * 10_000).astype(np.int64)
    np.testing.assert_allclose(fractions * 10_000, counts, atol=1e-6)
    assert counts.sum() == 10_000
    exits = np.repeat(np.arange(1, 28), counts)
    curve, _ = capped_curve(np.ones((10_000, 27), dtype=bool), exits)
    np.testing.assert_array_equal(curve.round(4), capped_means)
    assert exits.mean() == 11.5097
    assert round(100 * saving(float(exits.mean()), 27), 1) == 57.4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: exit_steps(np.zeros(3), 0.5, np.array([3])),
            r"scores have shape \(3,\), expected \[sample, step\]",
        ),
        (
            lambda: exit_steps(np.zeros((2, 3)), 0.5, np.array([3])),
            r"last_step has shape \(1,\) .* expected \(2,\)",
        ),
        (lambda: exit_steps(np.zeros((1, 3)), 0.5, np.array([4])), r"last_step lies in 4\.\.4, expected 1\.\.3"),
        (lambda: exit_steps(np.zeros((1, 3)), 0.5, np.array([3]), 0), r"min_step is 0, expected 1 or more; count"),
        (lambda: histogram(np.array([1, 4]), 3), r"exit steps have shape \(2,\) and hold 1\.\.4, .* in 1\.\.3"),
        (lambda: histogram(np.array([], dtype=np.int64), 3), r"hold nothing, expected one or more .*; use exit_steps"),
        (
            lambda: capped_curve(np.ones((2, 3), dtype=bool), np.array([1])),
            r"correct has shape \(2, 3\) and the exit steps \(1,\), .*; take both from the same trace",
        ),
        (
            lambda: capped_curve(np.ones((1, 3), dtype=bool), np.array([0])),
            r"hold 0\.\.0, expected one or more in 1\.\.",
        ),
    ],
)
def test_bad_input_is_refused(call, message: str):
    with pytest.raises(DynamicConfidenceError, match=message):
        call()
