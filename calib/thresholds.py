"""The threshold th_c: what every threshold costs and gives on a trace, and which one to take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..runtime.errors import DynamicConfidenceError
from ..runtime.manifest import Metric
from .exits import check_min_step, exit_steps
from .trace import Trace, check_last_step

PAPER_GRID = tuple(k / 10 for k in range(11))
"""The paper's candidates 0, 0.1, ..., 1 (section 5.3.3)."""
TOLERANCE = 1e-12
"""Decimal fractions do not subtract exactly (0.8 - 0.1 > 0.7); no two accuracies lie this close to each other."""
MIN_WIDTH = 1e-6
"""Ten units in the last place of a float32 just below 1."""


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and the mean exit step (in steps) and accuracy (a fraction) that it gave."""

    threshold: float
    mean_steps: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Scan:
    """Every behaviour that any threshold can give, from never exiting early (row 0) down to threshold 0.

    Shapes: all `[row]` float64. A row is valid for every threshold in [low, high); high of row 0 is infinite.
    mean_steps is in steps and strictly falls, accuracy is a fraction.
    """

    low: np.ndarray
    high: np.ndarray
    mean_steps: np.ndarray
    accuracy: np.ndarray

    @property
    def threshold(self) -> np.ndarray:
        """The threshold to store for each row `[row]`: 1 for row 0, else the middle of its interval.

        The middle, because a threshold on a sample's own confidence would leave that sample's exit to rounding.
        """
        middle = (self.low + self.high) / 2
        # Between neighbouring floats the middle may round up to `high`, which belongs to the row above.
        return np.where(np.isinf(self.high), 1.0, np.where(middle < self.high, middle, self.low))

    def points(self) -> list[OperatingPoint]:
        """Return one operating point per row that an engine can tell apart.

        Engines compute the confidence in float32: an interval narrower than `MIN_WIDTH` would leave exits to its
        rounding.
        """
        wide = self.high - self.low >= MIN_WIDTH
        columns = (self.threshold[wide].tolist(), self.mean_steps[wide].tolist(), self.accuracy[wide].tolist())
        return [OperatingPoint(*row) for row in zip(*columns, strict=True)]


def fixed_accuracy(trace: Trace) -> np.ndarray:
    """Return the accuracy (a fraction) when all samples stop at step t = 1..T: `[step]`; the last is the baseline."""
    return trace.correct.mean(axis=0)


def grid_points(
    trace: Trace,
    scale: float,
    thresholds: Sequence[float] = PAPER_GRID,
    min_step: int = 1,
    metric: Metric = "max-softmax",
) -> list[OperatingPoint]:
    """Return the operating point of each threshold on the trace, with scale = alpha * tau.

    Raises DynamicConfidenceError for a scale that is not positive or a min_step below 1.
    Source: Dynamic Confidence, section 5.3.3 (grid search on the validation set).
    """
    scores, correct = trace.scores(scale, metric), trace.correct
    points = []
    for threshold in thresholds:
        exits = exit_steps(scores, threshold, trace.last_step, min_step)
        right = correct[np.arange(trace.samples), exits - 1]
        points.append(OperatingPoint(threshold, float(exits.mean()), float(right.mean())))
    return points


def exact_scan(scores: np.ndarray, correct: np.ndarray, last_step: np.ndarray, min_step: int = 1) -> Scan:
    """Return the mean steps and accuracy of every threshold in [0, 1] at once, without a grid.

        exit_i(th) = min(last_step_i, first t >= min_step with M_it > th),  M_it = max score of i over min_step..t

    A sample's exit changes only where th passes a record of M. Visiting all records in descending order, each moves its
    sample from its next later record (or last_step) to its own step. Cost O(N T + R log R) for R <= N (T - 1) records,
    so O(N T log(N T)) at most.
    Shapes: scores `[sample, step]` within 0..1, such as confidences, correct `[sample, step]` bool, last_step
    `[sample]` (from 1).
    Raises DynamicConfidenceError for shapes that do not match or scores outside 0..1.
    Source: derived from Dynamic Confidence, section 5.3.3, whose grid of 11 thresholds this refines.
    """
    if scores.ndim != 2 or 0 in scores.shape or scores.shape != correct.shape:
        raise DynamicConfidenceError(
            f"scores have shape {scores.shape} and correct {correct.shape}, expected the same [sample, step], "
            "not empty; take both from the same trace"
        )
    samples, steps = scores.shape
    check_last_step(last_step, samples, steps)
    check_min_step(min_step)
    if not ((scores >= 0) & (scores <= 1)).all():
        raise DynamicConfidenceError(
            "scores hold values outside 0..1 or NaN, expected those of an exit metric; use Trace.scores(scale, metric)"
        )
    step = np.arange(1, steps + 1)
    running = np.maximum.accumulate(np.where(step >= min_step, scores, 0.0), axis=1)
    is_record = (np.diff(running, axis=1, prepend=0.0) > 0) & (step < last_step[:, None])
    sample, at = np.nonzero(is_record)
    later = last_step[sample] - 1
    followed = np.flatnonzero(sample[1:] == sample[:-1])
    later[followed] = at[followed + 1]
    record = running[sample, at]

    order = np.argsort(-record)
    right = correct.astype(np.int64)
    at_end = right[np.arange(samples), last_step - 1].sum()
    # Row 0, before any record: all samples run to their last step. Whole numbers until the division keep it exact.
    value = np.append(np.inf, record[order])
    total_steps = np.append(last_step.sum(), (at - later)[order]).cumsum()
    total_right = np.append(at_end, (right[sample, at] - right[sample, later])[order]).cumsum()
    row = np.flatnonzero(np.append(value[1:] != value[:-1], True))
    high = value[row]
    return Scan(np.append(high[1:], 0.0), high, total_steps[row] / samples, total_right[row] / samples)


def _cheapest_first(point: OperatingPoint) -> tuple[float, float, float]:
    return point.mean_steps, -point.accuracy, -point.threshold


def pareto_front(points: Iterable[OperatingPoint]) -> list[OperatingPoint]:
    """Return the points that no cheaper or equally cheap point matches in accuracy, by increasing mean steps.

    Accuracy strictly increases along the result; of points that are equal in both, the highest threshold stays.
    Source: Dynamic Confidence, section 5.3 (Pareto front of accuracy and latency).
    """
    front: list[OperatingPoint] = []
    for point in sorted(points, key=_cheapest_first):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def descend(points: Iterable[OperatingPoint], baseline_accuracy: float, max_drop: float = 0.0) -> list[OperatingPoint]:
    """Return the points, from threshold 1 downwards, before the first whose accuracy is below baseline - max_drop.

    Below a first loss some lower threshold may look lossless again by luck of the sample; such points are left out.
    Shapes and errors as for `choose`, which picks among what is returned.
    Source: ours; the order of testing is that of fixed-sequence testing (Learn then Test, arXiv 2110.01052).
    """
    safe = []
    for point in sorted(points, key=lambda point: -point.threshold):
        if point.accuracy < baseline_accuracy - max_drop - TOLERANCE:
            break
        safe.append(point)
    return safe


def choose(points: Iterable[OperatingPoint], baseline_accuracy: float, max_drop: float = 0.0) -> OperatingPoint:
    """Return the point with the fewest mean steps whose accuracy is at least `baseline_accuracy - max_drop`.

    All accuracies are fractions. Equal steps: the more accurate point, then the higher threshold.
    Raises DynamicConfidenceError for a negative max_drop and when no point is accurate enough.
    Source: Dynamic Confidence, section 5.3.3.
    """
    if not max_drop >= 0:
        raise DynamicConfidenceError(f"max_drop is {max_drop}, expected 0 or more; write 0.005 for half a point")
    points = list(points)
    needed = baseline_accuracy - max_drop - TOLERANCE
    accurate = [point for point in points if point.accuracy >= needed]
    if not accurate:
        best = max((point.accuracy for point in points), default=float("nan"))
        raise DynamicConfidenceError(
            f"none of {len(points)} thresholds reaches accuracy {baseline_accuracy - max_drop:.4f} (best {best:.4f}); "
            "include threshold 1, which never exits early, or allow a larger max_drop"
        )
    return min(accurate, key=_cheapest_first)


def choose_within(points: Iterable[OperatingPoint], max_mean_steps: float) -> OperatingPoint:
    """Return the most accurate point whose mean steps are at most `max_mean_steps`.

    Equal accuracy: the fewer steps, then the higher threshold.
    Raises DynamicConfidenceError when no point is cheap enough; it names the cheapest.
    """
    points = list(points)
    affordable = [point for point in points if point.mean_steps <= max_mean_steps]
    if not affordable:
        nearest = min(points, key=_cheapest_first)
        raise DynamicConfidenceError(
            f"no threshold takes {max_mean_steps:g} mean steps or fewer; the nearest takes {nearest.mean_steps:.4g}, "
            f"with accuracy {100 * nearest.accuracy:.2f} %. Allow that: --max-steps {_rounded_up(nearest.mean_steps)}."
        )
    return min(affordable, key=lambda point: (-point.accuracy, *_cheapest_first(point)))


def _rounded_up(steps: float) -> str:
    return f"{math.ceil(steps * 1000) / 1000:g}"
