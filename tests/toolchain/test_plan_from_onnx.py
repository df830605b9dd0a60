"""Plans: real ones for every form of network, built twice alike; what TensorRT refuses is said clearly."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from onnx import TensorProto, helper

from dynamic_confidence.runtime.errors import BackendMissing, CheckFailed, DynamicConfidenceError
from dynamic_confidence.runtime.onnx_file import read_onnx
from dynamic_confidence.runtime.plan_file import PORTABLE, plan_header
from dynamic_confidence.toolchain import plan_from_onnx as module
from dynamic_confidence.toolchain import plan_worker
from dynamic_confidence.toolchain.plan_backend import Backend
from dynamic_confidence.toolchain.plan_from_onnx import plan_from_onnx
from dynamic_confidence.toolchain.plan_worker import Job, build

TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120")
FORMS = [
    {"method": method, "steps_per_call": steps, "frames": frames, "count_spikes": True}
    for method in ("qcfs", "qffs")
    for steps in (1, 4)
    for frames in (False, True)
]


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
def test_every_form_of_network_builds(rtx, exported: Callable[..., Path], form: dict[str, Any]):
    path = exported(**form)
    plan = plan_from_onnx(path, flavour="rtx", targets=TARGETS)
    engine = plan.sidecar.engine
    assert plan_header(plan.content) == ("rtx", engine.version)
    assert engine.version.startswith(rtx.__version__)
    assert plan.sidecar.manifest == read_onnx(path)[1]
    assert engine.targets == TARGETS
    assert (engine.flavour, engine.batch, engine.onnx) == ("rtx", 1, path.name)
    assert engine.onnx_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert engine.plan_sha256 == hashlib.sha256(plan.content).hexdigest()
    identity = {"name": path.stem, "graph_sha256": plan.sidecar.manifest.provenance.graph_sha256[:16]}
    assert json.dumps(identity).encode() in plan.content


@pytest.mark.parametrize("target", [*TARGETS, PORTABLE])
def test_every_target_builds_alike_twice(rtx, exported: Callable[..., Path], target: str):
    """The same size and identity; the bytes are usually, not always, the same (docs/adr/0005-plans.md)."""
    first, second = (plan_from_onnx(exported(), flavour="rtx", targets=(target,)) for _ in range(2))
    assert len(first.content) == len(second.content)
    assert first.content[:28] == second.content[:28]
    alike = msgspec.structs.replace(second.sidecar.engine, plan_sha256=first.sidecar.engine.plan_sha256)
    assert first.sidecar == msgspec.structs.replace(second.sidecar, engine=alike)


def test_targets_and_batch_are_in_the_plan(rtx, exported: Callable[..., Path]):
    def built(**options: Any) -> tuple[int, tuple[str, ...], int]:
        plan = plan_from_onnx(exported(), flavour="rtx", **options)
        return len(plan.content), plan.sidecar.engine.targets, plan.sidecar.engine.batch

    assert built() == built(targets=(PORTABLE,))
    assert built(targets=("sm89", "sm86", "sm89")) == built(targets=("sm86", "sm89"))
    assert built(batch=8)[1:] == ((PORTABLE,), 8)


def test_the_configuration(rtx):
    builder = rtx.Builder(plan_worker.logger(rtx))
    config = builder.create_builder_config()
    assert config.get_flag(rtx.BuilderFlag.TF32)
    plan_worker._configure(rtx, config, ("sm86", "sm120"))
    assert not config.get_flag(rtx.BuilderFlag.TF32)
    assert config.profiling_verbosity == rtx.ProfilingVerbosity.DETAILED
    assert config.max_aux_streams == 0
    assert config.get_flag(rtx.BuilderFlag.REQUIRE_USER_ALLOCATION)
    found = [config.get_compute_capability(index) for index in range(config.num_compute_capabilities)]
    assert found == [rtx.ComputeCapability.SM86, rtx.ComputeCapability.SM120]


def test_the_configuration_of_a_library_without_these_names():
    """TensorRT has no compute capabilities, and a later one may have no TF32."""
    trt = SimpleNamespace(BuilderFlag=SimpleNamespace(), ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"))
    config = SimpleNamespace()
    plan_worker._configure(trt, config, ("sm87",))
    assert vars(config) == {"profiling_verbosity": "detailed", "max_aux_streams": 0}


def test_progress(rtx, exported: Callable[..., Path]):
    events: list[tuple[str, int, int]] = []
    plan_from_onnx(exported(), flavour="rtx", report=lambda *event: events.append(event))
    finished = {phase for phase, done, total in events if done == total}
    assert "Building engine" in finished
    assert finished == {phase for phase, _, _ in events}


def test_the_build_stops_when_nobody_listens(rtx, exported: Callable[..., Path]):
    """The pipe of a parent that is gone; tests/commands/test_dc_build.py sends the signal."""
    phases = []

    def report(phase: str, done: int, total: int) -> None:
        phases.append(phase)
        raise BrokenPipeError

    with pytest.raises(DynamicConfidenceError, match=r"cannot build it for sm80\+ \(.*\)\. Choose another --target"):
        build(Backend("rtx", rtx, (PORTABLE,)), exported().read_bytes(), source="net", name="net", report=report)
    assert "Timing tactics" not in phases


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "import os, signal, sys; sys.stdin.buffer.read(); os.kill(os.getpid(), signal.SIGSEGV)",
            "code -11 in the mid",
        ),
        (
            "raise SystemExit('a word')",
            r"ended with code 1 in the middle of the build \(a word\)\. Nothing was written",
        ),
    ],
    ids=["crash", "exit"],
)
def test_a_worker_that_dies(
    rtx, exported: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str
):
    (tmp_path / "worker.py").write_text(program)
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/worker.py"\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(CheckFailed, match=message):
        plan_from_onnx(exported(), flavour="rtx")


def test_a_worker_that_fails_before_it_has_read_all():
    """More than a pipe holds: its reason must arrive although nobody reads the rest of the network."""
    if find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed: this needs a library that is not")
    job = Job("tensorrt", ("sm87",), "net.onnx", "net", 1, {})
    backend = Backend("tensorrt", SimpleNamespace(__version__="10.3.0"), ("sm87",))
    with pytest.raises(BackendMissing, match="TensorRT is not installed"):
        module._build_alone(backend, job, bytes(5_000_000), lambda phase, done, total: None)


def graph(op: str, outputs: int = 1) -> bytes:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (4, 4)) for name in ("x", "y")]
    node = helper.make_node(op, ["x"], ["y"], name="the node")
    made = helper.make_graph([node], "graph", tensors[:1], tensors[1 : 1 + outputs])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (graph("Unique"), r"net\.onnx: TensorRT-RTX [\d.]+ refuses node 'the node' \(Unique\): not supported\. Export"),
        (graph("Strange"), r"refuses node 'the node' \(Strange\): .*Plugin not found.*\. Export the network with"),
        (b"", r"net\.onnx: TensorRT-RTX [\d.]+ found no outputs in it, expected a network"),
        (bytes(64), "found no outputs in it"),
        (b"hello world", "found no outputs in it"),
    ],
    ids=["operator", "plugin", "empty", "zeros", "junk"],
)
def test_what_the_parser_refuses(rtx, content: bytes, message: str):
    with pytest.raises(DynamicConfidenceError, match=message):
        build(Backend("rtx", rtx, (PORTABLE,)), content, source="net.onnx", name="net")


def with_other_manifest(monkeypatch: pytest.MonkeyPatch, path: Path, change: Callable[[Any], Any]) -> None:
    model, manifest = read_onnx(path)
    monkeypatch.setattr(module, "read_onnx", lambda path: (model, change(manifest)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: msgspec.structs.replace(m, scale_input="scale"),
            r"tensor 'alpha' of the parsed network is input float32 \[\], its manifest says missing",
        ),
        (
            lambda m: msgspec.structs.replace(
                m, states=(msgspec.structs.replace(m.states[0], shape=("N", 4, 9, 9)), *m.states[1:])
            ),
            r"tensor 'v_in\.activation1' of the parsed network is input float32 \[-1, 4, 12, 12\], its manifest "
            r"says input float32 \[-1, 4, 9, 9\]\. Nothing was written",
        ),
        (
            lambda m: msgspec.structs.replace(m, states=m.states[:-1]),
            r"tensor 'acc_in' of the parsed network is input float32 \[-1, 4\], its manifest says missing",
        ),
    ],
)
def test_a_network_that_the_manifest_does_not_describe(
    rtx, exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any], message: str
):
    with_other_manifest(monkeypatch, exported(), change)
    with pytest.raises(CheckFailed, match=message):
        plan_from_onnx(exported(), flavour="rtx")


def test_an_invalid_graph_does_not_reach_the_parser(exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    model, manifest = read_onnx(exported())
    model.graph.node[0].input[0] = "nowhere"
    monkeypatch.setattr(module, "read_onnx", lambda path: (model, manifest))
    with pytest.raises(DynamicConfidenceError, match=r"not a valid ONNX graph \(.*nowhere.*Export it again with"):
        plan_from_onnx(exported())


@pytest.mark.parametrize("batch", [0, 2**31])
def test_a_batch_outside_the_limits(exported: Callable[..., Path], batch: int):
    with pytest.raises(DynamicConfidenceError, match=rf"batch {batch}: expected 1 to 2147483647"):
        plan_from_onnx(exported(), batch=batch)
