"""The stepping loop against a replay of the full trace, for still images and for input that varies in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from dynamic_confidence.calib.exits import exit_steps
from dynamic_confidence.models.checkpoint import Checkpoint
from dynamic_confidence.runtime import stepping
from dynamic_confidence.runtime.confidence import max_softmax
from dynamic_confidence.runtime.engine import StepOutput, open_engine
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.exit_policy import policy_from_manifest
from dynamic_confidence.runtime.onnx_file import read_onnx
from dynamic_confidence.runtime.stepping import Answers, infer, run_to_the_end
from dynamic_confidence.toolchain.simulate import simulate, simulation_from_snn
from dynamic_confidence.toolchain.snap import snap
from dynamic_confidence.toolchain.snn_from_ann import snn_from_ann

METHODS = ("qcfs", "qffs")
STEPS = 12
LEVELS = 3
Exported = Callable[..., Path]


def assert_same_answers(one: Answers, other: Answers) -> None:
    for name in ("label", "confidence", "steps", "logits"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.reason == other.reason


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.45, 0.6, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_infer_equals_a_replay_of_the_trace(exported: Exported, pixels: np.ndarray, method: str, k: int, threshold):
    with open_engine(exported(method=method, steps_per_call=k), batch=64) as engine:
        policy = policy_from_manifest(engine.manifest, threshold=threshold)
        logits, last_step, *_ = run_to_the_end(engine, pixels, policy.scale)
        answers = infer(engine, pixels, policy)
    confidence = max_softmax(logits, policy.scale)
    np.testing.assert_array_equal(answers.steps, exit_steps(confidence, threshold, last_step))
    rows, at = np.arange(64), answers.steps - 1
    np.testing.assert_array_equal(answers.logits, logits[rows, at])
    np.testing.assert_array_equal(answers.label, logits[rows, at].argmax(axis=1))
    np.testing.assert_allclose(answers.confidence, confidence[rows, at], rtol=1e-5)
    for row in range(64):
        sure, quiet = confidence[row, at[row]] > threshold, answers.steps[row] == last_step[row] < STEPS
        assert answers.reason[row] == ("confident" if sure else "quiescent" if quiet else "last step")
    assert (np.diff(np.unique(answers.ms)) > 0).all()
    assert (answers.ms > 0).all()


def test_the_inputs_stop_at_different_steps(exported: Exported, pixels: np.ndarray):
    with open_engine(exported(), batch=64) as engine:
        answers = infer(engine, pixels, policy_from_manifest(engine.manifest, threshold=0.6))
    assert len(np.unique(answers.steps)) > 3
    assert set(answers.reason) == {"confident", "last step"}
    assert (np.argsort(answers.ms, kind="stable")[np.argsort(answers.steps, kind="stable")] >= 0).all()
    order = np.argsort(answers.steps, kind="stable")
    assert (np.diff(answers.ms[order]) >= 0).all()


@pytest.mark.parametrize("k", [2, 4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_several_steps_per_call_answer_as_single_steps(exported: Exported, pixels: np.ndarray, method: str, k: int):
    found = []
    for steps_per_call in (1, k):
        with open_engine(exported(method=method, steps_per_call=steps_per_call), batch=64) as engine:
            found.append(infer(engine, pixels, policy_from_manifest(engine.manifest, threshold=0.7)))
    assert_same_answers(*found)


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_threshold_one_never_exits_early(exported: Exported, pixels: np.ndarray, scale: float):
    """Not even where the confidence saturates at 1."""
    with open_engine(exported(), batch=64) as engine:
        policy = replace(policy_from_manifest(engine.manifest, threshold=1.0), scale=scale)
        answers = infer(engine, pixels, policy)
    assert (answers.steps == STEPS).all()
    assert set(answers.reason) == {"last step"}
    assert answers.confidence.max() > 0.999


@pytest.mark.parametrize("threshold", [1.0, 0.99])
def test_threshold_one_holds_where_an_engine_rounds_the_confidence_up(exported: Exported, pixels, threshold: float):
    with open_engine(exported(), batch=4) as engine:
        step = engine.step

        def rounded_up(new: np.ndarray | None = None) -> StepOutput:
            return step(new)._replace(confidence=np.full((1, 4), 1.0000001, np.float32))

        engine.step = rounded_up  # type: ignore[method-assign]
        answers = infer(engine, pixels[:4], policy_from_manifest(engine.manifest, threshold=threshold))
    assert (answers.steps == (STEPS if threshold == 1.0 else 1)).all()


def test_a_network_that_is_not_calibrated_runs_all_its_steps(exported: Exported):
    manifest = read_onnx(exported())[1]
    assert policy_from_manifest(manifest).threshold == 1.0


@pytest.mark.parametrize("min_step", [1, 2, 5, 12])
def test_min_step_holds_every_exit_back(exported: Exported, pixels: np.ndarray, min_step: int):
    with open_engine(exported(steps_per_call=4), batch=64) as engine:
        policy = replace(policy_from_manifest(engine.manifest, threshold=0.45), min_step=min_step)
        logits, last_step, *_ = run_to_the_end(engine, pixels, policy.scale)
        answers = infer(engine, pixels, policy)
    expected = exit_steps(max_softmax(logits, policy.scale), 0.45, last_step, min_step)
    np.testing.assert_array_equal(answers.steps, expected)
    assert answers.steps.min() == min_step


@pytest.mark.parametrize("max_steps", [1, 5, 11])
@pytest.mark.parametrize("k", [1, 4, 8])
def test_fewer_steps_than_exported_for(exported: Exported, pixels: np.ndarray, k: int, max_steps: int):
    """Also when the last step lies within a call."""
    with open_engine(exported(steps_per_call=k), batch=64) as engine:
        policy = policy_from_manifest(engine.manifest, threshold=0.7, max_steps=max_steps)
        logits, *_ = run_to_the_end(engine, pixels, policy.scale)
        answers = infer(engine, pixels, policy)
    last = np.full(64, max_steps)
    expected = exit_steps(max_softmax(logits[:, :max_steps], policy.scale), 0.7, last)
    np.testing.assert_array_equal(answers.steps, expected)
    np.testing.assert_array_equal(answers.logits, logits[np.arange(64), answers.steps - 1])


def a_millisecond_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(stepping, "time", SimpleNamespace(perf_counter=lambda: next(ticks) * 1e-3))


@pytest.mark.parametrize(
    ("k", "deadline_ms", "steps"), [(1, 0.001, 1), (1, 5, 5), (1, 5.5, 5), (4, 0.001, 4), (4, 2, 8)]
)
def test_the_deadline_stops_before_the_call_that_would_miss_it(
    exported: Exported, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch, k: int, deadline_ms: float, steps: int
):
    a_millisecond_per_call(monkeypatch)
    with open_engine(exported(steps_per_call=k), batch=64) as engine:
        answers = infer(engine, pixels, policy_from_manifest(engine.manifest, deadline_ms=deadline_ms))
        logits, *_ = run_to_the_end(engine, pixels, engine.manifest.calibration.scale)
    assert (answers.steps == steps).all()
    assert set(answers.reason) == {"deadline"}
    np.testing.assert_allclose(answers.ms, steps / k)
    np.testing.assert_array_equal(answers.logits, logits[:, steps - 1])


def test_at_the_deadline_what_is_sure_was_sure(exported: Exported, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    a_millisecond_per_call(monkeypatch)
    with open_engine(exported(), batch=64) as engine:
        answers = infer(engine, pixels, policy_from_manifest(engine.manifest, threshold=0.6, deadline_ms=4))
    assert answers.steps.max() == 4
    for confidence, step, reason in zip(answers.confidence, answers.steps, answers.reason, strict=True):
        assert reason == ("confident" if confidence > 0.6 else "deadline")
        assert step == 4 or confidence > 0.6
    assert set(answers.reason) == {"confident", "deadline"}


def test_a_real_deadline_that_is_too_short_still_answers(exported: Exported, pixels: np.ndarray):
    with open_engine(exported(), batch=1) as engine:
        answers = infer(engine, pixels[:1], policy_from_manifest(engine.manifest, deadline_ms=1e-6))
    assert answers.steps.tolist() == [1]
    assert answers.reason == ["deadline"]


@pytest.mark.parametrize("method", METHODS)
def test_a_deadline_far_away_changes_nothing(exported: Exported, pixels: np.ndarray, method: str):
    with open_engine(exported(method=method), batch=64) as engine:
        policy = policy_from_manifest(engine.manifest, threshold=0.7)
        assert_same_answers(infer(engine, pixels, policy), infer(engine, pixels, replace(policy, deadline_ms=1e9)))


@pytest.mark.parametrize("k", [1, 4])
def test_after_a_quiet_step_nothing_changes(exported: Exported, pixels: np.ndarray, k: int):
    with open_engine(exported(method="qffs", steps_per_call=k), batch=64) as engine:
        policy = policy_from_manifest(engine.manifest)
        answers = infer(engine, pixels, policy)
        logits, last_step, *_ = run_to_the_end(engine, pixels, policy.scale)
        deaf = infer(engine, pixels, replace(policy, quiet_after=None))
    assert policy.quiet_after == LEVELS
    assert set(answers.reason) == {"quiescent"}
    assert answers.steps.min() > LEVELS
    assert answers.steps.max() < STEPS
    np.testing.assert_array_equal(answers.steps, last_step)
    for row, step in enumerate(last_step):
        assert (logits[row, step - 1 :] == logits[row, step - 1]).all()
    np.testing.assert_array_equal(answers.logits, deaf.logits)
    assert (deaf.steps == STEPS).all()


def test_a_network_that_takes_input_in_every_step_is_never_quiet(exported: Exported, pixels: np.ndarray):
    with open_engine(exported(count_spikes=True), batch=64) as engine:
        black = np.zeros_like(pixels)
        assert policy_from_manifest(engine.manifest).quiet_after is None
        assert set(infer(engine, black, policy_from_manifest(engine.manifest)).reason) == {"last step"}


def simulated(checkpoint: Checkpoint, method: str, frames: np.ndarray, steps: int) -> np.ndarray:
    """Logits `[step, input, class]` of the torch simulation."""
    snn, _ = snap(snn_from_ann(checkpoint.network(), checkpoint.preprocessing, method), STEPS)
    return np.stack([state.logits.numpy() for _, state in simulate(simulation_from_snn(snn), frames, steps)])


def film(pixels: np.ndarray, steps: int) -> np.ndarray:
    """Frames of different content `[step, input, channel, y, x]`."""
    return np.stack([pixels[8 * step % 56 :][:8] for step in range(steps)])


FORMS = [{"steps_per_call": 1}, {"steps_per_call": 1, "frames": True}, {"steps_per_call": 4, "frames": True}]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_equal_frames_are_a_still_image(exported: Exported, pixels: np.ndarray, method: str, form: dict[str, object]):
    frames = np.stack([pixels[:8]] * (STEPS if method == "qcfs" else LEVELS))
    with open_engine(exported(method=method), batch=8) as engine:
        still = infer(engine, pixels[:8], policy_from_manifest(engine.manifest, threshold=0.7))
    with open_engine(exported(method=method, **form), batch=8) as engine:
        policy = policy_from_manifest(engine.manifest, threshold=0.7)
        assert_same_answers(infer(engine, frames, policy), still)
        assert_same_answers(infer(engine, pixels[:8], policy), still)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_frames_equal_the_torch_simulation(
    exported: Exported, checkpoint: Checkpoint, pixels: np.ndarray, method: str, form: dict[str, object]
):
    frames = film(pixels, STEPS if method == "qcfs" else LEVELS)
    expected = simulated(checkpoint, method, frames, STEPS)
    with open_engine(exported(method=method, **form), batch=8) as engine:
        policy = policy_from_manifest(engine.manifest)
        logits, *_ = run_to_the_end(engine, frames, policy.scale)
        answers = infer(engine, frames, policy)
    np.testing.assert_array_equal(logits, expected.transpose(1, 0, 2))
    np.testing.assert_array_equal(answers.logits, expected[-1])
    still = simulated(checkpoint, method, frames[0], STEPS)
    assert (expected[-1] != still[-1]).any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 6])
def test_a_short_sequence_ends_with_its_last_frame(
    exported: Exported, checkpoint: Checkpoint, pixels: np.ndarray, form: dict[str, object], length: int
):
    frames = film(pixels, length)
    with open_engine(exported(**form), batch=8) as engine:
        answers = infer(engine, frames, policy_from_manifest(engine.manifest))
    assert (answers.steps == length).all()
    assert set(answers.reason) == {"last step"}
    np.testing.assert_array_equal(answers.logits, simulated(checkpoint, "qcfs", frames, length)[-1])


def test_a_batch_that_is_not_full_is_filled_up(exported: Exported, pixels: np.ndarray):
    frames = film(pixels, 6)
    for form in FORMS:
        with open_engine(exported(**form), batch=8) as engine:
            policy = policy_from_manifest(engine.manifest, threshold=0.6)
            whole, some = infer(engine, frames, policy), infer(engine, frames[:, :3], policy)
        np.testing.assert_array_equal(some.logits, whole.logits[:3])
        np.testing.assert_array_equal(some.steps, whole.steps[:3])


@pytest.mark.parametrize(
    ("options", "shape", "dtype", "message"),
    [
        ({}, (2, 1, 12, 12), np.float32, r"input float32 \[2, 1, 12, 12\]: expected uint8 \[N, 1, 12, 12\]"),
        ({}, (2, 3, 12, 12), np.uint8, r"input uint8 \[2, 3, 12, 12\]: expected uint8 \[N, 1, 12, 12\]"),
        ({}, (1, 12, 12), np.uint8, r"input uint8 \[1, 12, 12\]: expected"),
        ({}, (1, 1, 2, 1, 12, 12), np.uint8, r"input uint8 \[1, 1, 2, 1, 12, 12\]: expected .* with time steps"),
        ({}, (12,), np.uint8, r"input uint8 \[12\]: expected"),
        ({}, (3, 1, 12, 12), np.uint8, r"3 inputs for an engine opened with batch 2: expected 1 to 2"),
        ({}, (0, 1, 12, 12), np.uint8, r"0 inputs for an engine opened with batch 2: expected 1 to 2"),
        ({}, (0, 2, 1, 12, 12), np.uint8, r"0 frames: expected at least one"),
        (
            {"steps_per_call": 4},
            (6, 2, 1, 12, 12),
            np.uint8,
            r"one image for 4 steps: export it with `dc-export --frames`",
        ),
        ({}, (13, 2, 1, 12, 12), np.uint8, r"13 frames: this network runs 12 time steps at most.*`dc-export -T 13`"),
        ({"method": "qffs"}, (12, 2, 1, 12, 12), np.uint8, r"12 frames: this QFFS .* first 3 steps .*`--method qcfs`"),
        ({"method": "qffs"}, (2, 2, 1, 12, 12), np.uint8, r"2 frames: this QFFS network takes input in its first 3"),
    ],
)
def test_pixels_that_do_not_fit_are_refused(exported: Exported, options, shape: tuple[int, ...], dtype, message: str):
    with open_engine(exported(**options), batch=2) as engine:
        policy = policy_from_manifest(engine.manifest)
        with pytest.raises(DynamicConfidenceError, match=message):
            infer(engine, np.zeros(shape, dtype), policy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.01}, r"threshold 1\.01: a confidence is a probability, .*\[0, 1\] \(1 never exits early\)"),
        ({"threshold": -0.5}, r"threshold -0\.5: a confidence is a probability"),
        ({"threshold": float("nan")}, r"threshold nan: a confidence is a probability"),
        ({"max_steps": 0}, r"steps 0: expected 1 to 12, the number this network was exported for"),
        ({"max_steps": 13}, r"steps 13: expected 1 to 12, .*`dc-export -T 13` makes another"),
        ({"deadline_ms": 0}, r"deadline 0 ms: expected a positive number"),
        ({"deadline_ms": float("nan")}, r"deadline nan ms: expected a positive number"),
    ],
)
def test_policies_that_make_no_sense_are_refused(exported: Exported, options: dict, message: str):
    manifest = read_onnx(exported())[1]
    with pytest.raises(DynamicConfidenceError, match=message):
        policy_from_manifest(manifest, **options)


def test_the_policy_is_the_calibrated_one(exported: Exported):
    manifest = read_onnx(exported())[1]
    calibration = msgspec.structs.replace(manifest.calibration, alpha=3.0, temperature=0.5, threshold=0.7, min_step=2)
    policy = policy_from_manifest(msgspec.structs.replace(manifest, calibration=calibration))
    assert (policy.scale, policy.threshold, policy.max_steps, policy.min_step) == (1.5, 0.7, STEPS, 2)
    assert policy_from_manifest(manifest, threshold=0.25, max_steps=4, deadline_ms=3).deadline_ms == 3
