"""The reliability diagram and the calibration error against their definitions, bin by bin."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_confidence.calib.reliability import expected_calibration_error, reliability, reliability_bins
from dynamic_confidence.calib.temperature import fit_temperature, negative_log_likelihood
from dynamic_confidence.runtime.errors import DynamicConfidenceError


def sampled(samples: int, temperature: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(samples, 5))
    weights = np.exp(logits / temperature)
    chance = (weights / weights.sum(axis=1, keepdims=True)).cumsum(axis=1)
    return logits, np.minimum((rng.random((samples, 1)) > chance).sum(axis=1), 4)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 20), st.floats(0.1, 10))
def test_bins_and_error_are_their_definitions(seed: int, samples: int, bins: int, temperature: float):
    logits, label = sampled(samples, 1.3, seed)
    found = reliability_bins(logits, label, temperature, bins)
    expected, error = [], 0.0
    sure = [1 / sum(math.exp((x - max(row)) / temperature) for x in row) for row in logits.tolist()]
    for b in range(bins):
        inside = [i for i, p in enumerate(sure) if b < p * bins <= b + 1]
        if inside:
            confidence = sum(sure[i] for i in inside) / len(inside)
            accuracy = sum(int(logits[i].argmax() == label[i]) for i in inside) / len(inside)
            expected.append((b / bins, (b + 1) / bins, len(inside), confidence, accuracy))
            error += len(inside) / samples * abs(accuracy - confidence)
    got = [(b.low, b.high, b.count, b.confidence, b.accuracy) for b in found]
    assert [row[:3] for row in got] == [row[:3] for row in expected]
    np.testing.assert_allclose(np.array(got), np.array(expected), rtol=1e-9)
    assert expected_calibration_error(found) == pytest.approx(error, rel=1e-9, abs=1e-12)


def test_a_confidence_of_exactly_one_is_counted():
    bins = reliability_bins(np.array([[1e3, 0.0], [1e3, 0.0]]), np.array([0, 1]), 1.0)
    assert [(b.low, b.high, b.count, b.confidence, b.accuracy) for b in bins] == [(14 / 15, 1.0, 2, 1.0, 0.5)]
    assert expected_calibration_error(bins) == 0.5


def test_bins_are_closed_above():
    logits = np.array([[0.0, 0.0], [1.0, 0.0]])
    bins = reliability_bins(logits, np.array([0, 1]), 1.0, bins=2)
    assert [b.count for b in bins] == [1, 1]  # exactly one half lies in the lower bin
    above = 1 / (1 + np.exp(-1.0))
    assert expected_calibration_error(bins) == pytest.approx(((1 - 0.5) + above) / 2, rel=1e-12)


def test_fitting_lowers_the_calibration_error():
    logits, label = sampled(5000, 2.5, 10)
    before = reliability(logits, label, 1.0)
    fitted = fit_temperature(logits, label)
    assert fitted is not None
    after = reliability(logits, label, fitted)
    assert after.ece < 0.03 < before.ece
    assert after.nll < before.nll
    assert (before.temperature, after.temperature) == (1.0, fitted)
    assert after.nll == negative_log_likelihood(logits, label, fitted)
    assert sum(b.count for b in after.bins) == 5000


def test_bad_data_is_refused():
    good = np.zeros((2, 3)), np.array([0, 1])
    with pytest.raises(DynamicConfidenceError, match="bins is 0, expected 1 or more; 15 is usual"):
        reliability_bins(*good, 1.0, bins=0)
    with pytest.raises(DynamicConfidenceError, match=r"temperature is 0\.0, expected a positive number"):
        reliability_bins(*good, 0.0)
    with pytest.raises(DynamicConfidenceError, match=r"labels have shape \(1,\)"):
        reliability_bins(good[0], np.array([0]), 1.0)
