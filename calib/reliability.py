"""Do confidences match how often the answers are right? Reliability diagram and expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..runtime.confidence import max_softmax
from ..runtime.errors import DynamicConfidenceError
from .temperature import check_logits, check_temperature, negative_log_likelihood

BINS = 15


@dataclass(frozen=True)
class Bin:
    """The samples whose confidence lies in (low, high]: how many, how sure on average, and what fraction is right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Reliability:
    """How far confidences can be believed at one temperature."""

    temperature: float
    nll: float
    """Mean negative log-likelihood of the labels, in nats."""
    ece: float
    """Expected calibration error, a fraction."""
    bins: list[Bin]
    """The reliability diagram; bins without a sample are left out."""


def reliability_bins(logits: np.ndarray, label: np.ndarray, temperature: float, bins: int = BINS) -> list[Bin]:
    """Return count, mean confidence and accuracy of every bin that holds a sample, by increasing confidence.

        B_b: samples with max softmax(z / tau) in ((b-1)/bins, b/bins]

    Shapes: logits `[sample, class]`, label `[sample]`.
    Raises DynamicConfidenceError for shapes that do not match, logits that are not finite, tau not positive, no bins.
    Source: Guo et al. 2017, section 2; used by Dynamic Confidence, section 5.1.
    """
    check_logits(logits, label)
    check_temperature(temperature)
    if bins < 1:
        raise DynamicConfidenceError(f"bins is {bins}, expected 1 or more; {BINS} is usual")
    confidence = max_softmax(logits, temperature)
    index = np.ceil(confidence * bins).astype(np.int64) - 1
    count = np.bincount(index, minlength=bins)
    sure = np.bincount(index, weights=confidence, minlength=bins)
    right = np.bincount(index, weights=logits.argmax(axis=1) == label, minlength=bins)
    return [
        Bin(b / bins, (b + 1) / bins, int(count[b]), float(sure[b] / count[b]), float(right[b] / count[b]))
        for b in np.flatnonzero(count).tolist()
    ]


def expected_calibration_error(bins: list[Bin]) -> float:
    """Return how far confidence and accuracy lie apart, a fraction.

        ECE = sum_b |B_b| / N * |accuracy(B_b) - mean confidence(B_b)|

    Source: Guo et al. 2017, eq. 3.
    """
    apart = sum(b.count * abs(b.accuracy - b.confidence) for b in bins)
    return apart / sum(b.count for b in bins)


def reliability(logits: np.ndarray, label: np.ndarray, temperature: float) -> Reliability:
    """Return the likelihood, the calibration error and the diagram at one temperature. Shapes, raises: as the bins."""
    bins = reliability_bins(logits, label, temperature)
    likelihood = negative_log_likelihood(logits, label, temperature)
    return Reliability(temperature, likelihood, expected_calibration_error(bins), bins)
