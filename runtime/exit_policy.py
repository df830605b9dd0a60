"""When an input stops: the policy, and what it says about one time step. Every loop decides here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from .engine import StepOutput
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

    @cached_property
    def limit(self) -> float:
        """What a score has to exceed: the threshold in the type of the score; infinity for threshold 1."""
        if self.threshold >= 1.0:  # some engine's softmax may round to a little more than 1
            return math.inf
        return float(np.float32(self.threshold)) if self.metric == "max-softmax" else self.threshold


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


def without_exit(policy: ExitPolicy) -> ExitPolicy:
    """The same for inputs that shall run all their steps; no score is computed for them."""
    return replace(policy, threshold=1.0, metric="max-softmax", quiet_after=None, deadline_ms=None)


def scores(policy: ExitPolicy, output: StepOutput, run: Run | None) -> tuple[list[list[float]], Run | None]:
    """Return what the threshold is compared with, `[K][N]`, and what `patience` counts in, for the next call.

    `run` is what the call before returned, None at the first.
    """
    if policy.metric == "max-softmax":
        return output.confidence.tolist(), None
    found = []
    for logits in output.logits:
        of_step, run = score(policy.metric, logits, policy.scale, run)
        found.append(of_step.tolist())
    return found, run


def reason_to_stop(policy: ExitPolicy, step: int, score: float, output: StepOutput, k: int, row: int) -> Reason | None:
    """Tell why the input in `row` stops after step k of a call, because its answer is sure or final; None: it goes on.

        confident: score > threshold and step >= min_step;   quiescent: no spike in any layer, the injection window over

    Plain numbers, and as little as can be: after an engine's call the caches are cold, and each numpy operation costs
    2 to 6 us then.
    Source: Dynamic Confidence, section 5 (eq. 1-2); docs/contract.md, "Exit".
    """
    if score > policy.limit and step >= policy.min_step:
        return "confident"
    quiet_after = policy.quiet_after
    if quiet_after is None or step <= quiet_after or output.spikes is None:
        return None
    return None if np.count_nonzero(output.spikes[k, row]) else "quiescent"
