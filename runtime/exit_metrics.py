"""Exit metrics: how sure an answer is, as a score in [0, 1]; an input stops at the first score above the threshold."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .confidence import max_softmax
from .errors import DynamicConfidenceError
from .manifest import Metric


class Run(NamedTuple):
    """How often each input has given its last answer in a row."""

    label: np.ndarray
    """int64 `[N]`"""
    length: np.ndarray
    """int64 `[N]`, from 1."""


def score(metric: Metric, logits: np.ndarray, scale: float, run: Run | None) -> tuple[np.ndarray, Run | None]:
    """Return the score of one time step and the run so far; `run` is what the step before returned, None at the first.

    Shapes: accumulated logits `[N, class]` -> `[N]` float64 in 0 … 1; scale = alpha * temperature. Each input's score
    has the same bits in every batch. Logits that are all equal score 0 with the margins and the entropy, and so never
    exit, whatever the threshold.
    Raises: DynamicConfidenceError where a metric compares classes and there is one only.
    Source: docs/adr/0008-exit-metrics.md.
    """
    if metric == "patience":
        run = _longer(run, logits.argmax(axis=-1))
        return patience(run.length), run
    return METRICS[metric](logits, scale), None


def restarted(run: Run | None, rows: np.ndarray) -> Run | None:
    """Return the run with these rows `[n]` as before their first step: another input has taken their place."""
    if run is None:
        return None
    label = run.label.copy()
    label[rows] = -1  # no answer, so the next one starts a run
    return run._replace(label=label)


def softmax_margin(logits: np.ndarray, scale: float) -> np.ndarray:
    """Return how far the two largest softmax probabilities lie apart: p1 - p2 of logits / scale.

    Shapes: logits `[..., class]` -> `[...]` float64. Raises: DynamicConfidenceError for fewer than two classes.
    """
    second = np.exp(-_margin("softmax-margin", logits) / scale)
    return max_softmax(logits, scale) * (1.0 - second)


def logit_margin(logits: np.ndarray, scale: float) -> np.ndarray:
    """Return m / (1 + m) of the margin m = (z1 - z2) / scale between the two largest logits; needs no exponential.

    Shapes: logits `[..., class]` -> `[...]` float64. Raises: DynamicConfidenceError for fewer than two classes.
    """
    return _squash(_margin("logit-margin", logits) / scale)


def entropy(logits: np.ndarray, scale: float) -> np.ndarray:
    """Return one minus the normalised entropy of p = softmax(logits / scale).

        1 - H / log K,   H = -sum_c p_c log p_c = log S - sum_c d_c e^d_c / S,   S = sum_c e^d_c,
        d = (z - max z) / scale

    Shapes: logits `[..., class]` -> `[...]` float64. Raises: DynamicConfidenceError for fewer than two classes.
    Source: the exit rule of SEENN (NeurIPS 2023) and DT-SNN (DAC 2023).
    """
    _check_classes("entropy", logits)
    z = np.asarray(logits, dtype=np.float64)
    d = (z - z.max(axis=-1, keepdims=True)) / scale
    weight = np.exp(d)
    total = weight.sum(axis=-1)
    disorder = np.log(total) - (d * weight).sum(axis=-1) / total
    # Rounding may take the entropy a little above log K.
    return np.maximum(1.0 - disorder / np.log(logits.shape[-1]), 0.0)


def patience(length: np.ndarray) -> np.ndarray:
    """Return r / (1 + r) of the number of repetitions r = length - 1 of an answer: 0, 1/2, 2/3, 3/4, …

    Stopping after n equal answers in a row is any threshold from 1 - 1/(n-1) up to 1 - 1/n.
    Shapes: run length `[...]` from 1 -> `[...]` float64.
    """
    return _squash(length - 1.0)


METRICS: dict[Metric, Callable[[np.ndarray, float], np.ndarray]] = {
    "max-softmax": max_softmax,
    "softmax-margin": softmax_margin,
    "logit-margin": logit_margin,
    "entropy": entropy,
}
"""The metrics of one step's logits. `patience` looks at the steps before, too."""


def _squash(value: np.ndarray) -> np.ndarray:
    return value / (1.0 + value)


def _longer(run: Run | None, label: np.ndarray) -> Run:
    if run is None:
        return Run(label, np.ones(label.shape, np.int64))
    return Run(label, np.where(label == run.label, run.length + 1, 1))


def _margin(metric: Metric, logits: np.ndarray) -> np.ndarray:
    _check_classes(metric, logits)
    second, first = np.moveaxis(np.partition(np.asarray(logits, dtype=np.float64), -2, axis=-1)[..., -2:], -1, 0)
    return first - second


def _check_classes(metric: Metric, logits: np.ndarray) -> None:
    if logits.shape[-1] < 2:
        raise DynamicConfidenceError(
            f"metric {metric} compares classes, but this network has {logits.shape[-1]}: expected 2 or more. Choose "
            "`dc-calibrate --metric max-softmax`."
        )
