"""The certified threshold: its test against a plain loop, and its promise over many draws of the calibration set."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_confidence.calib.calibrate import calibrate
from dynamic_confidence.calib.exits import exit_steps
from dynamic_confidence.calib.risk_control import CANDIDATES, capital, certified_points
from dynamic_confidence.calib.thresholds import choose, grid_points
from dynamic_confidence.calib.trace import Trace
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Calibration


def plain_capital(losses: list[float], max_drop: float, delta: float) -> float:
    """The same, sample by sample, as it is written in the paper."""
    m, now, best = (max_drop + 1) / 2, 1.0, 1.0
    seen: list[float] = []
    squares = 0.25
    for i, loss in enumerate(losses):
        x = (loss + 1) / 2
        variance = squares / (i + 1)
        bet = math.sqrt(2 * math.log(1 / delta) / (len(losses) * variance))
        if m < 1:
            bet = min(bet, 0.75 / (1 - m))
        now *= 1 + bet * (m - x)
        best = max(best, now)
        seen.append(x)
        mean = (0.5 + sum(seen)) / (len(seen) + 1)
        squares += (x - mean) ** 2
    return best


@given(
    st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=60),
    st.floats(0.001, 1.0),
    st.floats(0.001, 0.999),
)
def test_the_capital_is_that_of_the_plain_loop(losses: list[float], max_drop: float, delta: float):
    assert capital(np.array(losses), max_drop, delta) == pytest.approx(plain_capital(losses, max_drop, delta), rel=1e-9)


def test_capital_never_turns_negative_or_overflows():
    assert capital(np.ones(100), 0.01, 0.1) == 1.0
    assert math.isfinite(capital(-np.ones(100_000), 1.0, 0.1))


def population(samples: int, seed: int = 0) -> Trace:
    """Logits of two classes that drift from guessing to the answer; some are right early and wrong at the end."""
    generator = np.random.default_rng(seed)
    steps = 8
    truth = generator.integers(0, 2, samples)
    ability = generator.normal(0.9, 1.0, samples)
    walk = np.cumsum(generator.normal(0.0, 1.2, (samples, steps)) + 0.55 * ability[:, None], axis=1)
    logits = np.stack([np.zeros_like(walk), walk], axis=2)
    logits[truth == 0] *= -1
    return Trace(logits.astype(np.float32), truth, np.full(samples, steps))


def drop(trace: Trace, threshold: float, scale: float) -> float:
    exits = exit_steps(trace.confidence(scale), threshold, trace.last_step)
    return float(trace.correct[:, -1].mean() - trace.correct[np.arange(trace.samples), exits - 1].mean())


def part(trace: Trace, rows: np.ndarray) -> Trace:
    return Trace(trace.logits[rows], trace.label[rows], trace.last_step[rows])


def test_the_promise_holds_and_the_naive_choice_breaks_it():
    """Over 200 draws the true drop exceeds what was promised in at most a delta of them."""
    everything, scale, max_drop, delta, draws = population(20_000), 4.0, 0.02, 0.2, 200
    true_drop = {threshold: drop(everything, threshold, scale) for threshold in (1.0, *CANDIDATES)}
    generator = np.random.default_rng(1)
    broken, naive, early = 0, 0, 0
    for _ in range(draws):
        seen = part(everything, generator.choice(everything.samples, 300, replace=False))
        certified = certified_points(seen, scale, max_drop, delta)[-1].threshold
        broken += true_drop[certified] > max_drop
        early += certified < 1.0
        points = grid_points(seen, scale, (1.0, *CANDIDATES))
        baseline = float(seen.correct[:, -1].mean())
        naive += true_drop[choose(points, baseline, max_drop).threshold] > max_drop
    assert broken <= delta * draws
    assert early > draws / 2  # it does find thresholds that save steps
    assert naive > delta * draws  # what it is there for


def test_more_data_certifies_lower_thresholds():
    everything = population(20_000)
    lowest = [certified_points(part(everything, np.arange(n)), 4.0, 0.02, 0.1)[-1].threshold for n in (50, 250, 20_000)]
    assert lowest[0] > lowest[1] > lowest[2]
    assert drop(everything, lowest[2], 4.0) <= 0.02


def test_points_come_in_order_and_begin_with_never():
    points = certified_points(population(3000), 4.0, 0.05, 0.1)
    assert [point.threshold for point in points] == [1.0, *CANDIDATES[: len(points) - 1]]
    assert len(points) > 5
    steps = [point.mean_steps for point in points]
    assert steps == sorted(steps, reverse=True)


def test_a_network_that_gets_worse_when_it_stops_early_hardly_may():
    trace = population(500)
    wrong = Trace(np.concatenate([-trace.logits[:, :-1], trace.logits[:, -1:]], axis=1), trace.label, trace.last_step)
    lowest = certified_points(wrong, 4.0, 0.02, 0.1)[-1].threshold
    assert lowest > 0.9
    assert drop(wrong, lowest, 4.0) <= 0.02


@pytest.mark.parametrize(
    ("max_drop", "delta", "message"),
    [
        (0.0, 0.1, r"a drop of 0 points: a certified threshold must be allowed to lose something"),
        (1.5, 0.1, r"a drop of 150 points"),
        (math.nan, 0.1, r"a drop of nan points"),
        (0.1, 0.0, r"delta 0: expected a probability between 0 and 1"),
        (0.1, 1.0, r"delta 1: expected a probability between 0 and 1"),
    ],
)
def test_promises_that_cannot_be_made(max_drop: float, delta: float, message: str):
    with pytest.raises(DynamicConfidenceError, match=message):
        certified_points(population(10), 4.0, max_drop, delta)


def test_the_calibration_says_what_was_promised():
    report = calibrate(population(3000), Calibration(alpha=4.0), rule="certified", max_drop=0.02, delta=0.05)
    assert report.calibration.rule == "certified, max drop 0.02, delta 0.05"
    assert report.calibration.threshold == report.chosen.threshold in CANDIDATES
    assert report.chosen.mean_steps < report.baseline_steps
