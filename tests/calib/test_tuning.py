"""Tuning: which images are timed, what a call costs, what is chosen, and that different answers are an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_confidence.calib import tuning as module
from dynamic_confidence.calib.labelled_images import labelled_images
from dynamic_confidence.calib.schedule import expected_latency
from dynamic_confidence.calib.tuning import (
    Candidate,
    Tuning,
    exits_of_images,
    representative,
    tune,
)
from dynamic_confidence.runtime.engine import open_engine
from dynamic_confidence.runtime.errors import CheckFailed
from dynamic_confidence.runtime.exit_policy import policy_from_manifest
from dynamic_confidence.runtime.manifest import Schedule
from dynamic_confidence.runtime.network_file import read_manifest, write_calibration
from dynamic_confidence.runtime.onnx_file import write_schedule
from dynamic_confidence.runtime.stepping import infer


@given(st.lists(st.integers(1, 16), min_size=1, max_size=200), st.integers(1, 60))
def test_representative_samples_stop_like_all(exits: list[int], count: int):
    found = representative(np.array(exits), count)
    assert len(found) == len(set(found.tolist())) == min(count, len(exits))
    for step in range(17):
        share, whole = np.mean(np.array(exits)[found] <= step), np.mean(np.array(exits) <= step)
        assert abs(share - whole) <= 1 / len(found)


def test_they_come_in_a_mixed_order():
    """So that a machine that slows down does not slow down the late exits only."""
    exits = np.repeat(np.arange(1, 11), 10)
    found = exits[representative(exits, 50)]
    assert abs(np.corrcoef(found, np.arange(50))[0, 1]) < 0.4


def found(name: str, calls: tuple[int, ...], ms: float) -> Candidate:
    samples = np.array([[ms - 0.5, ms - 0.5, 99.0], [ms + 0.5, ms + 0.5, 0.0]])
    return Candidate(name, calls, ms, samples)


@pytest.mark.parametrize(
    ("fixed", "mixed", "calls"),
    [
        ((5.0, 4.0), 3.9, (4, 1)),
        ((5.0, 4.0), 3.95, (4,)),  # not by 2 %
        ((4.0, 5.0), 9.0, (1,)),
        ((4.0, 5.0), None, (1,)),
    ],
)
def test_a_schedule_must_be_clearly_faster(fixed: tuple[float, float], mixed: float | None, calls: tuple[int, ...]):
    tuning = Tuning(
        engine="ONNX Runtime",
        threads=1,
        histogram=np.array([0.5, 0.5]),
        costs={1: np.array([[5.0, 1.0], [6.0, 6.0]]), 4: np.array([[9.0, 3.0], [9.0, 9.0]])},
        call_samples=[],
        fixed=(found("K = 1", (1,), fixed[0]), found("K = 4", (4,), fixed[1])),
        schedule=None if mixed is None else found("schedule", (4, 1), mixed),
    )
    record = tuning.record
    assert record.calls == calls
    assert record.measured_ms == min(*fixed, *([mixed] if len(calls) > 1 and mixed else []))
    assert record.cost_ms == ((1, 1.0), (4, 3.0))
    assert (record.engine, record.threads) == ("ONNX Runtime", 1)


@pytest.fixture(scope="module")
def calibrated(exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with several K whose inputs stop at different steps. Read it, never write to it."""
    path = tmp_path_factory.mktemp("tuned") / "net.onnx"
    path.write_bytes(exported(steps_per_call=1, more_steps_per_call=(2, 4)).read_bytes())
    calibration = read_manifest(path).calibration
    write_calibration(path, msgspec.structs.replace(calibration, threshold=0.6, data="val", samples=64))
    return path


@pytest.fixture(scope="module")
def data(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "val.npz"
    np.savez(path, image=pixels, label=np.arange(64) % 4)
    return path


def listed(path: Path, data: Path):
    manifest = read_manifest(path)
    return manifest, labelled_images(data, manifest.input.preprocessing, manifest.class_names)


def test_exits_are_those_of_single_images(calibrated: Path, data: Path, pixels: np.ndarray):
    _, images = listed(calibrated, data)
    found = exits_of_images(calibrated, images, lambda items, what: items)
    with open_engine(calibrated, batch=64) as engine:
        expected = infer(engine, pixels, policy_from_manifest(engine.manifest)).steps
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 2


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_k_and_the_schedule_are_measured(calibrated: Path, data: Path, backend: str):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    manifest, images = listed(calibrated, data)
    exits = np.tile(np.array([3, 4, 5, 6]), 16)
    found = tune(calibrated, manifest, images, exits, seconds=0.001, backend=backend, threads=1)
    assert [candidate.calls for candidate in found.fixed] == [(1,), (2,), (4,)]
    assert list(found.cost_ms) == [1, 2, 4]
    assert found.threads == 1
    assert found.histogram.tolist() == [0, 0, 0.25, 0.25, 0.25, 0.25, 0, 0, 0, 0, 0, 0]
    for candidate in (*found.fixed, *([found.schedule] if found.schedule else [])):
        latency = expected_latency(candidate.calls, found.histogram, found.costs)
        assert candidate.expected_ms == pytest.approx(latency)
        assert candidate.samples_ms.shape == (module.FEWEST, module.ROUNDS)
        assert (candidate.samples_ms > 0).all()
    assert found.record.engine.replace(" ", "").lower().startswith(backend)
    assert backend == "onnxruntime" or found.schedule is None
    assert read_manifest(calibrated).schedule is None  # nothing was written


def test_all_k_run_on_one_backend(calibrated: Path, data: Path, tmp_path: Path):
    """Also where each alone would run on another."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    path = tmp_path / "net.onnx"
    path.write_bytes(calibrated.read_bytes())
    costs = ((1, 1.0), (2, 1.0), (4, 1.0))
    write_schedule(path, Schedule((4,), costs, "OpenVINO 2026.4.1, CPU", None, 1.0, 1.0))
    manifest, images = listed(path, data)
    found = tune(path, manifest, images, np.full(64, 5), seconds=0.001)
    assert found.engine.startswith("OpenVINO")
    assert found.schedule is None


def test_a_schedule_is_measured_where_one_is_expected_to_win(
    calibrated: Path, data: Path, monkeypatch: pytest.MonkeyPatch
):
    manifest, images = listed(calibrated, data)
    flat = {size: np.full((2, manifest.max_steps), ms) for size, ms in {1: 1.0, 2: 1.9, 4: 2.0}.items()}
    monkeypatch.setattr(module, "costs_of_calls", lambda samples, steps: flat)
    found = tune(calibrated, manifest, images, np.array([4, 5, 5, 5] * 16), seconds=0.01)
    assert found.schedule is not None
    assert found.schedule.calls == (4, 1, 4)  # behind the last exit that was seen: the cheapest way to the end
    assert found.schedule.expected_ms == 2.0 + 0.75 * 1.0


@pytest.mark.parametrize("field", ["label", "steps", "logits"])
def test_other_answers_are_an_error(calibrated: Path, data: Path, monkeypatch: pytest.MonkeyPatch, field: str):
    manifest, images = listed(calibrated, data)
    right = module.infer

    def wrong(engine, pixels, policy, *, calls):
        answers = right(engine, pixels, policy, calls=calls)
        if calls == (4,):
            first, *rest = answers.rows
            answers.rows[:] = [first._replace(**{field: getattr(first, field) + 1}), *rest]
        return answers

    monkeypatch.setattr(module, "infer", wrong)
    with pytest.raises(CheckFailed, match=r"image \[\d+\]: K = .* answers \d after \d+ steps, another way .*report it"):
        tune(calibrated, manifest, images, np.array([4, 5, 5, 5] * 16), seconds=0.01)
