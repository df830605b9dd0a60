"""A threshold with a guarantee: with high probability over the calibration set, the true accuracy drop is small."""

from __future__ import annotations

import math

import numpy as np

from ..runtime.errors import DynamicConfidenceError
from ..runtime.manifest import Metric
from .exits import exit_steps
from .thresholds import OperatingPoint, grid_points
from .trace import Trace

CANDIDATES = tuple(k / 100 for k in range(99, -1, -1))
"""Tested in this order, which is fixed before any data is seen; threshold 1 needs no test, it loses nothing."""
MOST_IMAGES = 2**22
"""No more are counted: `fewest_images` returns this number for tiny drops."""
LARGEST_BET = 0.75
"""Share of the capital that one sample can lose at most."""


def certified_points(
    trace: Trace, scale: float, max_drop: float, delta: float, min_step: int = 1, metric: Metric = "max-softmax"
) -> list[OperatingPoint]:
    """Return threshold 1 and the operating points below it whose accuracy drop is certified, from 1 downwards.

        P( for every returned threshold:  E[right at T] - E[right at the exit] <= max_drop )  >= 1 - delta

    over the draw of the calibration set, whatever the network and the data, if the samples are independent and from the
    distribution that will be seen. Fixed-sequence testing: the candidates are tested in order, each at level delta, and
    the first that fails ends it. Alpha, tau, metric and min_step must not be chosen by the same samples, or by several
    calls with the deltas added up (`policy.sweep`). `scale` = alpha * tau; accuracies are fractions.
    Raises: DynamicConfidenceError for max_drop outside (0, 1] or delta outside (0, 1).
    Source: Angelopoulos et al., "Learn then Test" (arXiv 2110.01052); the test is `capital`. For early exit: Jazbec et
    al., "Fast yet Safe" (arXiv 2405.20915).
    """
    check_promise(max_drop, delta)
    scores, correct = trace.scores(scale, metric), trace.correct
    right_at_end = correct[np.arange(trace.samples), trace.last_step - 1]
    # Folders come class by class. The bets would then be won on the first classes, whatever the last ones lose.
    shuffled = np.random.default_rng(0).permutation(trace.samples)
    certified = 0
    for threshold in CANDIDATES:
        exits = exit_steps(scores, threshold, trace.last_step, min_step)
        loss = right_at_end.astype(float) - correct[np.arange(trace.samples), exits - 1]
        if capital(loss[shuffled], max_drop, delta) < 1.0 / delta:
            break
        certified += 1
    return grid_points(trace, scale, (1.0, *CANDIDATES[:certified]), min_step, metric)


def check_promise(max_drop: float, delta: float) -> None:
    """Raise DynamicConfidenceError for max_drop outside (0, 1] or delta outside (0, 1)."""
    if not 0.0 < max_drop <= 1.0:
        raise DynamicConfidenceError(
            f"a drop of {100 * max_drop:g} points: a certified threshold must be allowed to lose something, expected "
            "more than 0 and up to 100 points (--max-drop 1)."
        )
    if not 0.0 < delta < 1.0:
        raise DynamicConfidenceError(f"delta {delta:g}: expected a probability between 0 and 1, such as 0.1.")


def fewest_images(max_drop: float, delta: float) -> int:
    """Return how many images it takes to certify a threshold that changes no answer at all, at most `MOST_IMAGES`.

    Raises: DynamicConfidenceError as `certified_points`.
    """
    check_promise(max_drop, delta)
    high = 1
    while capital(np.zeros(high), max_drop, delta) < 1.0 / delta:
        high *= 2
        if high > MOST_IMAGES:
            return MOST_IMAGES
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if capital(np.zeros(middle), max_drop, delta) < 1.0 / delta:
            low = middle
        else:
            high = middle
    return high


def capital(loss: np.ndarray, max_drop: float, delta: float) -> float:
    """The largest capital won by betting, sample by sample, that the mean loss is at most `max_drop`.

        K_i = K_(i-1) (1 + b_i (m - x_i)),   x = (loss + 1) / 2,  m = (max_drop + 1) / 2,
        b_i = min( sqrt(2 log(1/delta) / (n s^2_(i-1))), 0.75 / (1 - m) )

    If the mean loss is larger, K is a supermartingale that starts at 1, so it ever reaches 1/delta with probability
    delta at most (Ville). The bet b_i knows the samples before i only; s^2 is their variance, with one sample of 1/4
    before the first. Loss `[sample]` in -1 … 1, in random order: sorted samples tell each other's loss.
    Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (arXiv 2010.09686).
    """
    x, m = (loss + 1.0) / 2.0, (max_drop + 1.0) / 2.0
    count = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (count + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (count + 1)
    known = np.concatenate(([0.25], variance[:-1]))  # before each sample
    bet = np.sqrt(2.0 * math.log(1.0 / delta) / (len(x) * known))
    if m < 1.0:
        bet = np.minimum(bet, LARGEST_BET / (1.0 - m))
    growth = np.cumsum(np.log1p(bet * (m - x)))
    return float(np.exp(min(growth.max(initial=0.0), 700.0)))
