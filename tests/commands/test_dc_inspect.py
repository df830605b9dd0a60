"""dc-inspect: every kind of file says what it is, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dynamic_confidence.runtime.manifest import Schedule
from dynamic_confidence.runtime.network_file import read_manifest
from dynamic_confidence.runtime.onnx_file import write_schedule
from dynamic_confidence.toolchain.dc_inspect import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_an_exported_network(exported: Callable[..., Path]) -> None:
    network = exported(method="qffs", steps_per_call=4)
    facts = json.loads(run(network, "--json").stdout)
    assert facts["kind"] == "exported network"
    assert facts["bytes"] == network.stat().st_size
    assert facts["manifest"]["steps_per_call"] == 4
    manifest = read_manifest(network)
    # Two float32 states per neuron, the accumulated logits and the step counter.
    neurons = sum(c * y * x for _, c, y, x in (s.shape for s in manifest.states if s.input.startswith("v_in")))  # type: ignore[misc]
    assert facts["state_bytes_per_input"] == 4 * (2 * neurons + 4 + 1)
    table = run(network).stdout
    for text in ("method.name", "qffs", "calibration.threshold", "numerics.exact", "v_in.activation1", "… ("):
        assert text in table


def test_a_schedule(exported: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(exported(more_steps_per_call=(2,)).read_bytes())
    write_schedule(path, Schedule((2, 1), ((1, 1.0), (2, 1.5)), "ONNX Runtime", 1, 2.5, 2.25))
    rows = [" ".join(line.split()) for line in run(path).stdout.splitlines()]
    assert "schedule.calls 2, 1" in rows
    assert "schedule.cost_ms 1: 1.0, 2: 1.5" in rows


def test_a_checkpoint(model_file: Path) -> None:
    facts = json.loads(run(model_file, "--json").stdout)
    assert facts["kind"] == "checkpoint"
    assert facts["architecture"] == "resnet8"
    assert facts["class_names"] == ["zero", "one", "two", "three"]
    assert "arguments.width" in run(model_file).stdout


def test_a_plan(exported: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="plans are built with TensorRT-RTX: pip install tensorrt-rtx")
    from dynamic_confidence.toolchain.dc_build import main as build

    plan = tmp_path / "net.plan"
    built = CliRunner().invoke(build, [str(exported()), "-o", str(plan), "--target", "sm89"])
    assert built.exit_code == 0, built.output
    facts = json.loads(run(plan, "--json").stdout)
    assert facts["kind"] == "plan"
    assert facts["engine"]["targets"] == ["sm89"]
    assert facts["manifest"]["method"]["name"] == "qcfs"
    assert "engine.version" in run(plan).stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "net.tflite",
            "net.tflite: is named '.tflite', expected .pt, .pth, .onnx, .plan. Of checkpoints",
        ),
        ("missing", "missing: no such file. Give one of .pt, .pth, .onnx, .plan."),
        ("folder.pt", "folder.pt: is a folder, expected .pt, .pth, .onnx, .plan."),
        ("net.onnx", "no such file"),
        ("model.pt", "no such file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "net.tflite").touch()
    result = run(tmp_path / name)
    assert result.exit_code == 2
    assert message in result.stderr
