"""The stepping loop: carry the state, watch the confidence, stop each input as soon as its answer is sure enough."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from .engine import Engine
from .errors import DynamicConfidenceError
from .exit_metrics import score
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


@dataclass(frozen=True, eq=False)
class Answers:
    """What a batch of inputs was answered; every array is `[N]` but the logits `[N, class]`."""

    label: np.ndarray
    confidence: np.ndarray
    """The graph's: the largest softmax probability."""
    score: np.ndarray
    """What the threshold is compared with: the confidence, or another metric's score."""
    steps: np.ndarray
    """Time steps until the exit."""
    ms: np.ndarray
    """Wall milliseconds until the exit, reset included."""
    reason: list[Reason]
    logits: np.ndarray


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


def infer(engine: Engine, pixels: np.ndarray, policy: ExitPolicy) -> Answers:
    """Run a batch until every input has stopped, each at its own step.

        exit at the first t >= min_step with score_t > threshold, or when nothing can change any more, or at T, or when
        the next call would miss the deadline

    Shapes: pixels uint8 `[N, channel, height, width]`, or `[T, N, channel, height, width]` for an input that varies in
    time (it ends with its last frame); N at most the engine's batch.
    Raises: DynamicConfidenceError when the pixels do not fit the network.
    Source: Dynamic Confidence, section 5 (eq. 1-2); deadline and quiescence: docs/contract.md.
    """
    check_pixels(engine, pixels)
    started, calls, late, now = time.perf_counter(), 0, False, 0.0
    count = pixels.shape[-4]
    label, steps = np.zeros(count, np.int64), np.zeros(count, np.int64)
    confidence, ms = np.zeros(count, np.float32), np.zeros(count)
    own = policy.metric == "max-softmax"
    reached, run = confidence if own else np.zeros(count), None
    logits = np.zeros((count, len(engine.manifest.class_names)), np.float32)
    reasons: list[Reason] = ["last step"] * count
    running = np.ones(count, bool)
    # Some engine's softmax may round to a little more than 1.
    threshold = policy.threshold if policy.threshold < 1.0 else math.inf
    for t in _time_steps(engine, pixels, policy):
        if t.starts_call:
            now, calls = (time.perf_counter() - started) * 1e3, calls + 1
            # One more call is expected to take as long as the mean of those done.
            late = policy.deadline_ms is not None and now + now / calls > policy.deadline_ms
        found = t.confidence
        if not own:
            found, run = score(policy.metric, t.logits, policy.scale, run)
        sure = (found > threshold) & (t.step >= policy.min_step)
        over: Reason | None = "last step" if t.last else "deadline" if late and t.ends_call else None
        stopped = running if over else running & (sure | t.quiet)
        if not stopped.any():
            continue
        for source, target in ((t.label, label), (t.confidence, confidence), (t.logits, logits)):
            target[stopped] = source[stopped]
        if not own:
            reached[stopped] = found[stopped]
        steps[stopped], ms[stopped] = t.step, now
        for index in np.flatnonzero(stopped):
            reasons[index] = "confident" if sure[index] else "quiescent" if t.quiet[index] else over or "last step"
        running = running & ~stopped
        if not running.any():
            break
    return Answers(label, confidence, reached, steps, ms, reasons, logits)


class FullRun(NamedTuple):
    """What a batch does when nothing stops it."""

    logits: np.ndarray
    """float32 `[N, step, class]`, accumulated over the steps 1 … t."""
    last_step: np.ndarray
    """int64 `[N]`: where it would stop for another reason than confidence (its first quiet step, else T)."""
    spikes: np.ndarray | None
    """int64 `[N, step, layer]`: spikes of either sign in the steps 1 … t; None when the network does not count them."""
    net_spikes: np.ndarray | None
    """int64 `[N, step, layer]`: positive less negative ones, likewise."""


def run_to_the_end(engine: Engine, pixels: np.ndarray, scale: float) -> FullRun:
    """Run a batch for all its steps without an exit: what calibration and evaluation look at."""
    check_pixels(engine, pixels)
    manifest = engine.manifest
    policy = ExitPolicy(scale, 1.0, manifest.max_steps, quiet_after=policy_from_manifest(manifest).quiet_after)
    count = pixels.shape[-4]
    logits = np.zeros((count, policy.max_steps, len(manifest.class_names)), np.float32)
    last_step = np.full(count, policy.max_steps, np.int64)
    counts = {
        output.name: np.zeros((count, policy.max_steps, int(output.shape[-1])), np.int64)
        for output in manifest.outputs
        if output.name in ("spikes", "net_spikes")
    }
    for t in _time_steps(engine, pixels, policy):
        logits[:, t.step - 1] = t.logits
        last_step[t.quiet & (last_step == policy.max_steps)] = t.step
        for name, per_step in counts.items():
            per_step[:, t.step - 1] = getattr(t, name)
    totals = {name: per_step.cumsum(axis=1) for name, per_step in counts.items()}
    return FullRun(logits, last_step, totals.get("spikes"), totals.get("net_spikes"))


class _TimeStep(NamedTuple):
    """One time step of a batch: views into the engine's buffers, the inputs that fill up the batch left out."""

    step: int
    starts_call: bool
    ends_call: bool
    last: bool
    logits: np.ndarray
    confidence: np.ndarray
    label: np.ndarray
    quiet: np.ndarray
    """`[N]`: no neuron fired and no injection is left, so nothing can change any more."""
    spikes: np.ndarray | None
    """`[N, layer]`, as `StepOutput` has them; None when the network does not count them."""
    net_spikes: np.ndarray | None


def _time_steps(engine: Engine, pixels: np.ndarray, policy: ExitPolicy) -> Iterator[_TimeStep]:
    """Reset the engine and yield every time step, whatever the number of steps per call."""
    manifest, count, moving = engine.manifest, pixels.shape[-4], pixels.ndim == 5
    final = policy.max_steps
    if moving and manifest.method.injection_steps is None:
        # A QFFS network goes on after its last frame: what was injected is still on its way.
        final = min(final, len(pixels))
    nothing_quiet = np.zeros(count, bool)
    engine.reset(policy.scale)
    for first in range(0, final, manifest.steps_per_call):
        # A still image is handed over once; the engine keeps it.
        new = _call_input(pixels, first, engine) if moving or first == 0 else None
        output = engine.step(new)
        used = min(manifest.steps_per_call, final - first)
        for k in range(used):
            step, quiet = first + k + 1, nothing_quiet
            spikes, net_spikes = (
                None if counts is None else counts[k, :count] for counts in (output.spikes, output.net_spikes)
            )
            if policy.quiet_after is not None and step > policy.quiet_after and spikes is not None:
                quiet = spikes.sum(axis=-1) == 0
            values = output.logits[k, :count], output.confidence[k, :count], output.label[k, :count]
            yield _TimeStep(step, k == 0, k == used - 1, step == final, *values, quiet, spikes, net_spikes)


def _call_input(pixels: np.ndarray, first: int, engine: Engine) -> np.ndarray:
    """What the call after `first` steps takes: missing inputs are black, after the last frame it stays."""
    frames = pixels if pixels.ndim == 5 else pixels[None]
    steps = first + np.arange(engine.manifest.steps_per_call)
    chosen = (
        frames[np.minimum(steps, len(frames) - 1)]
        if engine.manifest.input.frames
        else frames[min(first, len(frames) - 1)]
    )
    missing = engine.batch - pixels.shape[-4]
    if missing:
        chosen = np.pad(chosen, [(0, 0)] * (chosen.ndim - 4) + [(0, missing), (0, 0), (0, 0), (0, 0)])
    return chosen


def check_pixels(engine: Engine, pixels: np.ndarray) -> None:
    """Raise a DynamicConfidenceError when `infer` cannot run these pixels on this engine."""
    manifest = engine.manifest
    shape = manifest.input.preprocessing.shape
    if pixels.dtype != np.uint8 or pixels.shape[-3:] != shape or pixels.ndim not in (4, 5):
        raise DynamicConfidenceError(
            f"input {pixels.dtype} {list(pixels.shape)}: expected uint8 [N, {', '.join(map(str, shape))}], or with "
            "time steps in front for an input that varies in time."
        )
    if not 1 <= pixels.shape[-4] <= engine.batch:
        raise DynamicConfidenceError(
            f"{pixels.shape[-4]} inputs for an engine opened with batch {engine.batch}: expected 1 to {engine.batch}."
        )
    if pixels.ndim == 5:
        if not len(pixels):
            raise DynamicConfidenceError("0 frames: expected at least one.")
        if manifest.steps_per_call > 1 and not manifest.input.frames:
            raise DynamicConfidenceError(
                f"this network takes one image for {manifest.steps_per_call} steps: export it with "
                "`dc-export --frames` for an input that varies in time."
            )
        if len(pixels) > manifest.max_steps:
            raise DynamicConfidenceError(
                f"{len(pixels)} frames: this network runs {manifest.max_steps} time steps at most. Give it fewer, or "
                f"export it with `dc-export -T {len(pixels)}`."
            )
        window = manifest.method.injection_steps
        if window is not None and len(pixels) != window:
            raise DynamicConfidenceError(
                f"{len(pixels)} frames: this QFFS network takes input in its first {window} steps and no others. "
                "Export it with `--method qcfs` for an input that varies in time."
            )
