"""The oracle against its definition, and against every threshold under the same cap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_confidence.calib.exits import capped_curve, exit_steps
from dynamic_confidence.calib.upper_bound import upper_bound
from dynamic_confidence.runtime.errors import DynamicConfidenceError


@st.composite
def runs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence, correct and last_step of a few samples; what comes after last_step must not matter."""
    samples, steps = draw(st.integers(1, 8)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    confidence = rng.integers(0, 9, (samples, steps)) / 8
    last_step = rng.integers(1, steps + 1, samples) if draw(st.booleans()) else np.full(samples, steps)
    return confidence, rng.random((samples, steps)) < rng.random((samples, 1)), last_step


@settings(max_examples=100, deadline=None)
@given(runs())
def test_upper_bound_is_its_definition(run: tuple[np.ndarray, np.ndarray, np.ndarray]):
    _, correct, last_step = run
    samples, steps = correct.shape
    mean_steps, accuracy = upper_bound(correct, last_step)
    for cap in range(1, steps + 1):
        used, right = 0, 0
        for i in range(samples):
            stop = min(cap, int(last_step[i]))
            first = next((t for t in range(1, stop + 1) if correct[i, t - 1]), None)
            used += first or stop
            right += first is not None
        assert mean_steps[cap - 1] == used / samples
        assert accuracy[cap - 1] == right / samples


@settings(max_examples=100, deadline=None)
@given(runs())
def test_without_last_step_the_mean_follows_from_the_accuracy(run: tuple[np.ndarray, np.ndarray, np.ndarray]):
    correct = run[1]
    mean_steps, accuracy = upper_bound(correct)
    expected = 1 + np.concatenate([[0.0], (1 - accuracy)[:-1].cumsum()])
    np.testing.assert_allclose(mean_steps, expected, rtol=1e-12)
    with_last_step = upper_bound(correct, np.full(len(correct), correct.shape[1]))
    np.testing.assert_array_equal((mean_steps, accuracy), with_last_step)


@settings(max_examples=100, deadline=None)
@given(runs(), st.integers(0, 8))
def test_no_threshold_is_more_accurate_under_the_same_cap(run: tuple[np.ndarray, np.ndarray, np.ndarray], eighths: int):
    confidence, correct, last_step = run
    exits = exit_steps(confidence, eighths / 8, last_step)
    _, accuracy = capped_curve(correct, exits)
    assert (accuracy <= upper_bound(correct, last_step)[1]).all()

    # Nor is one that answers right earlier than the oracle: only samples it gives up can make it cheaper.
    stops = np.minimum(exits[:, None], np.arange(1, correct.shape[1] + 1))
    right = np.take_along_axis(correct, stops - 1, axis=1)
    first_right = correct.argmax(axis=1) + 1
    assert (stops >= first_right[:, None])[right].all()


def test_the_bound_is_on_accuracy_at_one_cap_not_at_equal_mean_steps():
    never, late = [False] * 4, [False, False, False, True]
    correct = np.array([never, late])
    mean_steps, accuracy = upper_bound(correct)
    np.testing.assert_array_equal(mean_steps, [1, 2, 3, 4])
    np.testing.assert_array_equal(accuracy, [0, 0, 0, 0.5])
    confidence = np.array([[0.9] * 4, [0.1] * 4])
    curve = capped_curve(correct, exit_steps(confidence, 0.5, np.array([4, 4])))
    assert (curve[0][-1], curve[1][-1]) == (2.5, 0.5)


@pytest.mark.parametrize(
    ("correct", "last_step", "message"),
    [
        (np.ones(3, dtype=bool), None, r"correct has shape \(3,\), expected \[sample, step\] .*; use Trace\.correct"),
        (np.ones((0, 3), dtype=bool), None, r"correct has shape \(0, 3\), expected .* with neither empty"),
        (np.ones((2, 3), dtype=bool), np.array([1]), r"last_step has shape \(1,\) .* expected \(2,\)"),
    ],
)
def test_bad_input_is_refused(correct: np.ndarray, last_step: np.ndarray | None, message: str):
    with pytest.raises(DynamicConfidenceError, match=message):
        upper_bound(correct, last_step)
