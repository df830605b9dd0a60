"""Temperature scaling against a plain softmax, a dense grid, and data drawn at a known temperature."""

from __future__ import annotations

import numpy as np
import pytest

from dynamic_confidence.calib.temperature import BOUNDS, fit_temperature, negative_log_likelihood
from dynamic_confidence.runtime.errors import DynamicConfidenceError


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    weights = np.exp(np.asarray(logits, np.float64) / temperature)
    return weights / weights.sum(axis=1, keepdims=True)


def sampled(samples: int, temperature: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(samples, 5))
    chance = softmax(logits, temperature).cumsum(axis=1)
    return logits, np.minimum((rng.random((samples, 1)) > chance).sum(axis=1), 4)


def test_likelihood_is_its_definition():
    logits, label = sampled(50, 1.0, 0)
    expected = -np.log(softmax(logits, 1.7)[np.arange(50), label]).mean()
    assert negative_log_likelihood(logits, label, 1.7) == pytest.approx(expected, rel=1e-12)


def test_likelihood_survives_huge_logits():
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], np.float32)
    assert negative_log_likelihood(logits, np.array([0, 0]), 0.05) == pytest.approx(1e5)


@pytest.mark.parametrize("seed", range(5))
def test_fit_equals_a_dense_grid(seed: int):
    logits, label = sampled(300, [0.3, 0.7, 1.0, 3.0, 8.0][seed], seed)
    fitted = fit_temperature(logits, label)
    grid = np.exp(np.linspace(np.log(fitted / 1.5), np.log(fitted * 1.5), 401))
    losses = [negative_log_likelihood(logits, label, float(t)) for t in grid]
    assert negative_log_likelihood(logits, label, fitted) <= min(losses) + 1e-12
    assert fitted == pytest.approx(grid[np.argmin(losses)], rel=0.003)
    everywhere = np.exp(np.linspace(np.log(BOUNDS[0]), np.log(BOUNDS[1]), 200))
    assert min(negative_log_likelihood(logits, label, float(t)) for t in everywhere) >= min(losses)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_fit_recovers_the_temperature_of_sampled_data(temperature: float):
    logits, label = sampled(20_000, temperature, 7)
    assert fit_temperature(logits, label) == pytest.approx(temperature, rel=0.04)


def test_fit_scales_with_the_logits():
    logits, label = sampled(500, 1.5, 8)
    assert fit_temperature(2 * logits, label) == pytest.approx(2 * fit_temperature(logits, label), rel=1e-5)


def test_there_is_no_temperature_where_every_answer_is_right_or_wrong():
    logits = np.eye(3) * 4
    assert fit_temperature(logits, np.arange(3)) is None
    assert fit_temperature(logits, np.array([1, 2, 0])) is None


GOOD = np.zeros((2, 3)), np.array([0, 1])


@pytest.mark.parametrize(
    ("logits", "label", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, np.int64), r"logits have shape \(0, 3\), expected .* of at least one sample"),
        (
            np.zeros(3),
            np.array([0]),
            r"logits have shape \(3,\), expected \[sample, class\] with neither empty; pass",
        ),
        (GOOD[0], np.array([0]), r"labels have shape \(1,\) .* expected \(2,\) whole numbers; give one class index"),
        (GOOD[0], np.array([0.0, 1.0]), r"labels .* type float64, expected \(2,\) whole numbers"),
        (GOOD[0], np.array([0, 3]), r"labels lie in 0\.\.3, expected 0\.\.2; use the data set"),
        (
            np.array([[np.nan, 0.0]]),
            np.array([0]),
            r"logits hold NaN or infinity, expected finite .*; check the im",
        ),
    ],
)
def test_bad_data_is_refused(logits: np.ndarray, label: np.ndarray, message: str):
    for call in (
        fit_temperature,
        lambda z, y: negative_log_likelihood(z, y, 1.0),
    ):
        with pytest.raises(DynamicConfidenceError, match=message):
            call(logits, label)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature_must_be_positive(temperature: float):
    with pytest.raises(DynamicConfidenceError, match=r"temperature is .*, expected a positive number; fit one"):
        negative_log_likelihood(*GOOD, temperature)
