"""Temperature scaling: the one number tau that makes confidences match how often the answers are right."""

from __future__ import annotations

import math

import numpy as np

from ..runtime.errors import DynamicConfidenceError

BOUNDS = (0.05, 20.0)
"""Smallest and largest temperature that a fit returns."""

_LOG_TOLERANCE = 1e-6
_GOLDEN = (math.sqrt(5) - 1) / 2


def check_logits(logits: np.ndarray, label: np.ndarray) -> None:
    """Raise DynamicConfidenceError unless logits `[sample, class]` are finite and every label is one of the classes."""
    if logits.ndim != 2 or 0 in logits.shape:
        raise DynamicConfidenceError(
            f"logits have shape {logits.shape}, expected [sample, class] with neither empty; "
            "pass the network's final logits of at least one sample"
        )
    samples, classes = logits.shape
    if label.shape != (samples,) or label.dtype.kind not in "iu":
        raise DynamicConfidenceError(
            f"labels have shape {label.shape} and type {label.dtype}, expected ({samples},) whole numbers; "
            "give one class index per sample"
        )
    if not (label.min() >= 0 and label.max() < classes):
        raise DynamicConfidenceError(
            f"labels lie in {label.min()}..{label.max()}, expected 0..{classes - 1}; "
            "use the data set that the network was trained for"
        )
    if not np.isfinite(logits).all():
        raise DynamicConfidenceError(
            "logits hold NaN or infinity, expected finite numbers; check the images and the network"
        )


def check_temperature(temperature: float) -> None:
    """Raise DynamicConfidenceError unless `temperature` is a positive number."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise DynamicConfidenceError(
            f"temperature is {temperature}, expected a positive number; fit one with fit_temperature(logits, label)"
        )


def _below_largest(logits: np.ndarray) -> np.ndarray:
    z = np.asarray(logits, dtype=np.float64)
    return z - z.max(axis=1, keepdims=True)


def _mean_nll(z: np.ndarray, label: np.ndarray, temperature: float) -> float:
    scaled = z / temperature
    return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(label)), label]).mean())


def negative_log_likelihood(logits: np.ndarray, label: np.ndarray, temperature: float) -> float:
    """Return the mean negative log-likelihood of the labels, in nats.

        NLL = -mean_i log softmax(z_i / tau)[label_i]

    Shapes: logits `[sample, class]`, label `[sample]` (class index).
    Raises DynamicConfidenceError for shapes that do not match, logits that are not finite, or tau not positive.
    Source: Guo et al., On Calibration of Modern Neural Networks (2017), used by Dynamic Confidence, section 5.1.
    """
    check_logits(logits, label)
    check_temperature(temperature)
    return _mean_nll(_below_largest(logits), label, temperature)


def fit_temperature(logits: np.ndarray, label: np.ndarray) -> float | None:
    """Return the temperature that minimises the mean negative log-likelihood; None where there is none in `BOUNDS`.

        tau = argmin NLL(tau)

    NLL is convex in 1/tau, so it has one valley over log tau too, which a golden-section search finds (relative
    tolerance 1e-6). There is none when every answer is right, for example: ever sharper is then ever better.
    Shapes: logits `[sample, class]` (of the quantised network, or accumulated / alpha), label `[sample]`.
    Raises DynamicConfidenceError for no samples, shapes that do not match, or logits that are not finite.
    Source: Dynamic Confidence, section 5.1 and steps 1-2 of section 6.1 (Guo et al. 2017).
    """
    check_logits(logits, label)
    z = _below_largest(logits)

    def loss(log_tau: float) -> float:
        return _mean_nll(z, label, math.exp(log_tau))

    low, high = math.log(BOUNDS[0]), math.log(BOUNDS[1])
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    loss_left, loss_right = loss(left), loss(right)
    while high - low > _LOG_TOLERANCE:
        if loss_left <= loss_right:
            high, right, loss_right = right, left, loss_left
            left = high - _GOLDEN * (high - low)
            loss_left = loss(left)
        else:
            low, left, loss_left = left, right, loss_right
            right = low + _GOLDEN * (high - low)
            loss_right = loss(right)
    fitted = (low + high) / 2
    at_a_bound = min(fitted - math.log(BOUNDS[0]), math.log(BOUNDS[1]) - fitted) < 10 * _LOG_TOLERANCE
    return None if at_a_bound else math.exp(fitted)
