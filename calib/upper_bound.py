"""The oracle: how accurate an exit rule could be that knows which answers are right."""

from __future__ import annotations

import numpy as np

from ..runtime.errors import DynamicConfidenceError
from .trace import check_last_step


def upper_bound(correct: np.ndarray, last_step: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return mean steps and accuracy of the oracle that stops at the first right answer, for every cap j = 1..T.

        A_j = fraction of samples with a right answer at any t <= min(j, last_step)
        L_j = mean_i min(j, first right step of i, or last_step_i if it is never right)
            = 1 + sum_{k<j} (1 - A_k)   when last_step is T for all (or None)

    No exit rule with the same cap is more accurate. At the same *mean steps* one can be: the oracle runs samples that
    are never right up to the cap, where another rule may give them up early.
    Shapes: correct `[sample, step]` bool, last_step `[sample]` (steps counted from 1) -> steps `[cap]`,
    accuracy `[cap]` (a fraction). Raises DynamicConfidenceError for shapes that do not match.
    Source: Dynamic Confidence, section 5.3.2.
    """
    steps, right = upper_bound_sums(correct, last_step)
    return steps / len(correct), right / len(correct)


def upper_bound_sums(correct: np.ndarray, last_step: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return `upper_bound` times the number of samples: whole numbers int64 `[cap]`, so that parts add up exactly."""
    if correct.ndim != 2 or 0 in correct.shape:
        raise DynamicConfidenceError(
            f"correct has shape {correct.shape}, expected [sample, step] with neither empty; use Trace.correct"
        )
    samples, steps = correct.shape
    ends = np.full(samples, steps) if last_step is None else last_step
    check_last_step(ends, samples, steps)
    step = np.arange(1, steps + 1)
    right = correct & (step <= ends[:, None])
    solved = right.any(axis=1)
    stop = np.where(solved, right.argmax(axis=1) + 1, ends)
    return np.minimum(stop[:, None], step).sum(axis=0), (solved[:, None] & (stop[:, None] <= step)).sum(axis=0)
