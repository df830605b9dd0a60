"""The stepping loop: carry the state, watch the confidence, stop each input as soon as its answer is sure enough."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .engine import Engine, StepOutput, check_steps
from .errors import DynamicConfidenceError
from .exit_policy import ExitPolicy, Reason, reason_to_stop, scores
from .manifest import Manifest

PIXEL = np.dtype(np.uint8)


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


class Answers(NamedTuple):
    """What a batch of inputs was answered."""

    rows: list[Answer]
    times_s: list[float]
    """By `time.perf_counter`: the start, and the end of each call of the batch."""

    @property
    def call_ends_ms(self) -> list[float]:
        """`[call]`: milliseconds from the start."""
        return [(end - self.times_s[0]) * 1e3 for end in self.times_s[1:]]

    @property
    def label(self) -> np.ndarray:
        """`[N]`"""
        return np.array([answer.label for answer in self.rows])

    @property
    def confidence(self) -> np.ndarray:
        """`[N]`"""
        return np.array([answer.confidence for answer in self.rows])

    @property
    def score(self) -> np.ndarray:
        """`[N]`"""
        return np.array([answer.score for answer in self.rows])

    @property
    def steps(self) -> np.ndarray:
        """`[N]`"""
        return np.array([answer.steps for answer in self.rows])

    @property
    def ms(self) -> np.ndarray:
        """`[N]`"""
        return np.array([answer.ms for answer in self.rows])

    @property
    def reason(self) -> list[Reason]:
        return [answer.reason for answer in self.rows]

    @property
    def logits(self) -> np.ndarray:
        """float32 `[N, class]`"""
        return np.stack([answer.logits for answer in self.rows])


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
    # Looked up once: after an engine's call the caches are cold, and each look-up costs a step about a microsecond.
    step_engine, clock = engine.step, time.perf_counter
    times = [clock()]
    manifest, count, moving = engine.manifest, pixels.shape[-4], pixels.ndim == 5
    sizes, final = _sizes(engine, pixels, calls), _final_step(engine, pixels, policy)
    costs = {} if policy.deadline_ms is None else _call_costs(manifest)
    usual, limit, calm_until = manifest.steps_per_call, policy.limit, _calm_until(policy, final)
    quiet_after = final if policy.quiet_after is None else policy.quiet_after
    answers: dict[int, Answer] = {}
    running, run, spent, alone = range(count), None, 0.0, engine.batch == 1
    engine.reset(policy.scale)
    new, done, call, last_call = call_input(pixels, 0, engine), 0, 0, len(sizes) - 1
    while running:
        size, first = sizes[call], done
        output = step_engine(new) if size == usual else step_engine(new, size)
        times.append(clock())
        done += size
        if call < last_call:
            call += 1
        # A still image is handed over once; the engine keeps it.
        new = call_input(pixels, done, engine) if moving else None
        if done <= calm_until:
            some = output.confidence
            largest = some.item() if alone and size == 1 else max(some.ravel().tolist())
            if largest <= limit and (done <= quiet_after or _one_spiked(output)):
                continue
        late, now = False, (times[-1] - times[0]) * 1e3
        if policy.deadline_ms is not None:
            # The next call is expected to take as long as those done, for what it costs.
            spent += costs[size]
            late = now + now / spent * costs[sizes[call]] > policy.deadline_ms
        found, run = scores(policy, output, run)
        for row in running:
            for k in range(size):
                step = first + k + 1
                reason = reason_to_stop(policy, step, found[k][row], output, k, row)
                if reason is None and step == final:
                    reason = "last step"
                elif reason is None and late and step == done:
                    reason = "deadline"
                if reason is not None:
                    answers[row] = answer_at(output, k, row, found[k][row], step, now, reason)
                    break
        running = [row for row in running if row not in answers]
    return Answers([answers[row] for row in range(count)], times)


def _calm_until(policy: ExitPolicy, final: int) -> int:
    """The last step until which nothing but its confidence stops an input, or its silence.

    If none is confident, that one look has to do: after an engine's call the caches are cold. Every line of Python
    costs a microsecond then, a call of `min` 9 and `ndarray.max` 35.
    """
    return 0 if policy.deadline_ms is not None or policy.metric != "max-softmax" else final - 1


def _one_spiked(output: StepOutput) -> bool:
    """Whether this is one step of one input, and it spiked; of several, each has to be looked at."""
    return output.spikes is not None and output.confidence.size == 1 and bool(np.count_nonzero(output.spikes))


def answer_at(output: StepOutput, k: int, row: int, score: float, steps: int, ms: float, reason: Reason) -> Answer:
    """What an input is answered that stops at step k of a call, from 0; a copy."""
    label, confidence = output.label.item(k, row), output.confidence.item(k, row)
    return Answer(label, confidence, score, steps, ms, reason, output.logits[k, row].copy())


def usual_calls(manifest: Manifest) -> tuple[int, ...]:
    """The steps of one call after another, the last repeated, where nobody asks for others and the image is still."""
    return (manifest.steps_per_call,) if manifest.schedule is None else manifest.schedule.calls


def _sizes(engine: Engine, pixels: np.ndarray, asked: Sequence[int] | None) -> Sequence[int]:
    """The steps of one call after another; the last is repeated."""
    manifest = engine.manifest
    if pixels.ndim == 5:
        return (manifest.steps_per_call,)
    if asked is None:
        return usual_calls(manifest)
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
    policy = ExitPolicy(scale, 1.0, manifest.max_steps)
    count, steps = pixels.shape[-4], manifest.max_steps
    logits = np.zeros((count, steps, len(manifest.class_names)), np.float32)
    counts = {
        output.name: np.zeros((count, steps, int(output.shape[-1])), np.int64)
        for output in manifest.outputs
        if output.name in ("spikes", "net_spikes")
    }
    final, size, moving = _final_step(engine, pixels, policy), manifest.steps_per_call, pixels.ndim == 5
    engine.reset(scale)
    for first in range(0, final, size):
        output = engine.step(call_input(pixels, first, engine) if moving or first == 0 else None)
        done, used = slice(first, min(first + size, final)), min(size, final - first)
        logits[:, done] = output.logits[:used, :count].swapaxes(0, 1)
        for name, per_step in counts.items():
            per_step[:, done] = getattr(output, name)[:used, :count].swapaxes(0, 1)
    last_step = np.full(count, steps, np.int64)
    window = manifest.method.injection_steps
    if window is not None and "spikes" in counts:
        for row, spikes in enumerate(counts["spikes"]):
            silent = np.flatnonzero(spikes[window:].sum(axis=-1) == 0)
            last_step[row] = window + 1 + silent[0] if len(silent) else steps
    totals = {name: per_step.cumsum(axis=1) for name, per_step in counts.items()}
    return FullRun(logits, last_step, totals.get("spikes"), totals.get("net_spikes"))


def _final_step(engine: Engine, pixels: np.ndarray, policy: ExitPolicy) -> int:
    """The step at which all that still run stop."""
    if pixels.ndim == 5 and engine.manifest.method.injection_steps is None:
        # A QFFS network goes on after its last frame: what was injected is still on its way.
        return min(policy.max_steps, len(pixels))
    return policy.max_steps


def call_input(pixels: np.ndarray, first: int, engine: Engine) -> np.ndarray:
    """What the call after `first` steps takes: missing inputs are black, after the last frame it stays."""
    chosen, moving = pixels, pixels.ndim == 5
    if engine.manifest.input.frames:
        frames = pixels if moving else pixels[None]
        steps = first + np.arange(engine.manifest.steps_per_call)
        chosen = frames[np.minimum(steps, len(frames) - 1)]
    elif moving:
        chosen = pixels[min(first, len(pixels) - 1)]
    missing = engine.batch - pixels.shape[-4]
    if missing:
        chosen = np.pad(chosen, [(0, 0)] * (chosen.ndim - 4) + [(0, missing), (0, 0), (0, 0), (0, 0)])
    return chosen


def check_pixels(engine: Engine, pixels: np.ndarray) -> None:
    """Raise a DynamicConfidenceError when `infer` cannot run these pixels on this engine."""
    manifest, shape, wanted = engine.manifest, pixels.shape, engine.manifest.input.shape[-3:]
    if pixels.dtype != PIXEL or shape[-3:] != wanted or len(shape) not in (4, 5):
        raise DynamicConfidenceError(
            f"input {pixels.dtype} {list(pixels.shape)}: expected uint8 [N, {', '.join(map(str, wanted))}], or with "
            "time steps in front for an input that varies in time."
        )
    if not 1 <= shape[-4] <= engine.batch:
        raise DynamicConfidenceError(
            f"{shape[-4]} inputs for an engine opened with batch {engine.batch}: expected 1 to {engine.batch}."
        )
    if len(shape) == 5:
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
