"""dc-build writes a plan and its sidecar together or not at all, and refuses bad input with one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from dynamic_confidence.runtime.onnx_file import read_onnx
from dynamic_confidence.runtime.plan_file import read_plan
from dynamic_confidence.toolchain import plan_from_onnx as plan_module
from dynamic_confidence.toolchain.dc_build import main

needs_rtx = pytest.mark.usefixtures("rtx")
OLDER = {"net.plan": b"an older plan", "net.plan.json": b"an older sidecar"}


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")


@pytest.fixture
def network(exported: Callable[..., Path], tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(exported().read_bytes())
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--flavour", "rtx"])


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def refused(result: Result, message: str, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@needs_rtx
def test_a_plan_and_its_sidecar(network: Path):
    result = run(network, "--target", "SM89, sm86", "--batch", 4)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    plan = network.with_name("net.plan")
    info = read_plan(plan)
    assert info.manifest == read_onnx(network)[1]
    assert (info.engine.targets, info.engine.batch) == (("sm86", "sm89"), 4)
    assert f"{plan}: " in result.stdout
    assert f"TensorRT-RTX {info.engine.version} for sm86, sm89, batch 4 at most" in result.stdout
    assert set(contents(network.parent)) == {"net.onnx", "net.plan", "net.plan.json"}


def alike(files: dict[str, bytes]) -> dict[str, object]:
    """What two builds share: all but the order of bytes in the plan, and so its hash (docs/adr/0005-plans.md)."""
    sidecar = json.loads(files["net.plan.json"])
    del sidecar["engine"]["plan_sha256"]
    return {**files, "net.plan": len(files["net.plan"]), "net.plan.json": sidecar}


@needs_rtx
def test_json_and_files_that_are_alike_twice(network: Path):
    result = run(network, "--json", "--target", "sm120")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    files = contents(network.parent)
    assert facts["output"] == str(network.with_name("net.plan"))
    assert facts["bytes"] == len(files["net.plan"])
    assert facts["engine"] == json.loads(files["net.plan.json"])["engine"]
    assert run(network, "--target", "sm120", "--force").exit_code == 0
    assert alike(contents(network.parent)) == alike(files)


@needs_rtx
def test_the_command_in_an_error_mends_it(network: Path):
    assert run(network, "--target", "sm86").exit_code == 0
    files, plan = contents(network.parent), network.with_name("net.plan")
    plan.write_bytes(b"")
    with pytest.raises(Exception, match="is empty") as caught:
        read_plan(plan)
    command = str(caught.value).split("`")[1].split()
    assert command[0] == "dc-build"
    assert CliRunner().invoke(main, command[1:]).exit_code == 0
    assert alike(contents(network.parent)) == alike(files)


@pytest.mark.parametrize("name", OLDER)
def test_an_existing_file_needs_force(network: Path, name: str):
    network.with_name(name).write_bytes(OLDER[name])
    refused(run(network), f"{name}: exists already. Replace plan and sidecar with --force.")
    assert network.with_name(name).read_bytes() == OLDER[name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an ONNX file with 0 manifests where one is expected"),
        (bytes(64), "not a complete ONNX file (64 bytes)"),
        (b"hello world", "not a complete ONNX file (11 bytes)"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "an ONNX file with 0 manifests where one is expected"),
        (None, "no such file. Make one with `dc-export model.pt -o net.onnx`"),
    ],
    ids=["empty", "zeros", "junk", "no manifest", "missing"],
)
@pytest.mark.parametrize("older", [{}, OLDER], ids=["fresh", "older"])
def test_a_file_that_is_no_network(tmp_path: Path, content: bytes | None, message: str, older: dict[str, bytes]):
    files = {**older, **({} if content is None else {"net.onnx": content})}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    refused(run(tmp_path / "net.onnx", "--force"), f"net.onnx: {message}")
    assert contents(tmp_path) == files


def test_no_folder_for_the_plan(network: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plan_module, "plan_from_onnx", lambda *_, **__: pytest.fail("found out too late"))
    output = network.parent / "gone" / "net.plan"
    refused(run(network, "-o", output), f"its folder does not exist: mkdir -p {output.parent}")
    assert set(contents(network.parent)) == {"net.onnx"}


def test_an_output_that_cannot_be(network: Path):
    refused(run(network, "-o", network), f"a plan is named .plan: -o {network.with_suffix('.plan')}")
    network.with_name("net.plan.json").mkdir()
    refused(run(network, "--force"), "net.plan.json: is a folder, expected a file")


@pytest.mark.parametrize("targets", ["sm90", "sm80+,sm89", "8.9"])
@needs_rtx
def test_an_unknown_target(network: Path, targets: str):
    refused(run(network, "--target", targets), "builds for sm75, sm80, sm86, sm89, sm120")
    assert set(contents(network.parent)) == {"net.onnx"}


def test_without_the_library(network: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    refused(run(network), "TensorRT-RTX is not installed: `pip install 'dynamic-confidence[rtx]'`", code=3)
    assert set(contents(network.parent)) == {"net.onnx"}


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from dynamic_confidence.toolchain import dc_build

steps = []
def interrupt(self, phase, done, total):
    steps.append(phase)
    if len(steps) == 3:
        os.kill(os.getpid(), signal.SIGINT)

dc_build._Bars.__call__ = interrupt
dc_build.main()
"""


@pytest.mark.parametrize("older", [{}, OLDER], ids=["fresh", "older"])
@needs_rtx
def test_ctrl_c_during_the_build(network: Path, older: dict[str, bytes]):
    for name, data in older.items():
        network.with_name(name).write_bytes(data)
    before = contents(network.parent)
    command = [sys.executable, "-c", INTERRUPTED, str(network), "--flavour", "rtx", "--force"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")
    assert contents(network.parent) == before
