"""The study of schedules: a record with every sample, ratios that follow from it, and files that stay as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from support import ROOT

from dynamic_confidence.benchmarks import schedules
from dynamic_confidence.benchmarks.schedules import main
from dynamic_confidence.benchmarks.schedules_page import table
from dynamic_confidence.calib import tuning
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.network_file import read_manifest, write_calibration


@pytest.fixture
def arguments(exported: Callable[..., Path], pixels: np.ndarray, tmp_path: Path) -> list[str]:
    np.savez(tmp_path / "data.npz", image=pixels, label=np.arange(64) % 4)
    networks = []
    for method in ("qcfs", "qffs"):
        path = tmp_path / f"{method}.onnx"
        path.write_bytes(exported(method=method, steps_per_call=1, more_steps_per_call=(2, 4)).read_bytes())
        calibration = read_manifest(path).calibration
        write_calibration(path, msgspec.structs.replace(calibration, threshold=0.6, data="val", samples=64))
        networks.append(str(path))
    data = ["--data", str(tmp_path / "data.npz")]
    return [*networks, *data, "--seconds", "0.01", "--backend", "onnxruntime", "-o", str(tmp_path / "r.json")]


def test_every_network_is_measured_and_left_alone(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Whatever it is worth, one is measured.
    monkeypatch.setattr(tuning, "WORTH", 99.0)
    monkeypatch.setattr(tuning, "best_schedule", lambda shares, costs: (2, 1, *[4] * 3))
    before = [Path(name).read_bytes() for name in arguments[:2]]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert [Path(name).read_bytes() for name in arguments[:2]] == before
    found = json.loads((tmp_path / "r.json").read_text())["results"]["networks"]
    assert [row["method"] for row in found] == ["qcfs", "qffs"]
    for row in found:
        assert list(row["fixed"]) == ["K = 1", "K = 2", "K = 4"]
        assert row["schedule"]["calls"] == [2, 1, 4]
        best = min(one["measured_ms"] for one in row["fixed"].values())
        for one in (*row["fixed"].values(), row["schedule"]):
            samples = np.array(one["samples_ms"])
            assert samples.shape == (16, 3)
            assert one["measured_ms"] == pytest.approx(np.median(samples, axis=1).mean(), abs=1e-4)
            assert one["best_fixed_over_this"] == pytest.approx(best / one["measured_ms"])
            assert one["measured_over_expected"] == pytest.approx(one["measured_ms"] / one["expected_ms"])
        assert row["same_answers"] is True
        assert {sample[0] for sample in row["call_samples"]} == {1, 2, 4}
        assert all(len(sample) == 4 and sample[3] > 0 for sample in row["call_samples"])
        # Made for one half, timed on the other.
        steps = np.arange(1, 13) @ np.array(row["exit_histogram"])
        assert steps == pytest.approx(row["mean_steps"]["tuned on"]) != row["mean_steps"]["timed on"]
    assert "  schedule " in result.output
    assert ": 2, 1, 4, …" in result.output


def test_what_was_measured_is_kept_when_the_next_network_fails(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    measured, done = schedules._measured, []

    def once(*more: object) -> dict[str, object]:
        if done:
            raise DynamicConfidenceError("the second one fails")
        done.append(measured(*more))
        return done[0]

    monkeypatch.setattr(schedules, "_measured", once)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert len(json.loads((tmp_path / "r.json").read_text())["results"]["networks"]) == 1


def test_a_network_with_one_k_is_found_before_the_work(exported: Callable[..., Path], arguments: list[str]):
    result = CliRunner().invoke(main, [arguments[0], str(exported()), *arguments[2:]])
    assert result.exit_code == 2
    assert "has calls of 1 steps and no others" in result.output


def test_the_table_has_a_row_of_each_network(arguments: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning, "WORTH", 0.0)  # no schedule is worth it
    result = CliRunner().invoke(main, [*arguments, "--table"])
    assert result.exit_code == 0, result.output
    _, _, *rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines()]
    assert [(row[0], row[5], row[-1]) for row in rows] == [
        ("resnet8, QCFS, fp32", "none", "1.00"),
        ("resnet8, QFFS, fp32", "none", "1.00"),
    ]


def test_the_row_of_a_schedule():
    found = {
        **{"architecture": "vgg16", "method": "qffs", "precision": "int8", "form": "matmul", "steps": 12},
        **{"rule": None, "threshold": 0.75, "engine": "ONNX Runtime 1.0, CPU", "mean_steps": {"timed on": 4.1}},
        "fixed": {"K = 1": {"measured_ms": 5.0}, "K = 2": {"measured_ms": 4.4}},
        "schedule": {"calls": [4, 1], "measured_ms": 4.0, "expected_ms": 4.1, "best_fixed_over_this": 1.1},
    }
    row = table([found]).splitlines()[-1].strip("| ").split(" | ")
    assert row == [
        *("vgg16, QFFS, int8 (matmul)", "threshold 0.75", "ONNX Runtime 1.0", "4.10 of 12", "4.40 (K = 2)"),
        *("4, 1, …", "4.00", "4.10", "1.10"),
    ]


def test_the_table_in_the_docs_is_the_records_s():
    found = [
        network
        for name in ("schedules", "schedules_events")
        for network in json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["results"]["networks"]
    ]
    assert f"\n\n{table(found)}\n\n" in (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    for network in found:
        rows = [*network["fixed"].values(), *filter(None, [network["schedule"]])]
        assert all(abs(row["measured_over_expected"] - 1) < 0.1 for row in rows)
