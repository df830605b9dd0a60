"""The certified threshold: its test against a plain loop, and its promise over many draws of the calibration set."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_confidence.benchmarks.risk_control import synthetic_population
from dynamic_confidence.calib.exits import exit_steps
from dynamic_confidence.calib.policy import Goal, calibrate, sweep
from dynamic_confidence.calib.risk_control import CANDIDATES, capital, certified_points, fewest_images
from dynamic_confidence.calib.thresholds import choose, grid_points
from dynamic_confidence.calib.trace import Trace
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Calibration, Metric


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


def drop(trace: Trace, threshold: float, scale: float) -> float:
    exits = exit_steps(trace.confidence(scale), threshold, trace.last_step)
    return float(trace.correct[:, -1].mean() - trace.correct[np.arange(trace.samples), exits - 1].mean())


def test_the_promise_holds_and_the_naive_choice_breaks_it():
    """Over 200 draws the true drop exceeds what was promised in at most a delta of them."""
    everything, scale, max_drop, delta, draws = synthetic_population(20_000), 4.0, 0.02, 0.2, 200
    true_drop = {threshold: drop(everything, threshold, scale) for threshold in (1.0, *CANDIDATES)}
    generator = np.random.default_rng(1)
    broken, naive, early = 0, 0, 0
    for _ in range(draws):
        seen = everything.subset(generator.choice(everything.samples, 300, replace=False))
        certified = certified_points(seen, scale, max_drop, delta)[-1].threshold
        broken += true_drop[certified] > max_drop
        early += certified < 1.0
        points = grid_points(seen, scale, (1.0, *CANDIDATES))
        baseline = float(seen.correct[:, -1].mean())
        naive += true_drop[choose(points, baseline, max_drop).threshold] > max_drop
    assert broken <= delta * draws
    assert early > draws / 2  # it does find thresholds that save steps
    assert naive > delta * draws  # what it is there for


@pytest.mark.parametrize("noisy", [False, True])
def test_a_loss_just_at_the_limit_is_rarely_certified(noisy: bool):
    """The hardest case, a mean loss of exactly max_drop: in a delta of the draws at most."""
    max_drop, delta, draws, samples = 0.05, 0.2, 1000, 400
    chances = [0.15, 0.65, 0.2] if noisy else [0.0, 0.95, 0.05]
    generator = np.random.default_rng(2)
    reached = sum(
        capital(generator.choice([-1.0, 0.0, 1.0], samples, p=chances), max_drop, delta) >= 1 / delta
        for _ in range(draws)
    )
    assert 0 < reached <= delta * draws


def test_samples_that_come_class_by_class_certify_nothing_wrong():
    """Ten classes, of which the last alone loses: the first nine must not win the bet for it."""
    samples, steps, max_drop = 3000, 4, 0.03
    truth = np.repeat(np.arange(10), samples // 10)
    logits = np.zeros((samples, steps, 10), np.float32)
    logits[np.arange(samples), :, truth] = 5.0
    early_wrong = (truth == 9) & (np.random.default_rng(3).random(samples) < 0.5)
    logits[early_wrong, :-1, 0] = 20.0
    trace = Trace(logits, truth, np.full(samples, steps))
    assert drop(trace, 0.5, 1.0) == pytest.approx(early_wrong.mean())
    assert early_wrong.mean() > max_drop
    loss = early_wrong.astype(float)
    assert capital(loss, max_drop, 0.1) > 10  # in this order it would be certified
    assert [point.threshold for point in certified_points(trace, 1.0, max_drop, 0.1)] == [1.0]


def test_the_best_of_several_alphas_keeps_the_promise():
    """Each alpha gets its share of delta, so that the luckiest one breaks the promise no more often than one alone."""
    everything, goal, draws = synthetic_population(20_000), Goal("certified", 0.02, delta=0.2), 100
    alphas = (1.0, 2.0, 4.0, 8.0)
    generator = np.random.default_rng(4)
    broken, early = 0, 0
    for _ in range(draws):
        seen = everything.subset(generator.choice(everything.samples, 300))
        calibration = sweep(seen, Calibration(alpha=1.0), alphas, goal).calibration
        broken += drop(everything, calibration.threshold, calibration.scale) > goal.max_drop
        early += calibration.threshold < 1.0
    assert broken <= goal.delta * draws
    assert early > draws / 4


def test_a_sweep_tests_each_alpha_at_its_share_of_delta():
    trace, goal, alphas = synthetic_population(1000), Goal("certified", 0.02, delta=0.2), (1.0, 2.0, 4.0, 8.0)
    report = sweep(trace, Calibration(alpha=1.0), alphas, goal)
    expected = [certified_points(trace, alpha, 0.02, 0.05)[-1] for alpha in alphas]
    assert expected != [certified_points(trace, alpha, 0.02, 0.2)[-1] for alpha in alphas]
    assert [(p.threshold, p.mean_steps, p.accuracy) for p in report.sweep] == [
        (p.threshold, p.mean_steps, p.accuracy) for p in expected
    ]
    assert report.calibration.rule == "certified, max drop 0.02, delta 0.2, best of 4 alphas"


def test_the_first_threshold_that_fails_ends_the_sequence():
    """Right at step 1 with a confidence of 0.6, wrong at step 2 with 0.9, then right: low thresholds lose nothing."""
    samples, steps = 2000, 3
    logits = np.zeros((samples, steps, 2), np.float32)
    logits[:, 0, 0], logits[:, 1, 1], logits[:, 2, 0] = np.log(0.6 / 0.4), np.log(0.9 / 0.1), 9.0
    trace = Trace(logits, np.zeros(samples, np.int64), np.full(samples, steps))
    assert [drop(trace, threshold, 1.0) for threshold in (0.95, 0.8, 0.5)] == [0.0, 1.0, 0.0]
    assert certified_points(trace, 1.0, 0.02, 0.1)[-1].threshold > 0.895


@pytest.mark.parametrize("metric", [name for name in get_args(Metric) if name != "max-softmax"])
def test_every_metric_can_be_certified(metric: Metric):
    everything = synthetic_population(20_000)
    points = certified_points(everything.subset(np.arange(3000)), 4.0, 0.05, 0.1, 2, metric)
    assert points[-1].threshold < 1.0
    exits = exit_steps(everything.scores(4.0, metric), points[-1].threshold, everything.last_step, 2)
    right = everything.correct[np.arange(everything.samples), exits - 1]
    assert everything.correct[:, -1].mean() - right.mean() <= 0.05


@pytest.mark.parametrize("max_drop", [0.005, 0.02, 0.3, 1.0])
def test_fewest_images_is_the_first_number_that_can_be_certified(max_drop: float):
    fewest = fewest_images(max_drop, 0.1)
    enough = [capital(np.zeros(n), max_drop, 0.1) >= 10 for n in range(1, fewest + 50)]
    assert enough == [False] * (fewest - 1) + [True] * 50


def test_more_data_certifies_lower_thresholds():
    everything = synthetic_population(20_000)
    lowest = [
        certified_points(everything.subset(np.arange(n)), 4.0, 0.02, 0.1)[-1].threshold for n in (50, 250, 20_000)
    ]
    assert lowest[0] > lowest[1] > lowest[2]
    assert drop(everything, lowest[2], 4.0) <= 0.02


def test_points_come_in_order_and_begin_with_never():
    points = certified_points(synthetic_population(3000), 4.0, 0.05, 0.1)
    assert [point.threshold for point in points] == [1.0, *CANDIDATES[: len(points) - 1]]
    assert len(points) > 5
    steps = [point.mean_steps for point in points]
    assert steps == sorted(steps, reverse=True)


def test_a_network_that_gets_worse_when_it_stops_early_hardly_may():
    trace = synthetic_population(500)
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
        certified_points(synthetic_population(10), 4.0, max_drop, delta)


def test_the_calibration_says_what_was_promised():
    report = calibrate(synthetic_population(3000), Calibration(alpha=4.0), Goal("certified", 0.02, delta=0.05))
    assert report.calibration.rule == "certified, max drop 0.02, delta 0.05"
    assert report.calibration.threshold == report.chosen.threshold in CANDIDATES
    assert report.chosen.mean_steps < report.baseline_steps
