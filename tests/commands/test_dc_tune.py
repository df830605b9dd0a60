"""dc-tune: what it writes is what it measured, what runs follows it, and a new calibration drops it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from dynamic_confidence.calib import dc_tune, tuning
from dynamic_confidence.calib.dc_calibrate import main as calibrate
from dynamic_confidence.calib.dc_tune import main
from dynamic_confidence.calib.write_trace import write_trace
from dynamic_confidence.runtime.dc_run import main as run_main
from dynamic_confidence.runtime.manifest import Schedule
from dynamic_confidence.runtime.network_file import read_manifest
from dynamic_confidence.runtime.onnx_file import write_calibration, write_schedule
from dynamic_confidence.toolchain.dc_inspect import main as inspect

COSTS = {1: 1.0, 2: 1.9, 4: 2.0}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(autouse=True)
def _idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dc_tune, "used_share", lambda: 0.0)


@pytest.fixture
def network(exported: Callable[..., Path], tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(exported(steps_per_call=1, more_steps_per_call=(2, 4)).read_bytes())
    calibration = read_manifest(path).calibration
    write_calibration(path, msgspec.structs.replace(calibration, threshold=0.6, data="val", samples=64))
    return path


@pytest.fixture
def data(pixels: np.ndarray, tmp_path: Path) -> Path:
    np.savez(tmp_path / "val.npz", image=pixels, label=np.arange(64) % 4)
    return tmp_path / "val.npz"


def test_what_is_written_is_what_was_chosen(network: Path, data: Path):
    before = read_manifest(network)
    result = run(network, "--data", data, "--seconds", 0.01, "--threads", 1, "--backend", "onnxruntime", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    after = read_manifest(network)
    assert after.schedule is not None
    assert msgspec.structs.replace(after, schedule=None) == before
    assert facts["written"] is True
    assert facts["chosen"] in facts["candidates"]
    assert list(after.schedule.calls) == facts["chosen"]["calls"]
    assert after.schedule.measured_ms == pytest.approx(facts["chosen"]["measured_ms"], abs=1e-6)
    assert after.schedule.expected_ms == pytest.approx(facts["chosen"]["expected_ms"], abs=1e-6)
    assert after.schedule.threads == facts["threads"] == 1
    assert after.schedule.engine == facts["engine"]
    assert [[str(size), ms] for size, ms in after.schedule.cost_ms] == [list(pair) for pair in facts["cost_ms"].items()]
    assert sum(facts["exit_histogram"]) == pytest.approx(1)
    assert facts["samples"] == 64
    assert result.stderr == ""


def test_dc_run_follows_it_with_the_same_answers(network: Path, data: Path, tmp_path: Path):
    def answers() -> list[dict[str, object]]:
        done = CliRunner().invoke(run_main, ["--engine", str(network), str(data), "--json"])
        assert done.exit_code == 0, done.output
        return [{k: v for k, v in json.loads(line).items() if k != "ms"} for line in done.stdout.splitlines()]

    before = answers()
    write_schedule(network, Schedule((4, 1, 2), tuple(COSTS.items()), "ONNX Runtime", None, 1.0, 1.0))
    assert answers() == before
    assert len({answer["steps"] for answer in before}) > 2


def test_a_dry_run_writes_nothing(network: Path, data: Path):
    content = network.read_bytes()
    result = run(network, "--data", data, "--seconds", 0.01, "--dry-run")
    assert result.exit_code == 0, result.output
    assert network.read_bytes() == content
    assert f"not written into {network}" in result.output


def test_the_table(network: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        tuning, "costs_of_calls", lambda samples, steps: {k: np.full((2, steps), ms) for k, ms in COSTS.items()}
    )
    result = run(network, "--data", data, "--seconds", 0.01, "--backend", "onnxruntime")
    assert result.exit_code == 0, result.output
    for row in ("1, …", "2, …", "4, …", "<- chosen"):
        assert row in result.output
    assert "64 inputs of val.npz stop after" in result.output
    assert "differ by up to" in result.output  # milliseconds were expected, it takes microseconds
    assert f"…: written into {network}" in result.output


def test_a_trace_of_the_data_gives_the_same_exits(network: Path, data: Path, tmp_path: Path, pixels: np.ndarray):
    write_trace(network, data, tmp_path / "trace")
    kept, ran = (
        json.loads(run(network, "--data", data, *more, "--seconds", 0.01, "--dry-run", "--json").stdout)
        for more in (("--trace", tmp_path / "trace"), ())
    )
    assert kept["exit_histogram"] == ran["exit_histogram"]
    np.savez(tmp_path / "other.npz", image=pixels, label=np.arange(64) % 3)
    result = run(network, "--data", tmp_path / "other.npz", "--trace", tmp_path / "trace")
    assert result.exit_code == 2
    assert "is a trace of val.npz, whose samples are not those of other.npz" in result.output


def test_a_new_calibration_drops_the_schedule_and_says_so(network: Path, data: Path):
    write_schedule(network, Schedule((4, 1), tuple(COSTS.items()), "ONNX Runtime", None, 1.0, 1.0))
    shown = CliRunner().invoke(inspect, [str(network)]).output
    assert "schedule.calls" in shown
    assert "4, 1" in shown
    for said in (True, False):
        result = CliRunner().invoke(calibrate, [str(network), "--data", str(data), "--max-drop", "50"])
        assert result.exit_code == 0, result.output
        message = f"{network}: its schedule was tuned to the exits of before and is gone. Tune it again: dc-tune"
        assert (message in result.stderr) == said
        assert read_manifest(network).schedule is None


def test_a_busy_machine_is_said(network: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dc_tune, "used_share", lambda: 1.5)
    result = run(network, "--data", data, "--seconds", 0.01, "--dry-run", "--json")
    assert "this machine is busy (150% of all cores)" in result.stderr
    assert json.loads(result.stdout)["load_per_core"] == 1.5


def test_the_load_of_this_machine_is_a_number():
    assert dc_tune.used_share() >= 0


def test_a_network_with_one_k(exported: Callable[..., Path], data: Path):
    result = run(exported(steps_per_call=4), "--data", data)
    assert result.exit_code == 2
    assert "has calls of 4 steps and no others" in result.output
    assert "`dc-export model.pt -K 1,2,4,8`" in result.output


def test_a_network_without_a_calibration(exported: Callable[..., Path], data: Path):
    result = run(exported(steps_per_call=1, more_steps_per_call=(2, 4)), "--data", data)
    assert result.exit_code == 2
    assert "is not calibrated, and a schedule depends on when inputs stop. First: dc-calibrate" in result.output


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_time_that_is_none(network: Path, data: Path, seconds: float):
    result = run(network, "--data", data, f"--seconds={seconds}")
    assert result.exit_code == 2
    assert "expected a positive number" in result.output
