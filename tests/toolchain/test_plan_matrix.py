"""Every network, method, precision and K becomes a plan: the sidecar describes the graph, two builds are alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import onnx
import pytest
from click.testing import CliRunner, Result

from dynamic_confidence.benchmarks import plans
from dynamic_confidence.benchmarks.plans import METHODS, NETWORKS, STEPS_PER_CALL, TARGETS, Cell, cells
from dynamic_confidence.runtime.manifest import Precision
from dynamic_confidence.runtime.plan_file import json_from_sidecar, plan_header
from dynamic_confidence.toolchain.plan_from_onnx import plan_from_onnx

SMALL = [cell for cell in cells() if cell.network == "resnet8"]
LARGE = [cell for cell in cells() if cell.network != "resnet8"]


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")


def test_the_matrix():
    assert set(NETWORKS) == {"resnet8", "resnet20", "resnet18", "vgg16", "resnet50"}
    assert (METHODS, get_args(Precision), STEPS_PER_CALL) == (("qcfs", "qffs"), ("fp32", "fp16", "int8"), (1, 4))
    assert len({str(cell) for cell in cells()}) == len(SMALL) + len(LARGE) == 60
    assert str(SMALL[0]) == "resnet8/qcfs/fp32/K1"


def declared(values: Any) -> set[tuple[str, str, tuple[object, ...]]]:
    """(name, dtype, shape with "N") as the graph has it."""
    dtypes = {1: "float32", 2: "uint8", 7: "int64"}
    return {
        (
            value.name,
            dtypes[value.type.tensor_type.elem_type],
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    }


def described(tensors: list[dict[str, Any]]) -> set[tuple[str, str, tuple[object, ...]]]:
    return {(tensor["name"], tensor["dtype"], tuple(tensor["shape"])) for tensor in tensors}


@pytest.mark.parametrize("cell", SMALL, ids=str)
def test_a_small_network_becomes_a_plan(rtx, exported: Callable[..., Path], cell: Cell):
    """The small random ResNet-8 of the tests; `plan_from_onnx` itself compares sidecar and parsed network."""
    path = exported(method=cell.method, precision=cell.precision, steps_per_call=cell.steps_per_call)
    first, second = (plan_from_onnx(path, flavour="rtx", targets=TARGETS, precision=cell.precision) for _ in range(2))
    manifest = json.loads(json_from_sidecar(first.sidecar))["manifest"]
    graph = onnx.load(path).graph
    states = [{side: {**state, "name": state[side]} for side in ("input", "output")} for state in manifest["states"]]
    scale = {"name": manifest["scale_input"], "dtype": "float32", "shape": []}
    inputs = [manifest["input"], scale, *(state["input"] for state in states)]
    outputs = [*manifest["outputs"], *(state["output"] for state in states)]
    assert described(inputs) == declared(graph.input)
    assert described(outputs) == declared(graph.output)
    assert manifest["numerics"]["precision"] == cell.precision
    assert plan_header(first.content) == ("rtx", first.sidecar.engine.version)
    assert first.layers == second.layers > len(states)
    # The bytes are usually, not always, the same (docs/adr/0005-plans.md).
    assert len(first.content) == len(second.content)
    engine = msgspec.structs.replace(second.sidecar.engine, plan_sha256=first.sidecar.engine.plan_sha256)
    assert first.sidecar == msgspec.structs.replace(second.sidecar, engine=engine)


REAL_SIZE = [SMALL[0], *(pytest.param(cell, marks=pytest.mark.slow) for cell in LARGE)]


@pytest.mark.parametrize("cell", REAL_SIZE, ids=str)
def test_a_network_of_real_size_becomes_a_plan(rtx, cell: Cell):
    found = plans.measure(cell)
    assert isinstance(found["identical"], bool)
    assert len(found["build_seconds"]) == 2
    assert found["signature_is_the_graphs"]
    assert found["header"][0] == "rtx"
    assert found["plan_bytes"] > found["onnx_bytes"] / 2


MEASURED = {"plan_bytes": 1}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that the command measures; each takes no time."""
    names: list[str] = []

    def measure(cell: Cell) -> dict[str, Any]:
        names.append(str(cell))
        return MEASURED

    monkeypatch.setattr(plans, "measure", measure)
    monkeypatch.setattr(plans, "_version", lambda: "1.7.1")
    return names


def run(*arguments: object) -> Result:
    return CliRunner().invoke(plans.main, [*map(str, arguments)])


def test_a_run_goes_on_where_it_was(tmp_path: Path, measured: list[str]):
    output = tmp_path / "folder" / "record.json"
    assert run("-o", output, "--only", "resnet8/qcfs", "--precision", "fp32").exit_code == 0
    assert measured == ["resnet8/qcfs/fp32/K1", "resnet8/qcfs/fp32/K4"]
    result = run("-o", output, "--only", "resnet8/", "--precision", "fp32", "--precision", "int8")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"{output}: 8 of 60 cells"
    assert len(measured) == len(set(measured)) == 8
    record = json.loads(output.read_bytes())
    assert record["study"] == "plans"
    assert record["results"]["targets"] == list(TARGETS)
    assert record["results"]["cells"] == dict.fromkeys(measured, MEASURED)


def test_an_unknown_cell(tmp_path: Path, measured: list[str]):
    result = run("-o", tmp_path / "record.json", "--only", "resnet9")
    assert (result.exit_code, measured) == (2, [])
    assert "--only resnet9: no cell begins so, expected one like resnet8/qcfs/fp32/K1." in result.stderr


def test_a_record_of_other_versions(tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch):
    output = tmp_path / "record.json"
    assert run("-o", output, "--only", "resnet8/qcfs").exit_code == 0
    before = output.read_bytes()
    monkeypatch.setattr(plans, "_version", lambda: "1.8.0")
    result = run("-o", output)
    assert result.exit_code == 2
    assert "was measured with another tensorrt_rtx; one record holds one machine and its versions." in result.stderr
    assert output.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"junk", b"[]", b"{}", b'{"machine": {}, "results": {}}'])
def test_a_file_that_is_no_record(tmp_path: Path, measured: list[str], content: bytes):
    output = tmp_path / "record.json"
    output.write_bytes(content)
    result = run("-o", output)
    assert (result.exit_code, measured) == (2, [])
    assert "record.json: not a record of this study (" in result.stderr
    assert output.read_bytes() == content
