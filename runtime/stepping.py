"""The stepping loop: carry the state, watch the confidence, stop each input as soon as its answer is sure enough."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, repeat
from typing import NamedTuple

import numpy as np

from .engine import Engine, check_steps
from .errors import DynamicConfidenceError
from .exit_metrics import Run
from .exit_policy import ExitPolicy, Reason, judge, policy_from_manifest, quiet
from .manifest import Manifest


class Answer(NamedTuple):
    """What one input was answered."""

    label: int
    confidence: float
    """The graph's: the largest softmax probability."""
    score: float
    """What the threshold is compared with: the confidence, or another metric's score."""
    steps: int
    """Time steps until the exit."""
    ms: float
    """Wall milliseconds until the exit, from the reset on, or from when the input got its place in a running batch."""
    reason: Reason
    logits: np.ndarray
    """float32 `[class]`"""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a batch of inputs was answered, as `Answer` has it; every array is `[N]` but the logits `[N, class]`."""

    label: np.ndarray
    confidence: np.ndarray
    score: np.ndarray
    steps: np.ndarray
    ms: np.ndarray
    reason: list[Reason]
    logits: np.ndarray
    call_ends_ms: list[float]
    """When each call of the batch was done."""

    def row(self, index: int) -> Answer:
        """The answer of one input."""
        return Answer(
            int(self.label[index]),
            float(self.confidence[index]),
            float(self.score[index]),
            int(self.steps[index]),
            float(self.ms[index]),
            self.reason[index],
            self.logits[index],
        )


def infer(engine: Engine, pixels: np.ndarray, policy: ExitPolicy, *, calls: Sequence[int] | None = None) -> Answers:
    """Run a batch until every input has stopped, each at its own step.

        exit at the first t >= min_step with score_t > threshold, or when nothing can change any more, or at T, or when
        the next call would miss the deadline

    Shapes: pixels uint8 `[N, channel, height, width]`, or `[T, N, channel, height, width]` for an input that varies in
    time (it ends with its last frame); N at most the engine's batch.
    `calls`: the steps of one call after another, the last repeated; None: the network's schedule where the engine has
    its calls, else `steps_per_call` always, as does input that varies in time. No answer depends on it.
    Raises: DynamicConfidenceError when the pixels do not fit the network, or the engine has no such call.
    Source: Dynamic Confidence, section 5 (eq. 1-2); deadline and quiescence: docs/contract.md.
    """
    check_pixels(engine, pixels)
    calls = _calls(engine, pixels, calls)
    started, spent, late, now = time.perf_counter(), 0.0, False, 0.0
    ends: list[float] = []
    cost = _call_costs(engine.manifest)
    count = pixels.shape[-4]
    label, steps = np.zeros(count, np.int64), np.zeros(count, np.int64)
    confidence, ms = np.zeros(count, np.float32), np.zeros(count)
    reached = np.zeros(count, np.float32 if policy.metric == "max-softmax" else np.float64)
    logits = np.zeros((count, len(engine.manifest.class_names)), np.float32)
    reasons: list[Reason] = ["last step"] * count
    running = np.ones(count, bool)
    run: Run | None = None
    for t in _time_steps(engine, pixels, policy, calls):
        if t.starts_call:
            now, spent = (time.perf_counter() - started) * 1e3, spent + cost[t.call]
            ends.append(now)
            # The next call is expected to take as long as those done, for what it costs.
            late = policy.deadline_ms is not None and now + now / spent * cost[t.next_call] > policy.deadline_ms
        score, sure, still, run = judge(policy, t.step, t.logits, t.confidence, t.spikes, run)
        over: Reason | None = "last step" if t.last else "deadline" if late and t.ends_call else None
        stopped = running if over else running & (sure | still)
        if not stopped.any():
            continue
        for source, target in (
            (t.label, label),
            (t.confidence, confidence),
            (score, reached),
            (t.logits, logits),
        ):
            target[stopped] = source[stopped]
        steps[stopped], ms[stopped] = t.step, now
        for index in np.flatnonzero(stopped):
            reasons[index] = "confident" if sure[index] else "quiescent" if still[index] else over or "last step"
        running = running & ~stopped
        if not running.any():
            break
    return Answers(label, confidence, reached, steps, ms, reasons, logits, ends)


def _calls(engine: Engine, pixels: np.ndarray, asked: Sequence[int] | None) -> Sequence[int]:
    """The steps of one call after another; the last is repeated."""
    manifest = engine.manifest
    if pixels.ndim == 5:
        return (manifest.steps_per_call,)
    if asked is None:
        return (manifest.steps_per_call,) if manifest.schedule is None else manifest.schedule.calls
    if not asked:
        raise DynamicConfidenceError("calls (): expected the steps of at least one call.")
    for steps in asked:
        check_steps(engine, steps)
    return asked


def _call_costs(manifest: Manifest) -> Mapping[int, float]:
    """What a call of each size costs, in any unit: as measured for the schedule, else its steps."""
    if manifest.schedule is not None:
        return dict(manifest.schedule.cost_ms)
    return {size: float(size) for size in manifest.call_sizes}


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
    for t in _time_steps(engine, pixels, policy, (manifest.steps_per_call,)):
        logits[:, t.step - 1] = t.logits
        last_step[quiet(policy, t.step, t.spikes, count) & (last_step == policy.max_steps)] = t.step
        for name, per_step in counts.items():
            per_step[:, t.step - 1] = getattr(t, name)
    totals = {name: per_step.cumsum(axis=1) for name, per_step in counts.items()}
    return FullRun(logits, last_step, totals.get("spikes"), totals.get("net_spikes"))


class _TimeStep(NamedTuple):
    """One time step of a batch: views into the engine's buffers, the inputs that fill up the batch left out."""

    step: int
    call: int
    """Steps of this call, …"""
    next_call: int
    """… and of the one after it."""
    starts_call: bool
    ends_call: bool
    last: bool
    logits: np.ndarray
    confidence: np.ndarray
    label: np.ndarray
    spikes: np.ndarray | None
    """`[N, layer]`, as `StepOutput` has them; None when the network does not count them."""
    net_spikes: np.ndarray | None


def _time_steps(engine: Engine, pixels: np.ndarray, policy: ExitPolicy, calls: Sequence[int]) -> Iterator[_TimeStep]:
    """Reset the engine and yield every time step, whatever the number of steps per call."""
    manifest, count, moving = engine.manifest, pixels.shape[-4], pixels.ndim == 5
    final = policy.max_steps
    if moving and manifest.method.injection_steps is None:
        # A QFFS network goes on after its last frame: what was injected is still on its way.
        final = min(final, len(pixels))
    engine.reset(policy.scale)
    sizes, first = chain(calls, repeat(calls[-1])), 0
    for call, following in pairwise(sizes):
        # A still image is handed over once; the engine keeps it.
        new = call_input(pixels, first, engine) if moving or first == 0 else None
        output = engine.step(new) if call == manifest.steps_per_call else engine.step(new, call)
        used = min(call, final - first)
        for k in range(used):
            step = first + k + 1
            values = output.logits[k, :count], output.confidence[k, :count], output.label[k, :count]
            spikes = None if output.spikes is None else output.spikes[k, :count]
            net_spikes = None if output.net_spikes is None else output.net_spikes[k, :count]
            ends = k == used - 1
            yield _TimeStep(step, call, following, k == 0, ends, step == final, *values, spikes, net_spikes)
        first += call
        if first >= final:
            return


def call_input(pixels: np.ndarray, first: int, engine: Engine) -> np.ndarray:
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
