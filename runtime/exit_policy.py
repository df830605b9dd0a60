"""When an input stops: the policy, and what it says about one time step. Every loop decides here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from .errors import DynamicConfidenceError
from .exit_metrics import Run, score
from .manifest import Manifest, Metric

Reason = Literal["confident", "quiescent", "last step", "deadline"]


@dataclass(frozen=True)
class ExitPolicy:
    """When to stop. See docs/contract.md, "Exit"."""

    scale: float
    """alpha * temperature: the logits are divided by it before the softmax."""
    threshold: float
    """Stop at the first step >= min_step whose score is strictly greater; 1 never stops."""
    max_steps: int
    min_step: int = 1
    metric: Metric = "max-softmax"
    """What gives the score: the graph's own confidence, or a metric of its logits (`exit_metrics`)."""
    quiet_after: int | None = None
    """QFFS: after this step (the injection window) a step without a spike is final. None: no such exit."""
    deadline_ms: float | None = None
    """Stop before the call that would end later than this."""


def policy_from_manifest(
    manifest: Manifest,
    *,
    threshold: float | None = None,
    max_steps: int | None = None,
    deadline_ms: float | None = None,
) -> ExitPolicy:
    """Take the calibrated policy of a network, with what the caller overrides.

    Raises: DynamicConfidenceError for a threshold outside [0, 1], steps outside 1..T or a deadline <= 0.
    """
    calibration = manifest.calibration
    if threshold is None:
        threshold = calibration.threshold
    if max_steps is None:
        max_steps = manifest.max_steps
    if not 0.0 <= threshold <= 1.0:
        raise DynamicConfidenceError(
            f"threshold {threshold:g}: a confidence is a probability, expected a value in [0, 1] (1 never exits early)."
        )
    if not 1 <= max_steps <= manifest.max_steps:
        raise DynamicConfidenceError(
            f"steps {max_steps}: expected 1 to {manifest.max_steps}, the number this network was exported for"
            f"{f' (`dc-export -T {max_steps}` makes another)' if max_steps > 0 else ''}."
        )
    if deadline_ms is not None and not deadline_ms > 0:
        raise DynamicConfidenceError(f"deadline {deadline_ms:g} ms: expected a positive number.")
    return ExitPolicy(
        scale=calibration.scale,
        threshold=threshold,
        max_steps=max_steps,
        min_step=calibration.min_step,
        metric=calibration.metric,
        quiet_after=manifest.method.injection_steps if manifest.has_output("spikes") else None,
        deadline_ms=deadline_ms,
    )


class Verdict(NamedTuple):
    """What a policy says about one time step; every array is `[N]`."""

    score: np.ndarray
    """The confidence, or another metric's score."""
    sure: np.ndarray
    """The score exceeds the threshold."""
    quiet: np.ndarray
    """No neuron fired and no injection is left, so nothing can change any more."""
    run: Run | None
    """For the next step; `patience` counts in it."""


def judge(
    policy: ExitPolicy,
    step: int | np.ndarray,
    logits: np.ndarray,
    confidence: np.ndarray,
    spikes: np.ndarray | None,
    run: Run | None,
) -> Verdict:
    """Decide who may stop after this time step: those that are sure, and those that are quiet.

        sure = score > threshold and step >= min_step;  threshold 1 is never exceeded

    Shapes: step one number, or `[N]` where every input is at its own; logits `[N, class]`, confidence `[N]`, spikes
    `[N, layer]` as `StepOutput` has them; `run` from the step before, None at the first.
    Source: Dynamic Confidence, section 5 (eq. 1-2); docs/contract.md, "Exit".
    """
    found = confidence
    if policy.metric != "max-softmax":
        found, run = score(policy.metric, logits, policy.scale, run)
    # Some engine's softmax may round to a little more than 1.
    threshold = policy.threshold if policy.threshold < 1.0 else math.inf
    sure = (found > threshold) & (step >= policy.min_step)
    return Verdict(found, sure, quiet(policy, step, spikes, len(logits)), run)


def quiet(policy: ExitPolicy, step: int | np.ndarray, spikes: np.ndarray | None, count: int) -> np.ndarray:
    """Tell which of `count` inputs can change no more: no spike in any layer, and the injection window is over.

    Shapes: step and spikes as for `judge` -> bool `[N]`.
    """
    over = policy.quiet_after is not None and step > policy.quiet_after
    if spikes is None or over is False:
        return np.zeros(count, bool)
    return (spikes.sum(axis=-1) == 0) & over
