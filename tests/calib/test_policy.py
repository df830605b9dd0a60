"""Goals, rules and the sweep over alphas: what is chosen is the best by definition, and what makes no sense is said."""

from __future__ import annotations

import numpy as np
import pytest

from dynamic_confidence.calib.policy import Goal, Rule, calibrate, sweep
from dynamic_confidence.calib.thresholds import PAPER_GRID, exact_scan, grid_points
from dynamic_confidence.calib.trace import Trace
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Calibration

STEPS = 8
CURRENT = Calibration(alpha=float(STEPS), temperature=0.5)


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Logits of three classes that drift towards the right one."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, 3, 300)
    drift = 0.35 * np.eye(3)[label][:, None]
    logits = (generator.normal(0, 1, (300, STEPS, 3)) + drift * np.arange(1, STEPS + 1)[None, :, None]).cumsum(axis=1)
    return Trace(logits.astype(np.float32), label, np.full(300, STEPS))


def every_point(trace: Trace, calibration: Calibration = CURRENT) -> list:
    scores = trace.scores(calibration.scale, calibration.metric)
    return exact_scan(scores, trace.correct, trace.last_step, calibration.min_step).points()


@pytest.mark.parametrize("limit", [1.0, 2.5, 4.0, float(STEPS)])
def test_the_best_accuracy_within_a_number_of_mean_steps(trace: Trace, limit: float):
    chosen = calibrate(trace, CURRENT, Goal("exact", max_mean_steps=limit)).chosen
    affordable = [point for point in every_point(trace) if point.mean_steps <= limit]
    assert chosen in affordable
    assert chosen.accuracy == max(point.accuracy for point in affordable)
    gridded = calibrate(trace, CURRENT, Goal("grid", max_mean_steps=limit)).chosen
    assert gridded.threshold in PAPER_GRID
    assert gridded.accuracy == max(p.accuracy for p in grid_points(trace, CURRENT.scale) if p.mean_steps <= limit)


@pytest.mark.parametrize("limit", [1.0, 2.5, 4.0, float(STEPS)])
def test_within_a_number_of_mean_steps_safe_takes_the_highest_threshold(trace: Trace, limit: float):
    """Whatever the labels say, so that the choice does not fit them."""
    report = calibrate(trace, CURRENT, Goal(max_mean_steps=limit))
    affordable = [point for point in every_point(trace) if point.mean_steps <= limit]
    assert report.chosen.threshold == max(point.threshold for point in affordable)
    other = calibrate(
        Trace(trace.logits, trace.label[::-1].copy(), trace.last_step), CURRENT, Goal(max_mean_steps=limit)
    )
    assert other.chosen.threshold == report.chosen.threshold
    assert report.calibration.rule == f"safe, mean steps {limit:g}"


@pytest.mark.parametrize("rule", ["safe", "grid", "exact"])
def test_a_number_of_steps_that_no_threshold_keeps(trace: Trace, rule: Rule):
    current = Calibration(alpha=float(STEPS), min_step=4)
    message = (
        r"no threshold takes 3 mean steps or fewer; the nearest takes 4, with accuracy \d\d\.\d\d %.*--max-steps 4\."
    )
    with pytest.raises(DynamicConfidenceError, match=message):
        calibrate(trace, current, Goal(rule, max_mean_steps=3.0))


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        (lambda: Goal(max_drop=-0.1), r"max_drop -0\.1: expected a fraction of 0 or more"),
        (lambda: Goal(max_drop=float("nan")), "max_drop nan: expected a fraction"),
        (lambda: Goal("certified"), "a drop of 0 points: a certified threshold must be allowed to lose something"),
        (lambda: Goal("certified", 0.01, delta=1.5), r"delta 1\.5: expected a probability"),
        (
            lambda: Goal("certified", 0.01, max_mean_steps=3),
            r"mean steps 3 with rule certified and max drop 0\.01: choose one target.*--rule safe, grid or exact",
        ),
        (lambda: Goal("exact", 0.01, max_mean_steps=3), r"mean steps 3 with rule exact .*leave --max-drop out"),
    ],
)
def test_goals_that_make_no_sense(goal, message: str):
    with pytest.raises(DynamicConfidenceError, match=message):
        goal()


@pytest.mark.parametrize("metric", ["softmax-margin", "logit-margin", "entropy", "patience"])
@pytest.mark.parametrize("rule", ["safe", "grid", "exact"])
def test_other_metrics_are_calibrated_by_the_same_rules(trace: Trace, metric, rule: Rule):
    report = calibrate(trace, Calibration(alpha=float(STEPS), metric=metric, min_step=2), Goal(rule, 0.1))
    assert report.calibration.metric == metric
    assert report.calibration.min_step == 2
    assert report.chosen.accuracy >= report.baseline_accuracy - 0.1
    assert 2 <= report.chosen.mean_steps < STEPS
    assert report.chosen in report.front


def test_a_sweep_takes_the_alpha_with_the_fewest_steps(trace: Trace):
    alphas = (2.0, 4.0, 8.0, 16.0)
    report = sweep(trace, CURRENT, alphas, Goal("exact"), "here")
    alone = [calibrate(trace, Calibration(a, temperature=0.5), Goal("exact"), "here") for a in alphas]
    assert [(p.alpha, p.threshold, p.mean_steps, p.accuracy) for p in report.sweep] == [
        (a, r.chosen.threshold, r.chosen.mean_steps, r.chosen.accuracy) for a, r in zip(alphas, alone, strict=True)
    ]
    best = min(alone, key=lambda r: r.chosen.mean_steps)
    assert len({r.chosen.mean_steps for r in alone}) == 4
    assert report.chosen == best.chosen
    assert report.calibration.alpha == best.calibration.alpha
    assert report.calibration.temperature == 0.5
    assert report.calibration.rule == "exact, max drop 0, best of 4 alphas"
    assert report.reliability_after == best.reliability_after


def test_a_sweep_for_few_steps_takes_the_alpha_with_the_best_accuracy(trace: Trace):
    report = sweep(trace, CURRENT, (1.0, 4.0, 16.0), Goal("exact", max_mean_steps=3.0))
    assert report.chosen.accuracy == max(point.accuracy for point in report.sweep)
    assert report.chosen.mean_steps <= 3.0


def test_one_alpha_is_no_sweep(trace: Trace):
    report = sweep(trace, CURRENT, (4.0,), Goal())
    assert report.sweep == []
    assert report.calibration.rule == "safe, max drop 0"
    assert report.calibration.alpha == 4.0


def test_sweeps_that_make_no_sense(trace: Trace):
    with pytest.raises(DynamicConfidenceError, match="no alpha to try: give one or more"):
        sweep(trace, CURRENT, (), Goal())
    patient = Calibration(alpha=8.0, metric="patience")
    with pytest.raises(DynamicConfidenceError, match=r"metric patience counts answers.*Leave --alpha out"):
        sweep(trace, patient, (4.0, 8.0), Goal())
    assert sweep(trace, patient, (4.0,), Goal()).calibration.metric == "patience"


def test_reliability_is_that_of_the_last_step(trace: Trace):
    report = calibrate(trace, CURRENT, Goal())
    assert (report.reliability_before.temperature, report.reliability_after.temperature) == (1.0, 0.5)
    final = trace.logits[:, -1].astype(np.float64) / STEPS
    for found in (report.reliability_before, report.reliability_after):
        chance = np.exp(final / found.temperature)
        chance /= chance.sum(axis=1, keepdims=True)
        assert found.nll == pytest.approx(-np.log(chance[np.arange(300), trace.label]).mean(), rel=1e-6)
        bins = np.ceil(chance.max(axis=1) * 15)
        right = chance.argmax(axis=1) == trace.label
        apart = [abs((right - chance.max(axis=1))[bins == b].sum()) for b in range(1, 16)]
        assert found.ece == pytest.approx(sum(apart) / 300, rel=1e-6)
