"""dc-build writes a plan and its sidecar together or not at all, and refuses bad input with one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from dynamic_confidence.runtime import onnx_file
from dynamic_confidence.runtime.onnx_file import bytes_with_manifest, graph_sha256, read_onnx
from dynamic_confidence.runtime.plan_file import read_plan
from dynamic_confidence.toolchain import plan_from_onnx as plan_module
from dynamic_confidence.toolchain import write_plan
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
    assert f"MB, fp32, TensorRT-RTX {info.engine.version} for sm86, sm89, batch 4 at most" in result.stdout
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
    assert facts["precision"] == "fp32"
    assert facts["layers"] > 50
    assert run(network, "--target", "sm120", "--force").exit_code == 0
    assert alike(contents(network.parent)) == alike(files)


@needs_rtx
def test_notes_go_to_stderr(network: Path, monkeypatch: pytest.MonkeyPatch):
    build, options = plan_module.plan_from_onnx, {}

    def with_a_note(path: Path, **given: object) -> plan_module.Plan:
        options.update(given)
        return build(path, **given)._replace(notes=("the timing cache is not what it was.",))  # type: ignore[arg-type]

    monkeypatch.setattr(write_plan, "plan_from_onnx", with_a_note)
    result = run(network, "--json", "--no-timing-cache")
    assert (result.exit_code, result.stderr) == (0, "Note: the timing cache is not what it was.\n")
    assert json.loads(result.stdout)["precision"] == "fp32"
    assert options["timing_cache"] is False


@needs_rtx
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_precision_is_the_graphs(exported: Callable[..., Path], tmp_path: Path, precision: str):
    network = tmp_path / "net.onnx"
    network.write_bytes(exported(precision=precision).read_bytes())
    refused(
        run(network, "--precision", "fp32"),
        f"net.onnx: was exported in {precision}, expected fp32. A plan has the precision of its graph: export it again "
        "with `dc-export model.pt --precision fp32`, or leave --precision out.",
    )
    assert set(contents(tmp_path)) == {"net.onnx"}
    result = run(network, "--precision", precision)
    assert result.exit_code == 0, result.output
    assert f"MB, {precision}, TensorRT-RTX" in result.stdout
    assert read_plan(tmp_path / "net.plan").manifest.numerics.precision == precision


@needs_rtx
def test_a_plan_has_one_k(exported: Callable[..., Path], tmp_path: Path):
    network = tmp_path / "net.onnx"
    network.write_bytes(exported(steps_per_call=1, more_steps_per_call=(2, 4)).read_bytes())
    message = "calls of 3 time steps asked for, it has 1, 2, 4. Export others: `dc-export model.pt -K 1,2,3,4`"
    refused(run(network, "-K", "3"), message)
    for asked, k in (((), 1), (("-K", "4"), 4)):
        result = run(network, *asked, "--force")
        assert result.exit_code == 0, result.output
        plan = read_plan(tmp_path / "net.plan")
        assert plan.manifest.call_sizes == (k,)
        assert plan.manifest.outputs[0].shape == (k, "N", 4)
        assert plan.engine.onnx_sha256 == hashlib.sha256(network.read_bytes()).hexdigest()


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


def plain_network() -> bytes:
    """A valid ONNX file of someone else: no manifest, no states."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4)) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "plain", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (plain_network(), "an ONNX file with 0 manifests where one is expected"),
        (b"", "an ONNX file with 0 manifests where one is expected"),
        (bytes(64), "not a complete ONNX file (64 bytes)"),
        (b"hello world", "not a complete ONNX file (11 bytes)"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "an ONNX file with 0 manifests where one is expected"),
        (None, "no such file. Make one with `dc-export model.pt -o net.onnx`"),
    ],
    ids=["plain", "empty", "zeros", "junk", "no manifest", "missing"],
)
@pytest.mark.parametrize("older", [{}, OLDER], ids=["fresh", "older"])
def test_a_file_that_is_no_network(tmp_path: Path, content: bytes | None, message: str, older: dict[str, bytes]):
    files = {**older, **({} if content is None else {"net.onnx": content})}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    refused(run(tmp_path / "net.onnx", "--force"), f"net.onnx: {message}")
    assert contents(tmp_path) == files


def with_operator(network: Path, operator: str) -> None:
    """Let the graph compute its confidence with another operator; the manifest describes that graph."""
    model, manifest = read_onnx(network)
    node = next(node for node in model.graph.node if "confidence" in node.output)
    node.output[0] = "before"
    model.graph.node.append(helper.make_node(operator, ["before"], ["confidence"], name="the node"))
    provenance = msgspec.structs.replace(manifest.provenance, graph_sha256=graph_sha256(model))
    network.write_bytes(bytes_with_manifest(model, msgspec.structs.replace(manifest, provenance=provenance)))


@pytest.mark.parametrize("older", [{}, OLDER], ids=["fresh", "older"])
@pytest.mark.parametrize("operator", ["Bernoulli", "Strange"])
@needs_rtx
def test_an_operator_that_is_not_supported(
    network: Path, monkeypatch: pytest.MonkeyPatch, operator: str, older: dict[str, bytes]
):
    """The reader refuses it; should it ever let one through, the checker or TensorRT's parser does."""
    for name, data in older.items():
        network.with_name(name).write_bytes(data)
    with_operator(network, operator)
    before = contents(network.parent)
    refused(run(network, "--force"), f"net.onnx: holds the operator '{operator}' (node 'the node'), which no network")
    monkeypatch.setattr(onnx_file, "ALLOWED_OPERATORS", onnx_file.ALLOWED_OPERATORS | {operator})
    reason = {"Bernoulli": "refuses node 'the node' (Bernoulli): not supported.", "Strange": "not a valid ONNX graph ("}
    refused(run(network, "--force"), reason[operator])
    assert contents(network.parent) == before


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


COMMAND = [sys.executable, "-c", "from dynamic_confidence.toolchain.dc_build import main; main()", "--flavour", "rtx"]
NO_SPACE = re.compile(
    r"Error: \S*net\.plan: cannot write there \((?:No space left on device|File too large)\)\. "
    r"(?:Free some space or choose|Choose) another place with -o\.\n"
)


@pytest.mark.parametrize("older", [{}, OLDER], ids=["fresh", "older"])
@needs_rtx
def test_no_file_may_be_that_large(network: Path, older: dict[str, bytes]):
    """A limit that needs no rights: the write fails as it does on a full disk."""
    for name, data in older.items():
        network.with_name(name).write_bytes(data)
    before = contents(network.parent)
    limit = 64 * 1024
    done = subprocess.run(
        [*COMMAND, str(network), "--force"],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert NO_SPACE.fullmatch(done.stderr), done.stderr
    assert contents(network.parent) == before


MOUNT = 'mount -t tmpfs -o size=256k tmpfs "$0"'


@needs_rtx
def test_a_full_disk(network: Path, tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        tried = subprocess.run([*own_mounts, MOUNT, str(disk)], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("needs `unshare`, to mount a small file system")
    if tried.returncode:
        pytest.skip(f"may not mount a small file system here: {tried.stderr.strip()}")
    program = MOUNT + ' && cd "$0" && "$@"; code=$?; ls -A; exit $code'
    command = [*own_mounts, program, str(disk), *COMMAND, str(network), "-o", "net.plan"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, ""), "nothing is left on the disk"
    assert NO_SPACE.fullmatch(done.stderr), done.stderr


@needs_rtx
def test_a_plan_that_was_built_meanwhile_is_kept(network: Path, monkeypatch: pytest.MonkeyPatch):
    build = plan_module.plan_from_onnx

    def while_another_one(path: Path, **given: object) -> plan_module.Plan:
        network.with_suffix(".plan").write_bytes(b"another's")
        return build(path, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(write_plan, "plan_from_onnx", while_another_one)
    result = run(network)
    assert result.exit_code == 2
    assert "net.plan: exists already" in result.stderr
    assert network.with_suffix(".plan").read_bytes() == b"another's"


@pytest.mark.parametrize("older", [{}, OLDER], ids=["fresh", "older"])
@needs_rtx
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_a_build_that_is_stopped(
    exported: Callable[..., Path], tmp_path: Path, older: dict[str, bytes], stop: signal.Signals
):
    """In the middle of a build of some seconds: Ctrl-C goes to command and worker, as a terminal sends it."""
    network = tmp_path / "net.onnx"
    network.write_bytes(exported(method="qffs", steps=4, steps_per_call=24).read_bytes())
    for name, data in older.items():
        network.with_name(name).write_bytes(data)
    before = contents(tmp_path)
    command = [*COMMAND, str(network), "--force"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        worker = wait_for(lambda: worker_that_builds(process.pid))
        assert {name for name in os.listdir(tmp_path) if ".part" in name}, "the files that become plan and sidecar"
        if stop == signal.SIGINT:
            os.killpg(process.pid, stop)
        else:
            process.send_signal(stop)
        stdout, stderr = process.communicate(timeout=30)
    said = "Interrupted.\n" if stop == signal.SIGINT else ""
    assert (process.returncode, stdout, stderr) == (128 + stop, "", said)
    assert contents(tmp_path) == before
    assert not Path(f"/proc/{worker}").exists()


def wait_for(found: Callable[[], int | None], seconds: float = 60) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (value := found()) is not None:
            return value
        time.sleep(0.01)
    pytest.fail(f"nothing of that kind within {seconds:.0f} s")


def worker_that_builds(parent: int) -> int | None:
    """The process that the command started, once it has loaded TensorRT and computed for half a second."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for child in map(int, children):
        maps = Path(f"/proc/{child}/maps").read_text()
        ticks = sum(map(int, Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]))
        if "tensorrt" in maps and ticks / os.sysconf("SC_CLK_TCK") > 0.5:
            return child
    return None
