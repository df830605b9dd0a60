"""Exit statistics: when each sample stops under a threshold, and what that costs and gives."""

from __future__ import annotations

import numpy as np

from ..runtime.errors import DynamicConfidenceError
from ..runtime.manifest import Calibration
from .trace import Trace, check_last_step


def check_min_step(min_step: int) -> None:
    """Raise DynamicConfidenceError unless `min_step`, the first step allowed to exit, is at least 1."""
    if min_step < 1:
        raise DynamicConfidenceError(f"min_step is {min_step}, expected 1 or more; count steps from 1")


def exit_steps(scores: np.ndarray, threshold: float, last_step: np.ndarray, min_step: int = 1) -> np.ndarray:
    """Return the step at which each sample stops.

        exit_i = min(last_step_i, first t >= min_step with score_it > threshold)

    Strictly greater: a threshold of 1 never exits early, and 1/K does not fire while all K logits are equal.
    Shapes: scores `[sample, step]`, such as confidences, last_step `[sample]` -> `[sample]` int64, in steps from 1.
    Raises DynamicConfidenceError for shapes that do not match or steps not counted from 1.
    Source: Dynamic Confidence, section 5.3.
    """
    if scores.ndim != 2:
        raise DynamicConfidenceError(
            f"scores have shape {scores.shape}, expected [sample, step]; use Trace.scores(scale, metric)"
        )
    samples, steps = scores.shape
    check_last_step(last_step, samples, steps)
    check_min_step(min_step)
    fires = (scores > threshold) & (np.arange(1, steps + 1) >= min_step)
    first = np.where(fires.any(axis=1), fires.argmax(axis=1) + 1, steps)
    return np.minimum(first, last_step).astype(np.int64)


def replay(trace: Trace, calibration: Calibration) -> np.ndarray:
    """Return the step `[sample]` at which a network with this calibration stops each sample of its trace.

    Raises DynamicConfidenceError as `Trace.scores` and `exit_steps`.
    """
    scores = trace.scores(calibration.scale, calibration.metric)
    return exit_steps(scores, calibration.threshold, trace.last_step, calibration.min_step)


def _check_exits(exits: np.ndarray, steps: int) -> None:
    if exits.ndim != 1 or exits.size == 0 or exits.min() < 1 or exits.max() > steps:
        got = f"{exits.min()}..{exits.max()}" if exits.size else "nothing"
        raise DynamicConfidenceError(
            f"exit steps have shape {exits.shape} and hold {got}, expected one or more in 1..{steps} per sample; "
            "use exit_steps(...) with the same number of steps"
        )


def histogram(exits: np.ndarray, steps: int) -> np.ndarray:
    """Return the fraction of samples that stop at each step 1..T (`steps`): `[sample]` -> `[step]` float64.

    Raises DynamicConfidenceError for exit steps outside 1..T. Source: Dynamic Confidence, Figure 4.
    """
    _check_exits(exits, steps)
    return np.bincount(exits, minlength=steps + 1)[1:] / exits.size


def capped_curve(correct: np.ndarray, exits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the curve of one threshold: mean steps and accuracy when every sample is also stopped at step j = 1..T.

        L_j = mean_i min(exit_i, j);  A_j = mean_i correct[i, min(exit_i, j)]

    Shapes: correct `[sample, step]` bool, exits `[sample]` -> steps `[cap]`, accuracy `[cap]` (a fraction).
    Raises DynamicConfidenceError for shapes that do not match or exit steps outside 1..T.
    Source: Dynamic Confidence, section 5.3.3.
    """
    steps, right = capped_sums(correct, exits)
    return steps / len(exits), right / len(exits)


def capped_sums(correct: np.ndarray, exits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `capped_curve` times the number of samples: whole numbers int64 `[cap]`, so that parts add up exactly."""
    if correct.ndim != 2 or correct.shape[:1] != exits.shape:
        raise DynamicConfidenceError(
            f"correct has shape {correct.shape} and the exit steps {exits.shape}, "
            "expected [sample, step] and [sample]; take both from the same trace"
        )
    steps = correct.shape[1]
    _check_exits(exits, steps)
    stop = np.minimum(exits[:, None], np.arange(1, steps + 1))
    return stop.sum(axis=0), np.take_along_axis(correct, stop - 1, axis=1).sum(axis=0)


def saving(mean_steps: float, steps: int) -> float:
    """Return the fraction of time steps saved against always running T (`steps`): 1 - mean / T.

    Source: Dynamic Confidence, Table 1.
    """
    return 1.0 - mean_steps / steps
