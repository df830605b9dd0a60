"""Choose when to stop, on a trace: the threshold that a rule finds for a target, and the best of several alphas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec
import numpy as np

from ..runtime.errors import DynamicConfidenceError
from ..runtime.manifest import Calibration
from .reliability import Reliability, reliability
from .risk_control import certified_points, check_promise
from .thresholds import (
    OperatingPoint,
    choose,
    choose_within,
    descend,
    exact_scan,
    fixed_accuracy,
    grid_points,
    pareto_front,
)
from .trace import Trace
from .upper_bound import upper_bound

Rule = Literal["safe", "grid", "exact", "certified"]


@dataclass(frozen=True)
class Goal:
    """What the threshold is to achieve: few steps that lose little accuracy, or much accuracy in few steps."""

    rule: Rule = "safe"
    max_drop: float = 0.0
    """Accuracy that may be lost against the last step, a fraction."""
    max_mean_steps: float | None = None
    """The other target: the best accuracy with so many mean steps at most."""
    delta: float = 0.1
    """Probability that a certified threshold breaks its promise."""

    def __post_init__(self) -> None:
        if not self.max_drop >= 0:
            raise DynamicConfidenceError(f"max_drop {self.max_drop:g}: expected a fraction of 0 or more.")
        if self.rule == "certified":
            check_promise(self.max_drop, self.delta)
        if self.max_mean_steps is not None and (self.rule == "certified" or self.max_drop > 0):
            raise DynamicConfidenceError(
                f"mean steps {self.max_mean_steps:g} with rule {self.rule} and max drop {self.max_drop:g}: choose one "
                "target. A limit on the steps promises nothing about accuracy: leave --max-drop out, and take --rule "
                "safe, grid or exact."
            )

    def __str__(self) -> str:
        target = f"max drop {self.max_drop:g}" if self.max_mean_steps is None else f"mean steps {self.max_mean_steps:g}"
        return f"{self.rule}, {target}" + (f", delta {self.delta:g}" if self.rule == "certified" else "")


@dataclass(frozen=True)
class AlphaPoint:
    """What the rule chose for one alpha."""

    alpha: float
    threshold: float
    mean_steps: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """What was chosen, and what there was to choose from."""

    calibration: Calibration
    steps: int
    """T"""
    chosen: OperatingPoint
    front: list[OperatingPoint]
    baseline_steps: float
    """Mean steps without early exit: T, or fewer where a QFFS network falls silent."""
    baseline_accuracy: float
    accuracy_at_step: list[float]
    """When every input stops there."""
    bound_steps: float
    bound_accuracy: float
    """The upper bound: an oracle that stops as soon as the answer is right."""
    reliability_before: Reliability
    """Of the confidences after the last step, at temperature 1."""
    reliability_after: Reliability
    """The same at the temperature of the calibration."""
    sweep: list[AlphaPoint] = field(default_factory=list)
    """What each alpha would have given; empty where only one was tried."""


def calibrate(trace: Trace, current: Calibration, goal: Goal, data_name: str | None = None) -> CalibrationReport:
    """Choose the threshold: the fewest mean steps that lose at most `max_drop` against the last step, or the best
    accuracy with at most `max_mean_steps`. `current` gives alpha, temperature, metric and min_step.

    Rule "grid" looks at the paper's 11 thresholds, "exact" at every one that behaves differently, which gains more on
    the data it sees and fits it more closely; "safe" also looks at every one, but descends from 1 and stops at the
    first that loses accuracy, or that keeps to the mean steps (docs/adr/0004-threshold-rule.md compares them on unseen
    data). "certified" gives a guarantee instead: with probability 1 - delta over the draw of the calibration set, the
    drop on all data like it is at most `max_drop` (`risk_control`).
    Raises: DynamicConfidenceError for a goal that the trace cannot meet.
    Source: Dynamic Confidence, section 5.3.3; the exact scan and the safe descent are ours.
    """
    accuracy = fixed_accuracy(trace)
    baseline = float(accuracy[-1])
    if goal.rule == "certified":
        points = certified_points(trace, current.scale, goal.max_drop, goal.delta, current.min_step, current.metric)
        chosen = points[-1]
    else:
        if goal.rule == "grid":
            points = grid_points(trace, current.scale, min_step=current.min_step, metric=current.metric)
        else:
            scores = trace.scores(current.scale, current.metric)
            points = exact_scan(scores, trace.correct, trace.last_step, current.min_step).points()
        chosen = _chosen(points, goal, baseline)
    bound_steps, bound_accuracy = upper_bound(trace.correct, trace.last_step)
    final = trace.logits[:, -1] / np.float32(current.alpha)
    before, tau = reliability(final, trace.label, 1.0), current.temperature
    return CalibrationReport(
        calibration=msgspec.structs.replace(
            current,
            threshold=chosen.threshold,
            data=data_name,
            samples=trace.samples,
            rule=str(goal),
            expected_accuracy=chosen.accuracy,
            expected_mean_steps=chosen.mean_steps,
        ),
        steps=trace.steps,
        chosen=chosen,
        front=pareto_front(points),
        baseline_steps=float(trace.last_step.mean()),
        baseline_accuracy=baseline,
        accuracy_at_step=accuracy.tolist(),
        bound_steps=float(bound_steps[-1]),
        bound_accuracy=float(bound_accuracy[-1]),
        reliability_before=before,
        reliability_after=before if tau == 1.0 else reliability(final, trace.label, tau),
    )


def sweep(
    trace: Trace, current: Calibration, alphas: Sequence[float], goal: Goal, data_name: str | None = None
) -> CalibrationReport:
    """Calibrate with each alpha and return the best: the fewest mean steps, or with `max_mean_steps` the most accurate.

    With "certified" each alpha is tested at delta / number of alphas (Bonferroni), so that the promise holds for
    whichever is chosen.
    Raises: DynamicConfidenceError as `calibrate`, for no alpha, and for a metric that no alpha changes.
    """
    if not alphas:
        raise DynamicConfidenceError("no alpha to try: give one or more.")
    if len(alphas) > 1 and current.metric == "patience":
        raise DynamicConfidenceError(
            "metric patience counts answers, which no alpha changes: there is nothing to sweep. Leave --alpha out."
        )
    each = replace(goal, delta=goal.delta / len(alphas))
    reports = [
        calibrate(trace, msgspec.structs.replace(current, alpha=float(alpha)), each, data_name) for alpha in alphas
    ]

    def worth(report: CalibrationReport) -> tuple[float, float]:
        steps, wrong = report.chosen.mean_steps, -report.chosen.accuracy
        return (steps, wrong) if goal.max_mean_steps is None else (wrong, steps)

    best = min(reports, key=worth)
    if len(alphas) == 1:
        return best
    tried = [
        AlphaPoint(r.calibration.alpha, r.chosen.threshold, r.chosen.mean_steps, r.chosen.accuracy) for r in reports
    ]
    asked = f"{goal}, best of {len(alphas)} alphas"
    return replace(best, calibration=msgspec.structs.replace(best.calibration, rule=asked), sweep=tried)


def _chosen(points: list[OperatingPoint], goal: Goal, baseline: float) -> OperatingPoint:
    if goal.max_mean_steps is None:
        tried = descend(points, baseline, goal.max_drop) if goal.rule == "safe" else points
        return choose(tried, baseline, goal.max_drop)
    if goal.rule == "safe":
        # The steps alone decide, so the choice is not the luckiest of many accuracies.
        kept = [point for point in points if point.mean_steps <= goal.max_mean_steps]
        points = [max(kept, key=lambda point: point.threshold)] if kept else points
    return choose_within(points, goal.max_mean_steps)
