"""Accuracy over what it costs, in steps and in milliseconds: the curves of an evaluation and their Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

Point = tuple[float, float]
"""Cost (steps or ms) and accuracy (a fraction)."""


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Return the points that no cheaper or equally cheap one matches in accuracy, by increasing cost."""
    front: list[Point] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def milliseconds_of(mean_steps: Sequence[float], step_ms: Sequence[float]) -> list[float]:
    """Return the mean time until the answer of an exit rule with each cap j, from its mean steps L_j.

        share of images that reach step j = L_j - L_{j-1};  time with cap j = sum_{i<=j} share_i (ms_i - ms_{i-1})

    For it is the mean over images of ms[min(exit, j)], added up step by step.
    Shapes: mean_steps `[cap]`, step_ms `[step]`, the time at which the answer of a step is there -> `[cap]`, ms.
    Raises: ValueError for lengths that differ.
    """
    if len(mean_steps) != len(step_ms):
        raise ValueError(f"{len(mean_steps)} mean steps and the times of {len(step_ms)} steps")
    return np.cumsum(np.diff(mean_steps, prepend=0.0) * np.diff(step_ms, prepend=0.0)).tolist()
