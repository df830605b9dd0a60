"""The exported file: a new calibration touches nothing else, and whatever is not such a file is refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from dynamic_confidence.runtime.engine import open_engine
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import METADATA_KEY
from dynamic_confidence.runtime.network_file import read_manifest
from dynamic_confidence.runtime.onnx_file import (
    ALLOWED_OPERATORS,
    bytes_with_manifest,
    graph_sha256,
    read_onnx,
    write_calibration,
)
from dynamic_confidence.runtime.stepping import run_to_the_end


@pytest.fixture
def network(exported: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy that may be written to."""
    path = tmp_path / "net.onnx"
    path.write_bytes(exported(method="qcfs").read_bytes())
    return path


def edited(path: Path, edit: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.load_model(path)
    edit(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def test_a_new_calibration_changes_nothing_else(network: Path, pixels: np.ndarray):
    before, old = read_onnx(network)
    new = msgspec.structs.replace(old.calibration, threshold=0.625, data="validation", samples=64)
    with open_engine(network, batch=8) as engine:
        logits, *_ = run_to_the_end(engine, pixels[:8], old.calibration.scale)
    write_calibration(network, new)
    after, manifest = read_onnx(network)
    assert manifest == msgspec.structs.replace(old, calibration=new)
    assert graph_sha256(after) == graph_sha256(before) == manifest.provenance.graph_sha256
    with open_engine(network, batch=8) as engine:
        np.testing.assert_array_equal(run_to_the_end(engine, pixels[:8], old.calibration.scale)[0], logits)
    assert [entry.name for entry in network.parent.iterdir()] == ["net.onnx"]

    write_calibration(network, old.calibration)
    assert read_onnx(network)[1] == old


def test_writing_the_same_calibration_again_gives_the_same_bytes(network: Path):
    content = network.read_bytes()
    write_calibration(network, read_onnx(network)[1].calibration)
    assert network.read_bytes() == content


def test_other_metadata_is_kept(network: Path):
    edited(network, lambda model: model.metadata_props.add(key="author", value="somebody"))
    write_calibration(network, read_onnx(network)[1].calibration)
    assert [(entry.key) for entry in read_onnx(network)[0].metadata_props] == ["author", METADATA_KEY]


def test_a_write_that_fails_leaves_the_old_file(network: Path, monkeypatch: pytest.MonkeyPatch):
    content = network.read_bytes()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DynamicConfidenceError, match=r"cannot write there \(No space left on device\)"):
        write_calibration(network, read_onnx(network)[1].calibration)
    assert network.read_bytes() == content
    assert [entry.name for entry in network.parent.iterdir()] == ["net.onnx"]


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")


def constant() -> onnx.NodeProto:
    """Its tensor may name a file outside the model's folder."""
    tensor = onnx.TensorProto(data_type=onnx.TensorProto.FLOAT, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    return onnx.helper.make_node("Constant", [], ["secret"], value=tensor)


def other_weight(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and t.dims)
    tensor.raw_data = tensor.raw_data[4:] + tensor.raw_data[:4]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda model: model.ClearField("metadata_props"),
            r"an ONNX file with 0 manifests .*not a network of this toolchain\. Export one with",
        ),
        (
            lambda model: model.metadata_props.append(model.metadata_props[0]),
            "an ONNX file with 2 manifests where one is expected",
        ),
        (external, "holds weights in other files, which no network of this toolchain has"),
        (
            lambda model: setattr(model, "ir_version", 9),
            r"holds IR version 9 and operator sets \[\('', 17\)\] \(expected 8 and \[\('', 17\)\]\)",
        ),
        (
            lambda model: setattr(model.opset_import[0], "version", 18),
            r"holds IR version 8 and operator sets \[\('', 18\)\]",
        ),
        (
            lambda model: model.opset_import.add(domain="com.microsoft", version=1),
            r"holds IR .*\('com.microsoft', 1\)\]",
        ),
        (lambda model: model.functions.add(name="Add", domain=""), "holds local functions, training information or"),
        (lambda model: model.training_info.add(), "holds local functions, training information or sparse weights"),
        (lambda model: model.graph.sparse_initializer.add(), "holds local functions, training information or sparse"),
        (lambda model: model.graph.node.add(op_type="If", name="x"), r"holds the operator 'If' \(node 'x'\)"),
        (
            lambda model: model.graph.node.add(op_type="Add", domain="com.evil"),
            r"holds the operator 'com\.evil\.Add' \(node ''\)",
        ),
        (lambda model: model.graph.node.insert(0, constant()), "holds the operator 'Constant'"),
        (
            lambda model: (
                model.graph.node[0].attribute.add(name="to", type=onnx.AttributeProto.TENSOR).t.dims.append(1)
            ),
            "holds a graph or a tensor inside a node",
        ),
        (
            lambda model: model.graph.node[0].attribute.add(name="body").g.node.add(),
            "holds a graph or a tensor inside a node",
        ),
        (other_weight, r"the graph is not the one its manifest describes \(provenance\.graph_sha256 differs\)"),
    ],
    ids=[
        *("no manifest", "two manifests", "external data", "IR version", "opset", "other operators", "function"),
        *("training", "sparse", "If", "domain", "Constant", "tensor attribute", "graph attribute", "tampered weight"),
    ],
)
def test_a_file_that_is_not_ours_is_refused(network: Path, edit: Callable[[onnx.ModelProto], object], message: str):
    edited(network, edit)
    with pytest.raises(DynamicConfidenceError, match=rf"net\.onnx: {message}.*`dc-export model\.pt`"):
        read_onnx(network)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "0 manifests"),
        (lambda content: content[: len(content) // 2], r"not a complete ONNX file \(\d+ bytes\)"),
        (lambda content: b"this is no network at all", r"not a complete ONNX file \(25 bytes\)"),
        (lambda content: b"\x89PNG\r\n\x1a\n" + bytes(100), r"not a complete ONNX file \(108 bytes\)"),
    ],
    ids=["empty", "truncated", "text", "png"],
)
def test_a_broken_file_is_refused(network: Path, damage: Callable[[bytes], bytes], message: str):
    network.write_bytes(damage(network.read_bytes()))
    with pytest.raises(DynamicConfidenceError, match=rf"net\.onnx: .*{message}.*`dc-export model\.pt`"):
        read_onnx(network)


def test_every_truncation_is_refused(network: Path):
    content = network.read_bytes()
    for length in range(0, len(content), len(content) // 40):
        network.write_bytes(content[:length])
        with pytest.raises(DynamicConfidenceError, match=r"complete ONNX file|manifest"):
            read_onnx(network)


@pytest.mark.parametrize("method", ["is_file", "read_bytes"])
def test_a_file_that_must_not_be_read_is_refused(network: Path, monkeypatch: pytest.MonkeyPatch, method: str):
    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, method, denied)
    with pytest.raises(
        DynamicConfidenceError, match=r"net\.onnx: cannot be read \(Permission denied\)\. Check its per"
    ):
        read_onnx(network)


def test_the_exporter_writes_allowed_operators_only():
    """Every operator that the exporter's source names may be read back."""
    sources = sorted((Path(__file__).parents[2] / "toolchain").glob("onnx_*.py"))
    written = {name for s in sources for name in re.findall(r'(?:add|make_node)\(\s*"([A-Z]\w+)"', s.read_text())}
    assert len(written) > 15
    allowed = {operator.rpartition(".")[2] for operator in ALLOWED_OPERATORS}
    assert written <= allowed, "add it to runtime/onnx_file.py and docs/contract.md"


def test_the_manifest_alone(network: Path, tmp_path: Path):
    assert read_manifest(network) == read_onnx(network)[1]
    with pytest.raises(DynamicConfidenceError, match=r"no engine runs '\.tflite' files, known: \.onnx, \.plan"):
        read_manifest(tmp_path / "net.tflite")


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(
        DynamicConfidenceError, match=r"no such file\. Make one with `dc-export model\.pt -o net\.onnx`"
    ):
        read_onnx(tmp_path / "net.onnx")
    with pytest.raises(DynamicConfidenceError, match="no such file"):
        read_onnx(tmp_path)


def test_a_graph_that_differs_from_its_manifest_does_not_run(network: Path):
    """The hash fits, the states do not: only a hand-made file is like this, and the engine still says so."""
    model, manifest = read_onnx(network)
    network.write_bytes(bytes_with_manifest(model, msgspec.structs.replace(manifest, states=manifest.states[1:])))
    with pytest.raises(DynamicConfidenceError, match=r"the graph's inputs are not those of its manifest: 'v_in\."):
        open_engine(network)


def test_a_graph_that_the_backend_cannot_load_is_refused(network: Path):
    model, manifest = read_onnx(network)
    model.graph.node[0].input[0] = "missing"
    provenance = msgspec.structs.replace(manifest.provenance, graph_sha256=graph_sha256(model))
    network.write_bytes(bytes_with_manifest(model, msgspec.structs.replace(manifest, provenance=provenance)))
    with pytest.raises(DynamicConfidenceError, match=r"ONNX Runtime \S+ cannot load it: (.|\n)*`dc-export model\.pt`"):
        open_engine(network)
