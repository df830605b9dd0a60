"""dc-export refuses bad input with one sentence, writes a file whole or not at all, and fails loudly when inexact."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result

from dynamic_confidence.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, sha256_of
from dynamic_confidence.models.registry import build
from dynamic_confidence.runtime.errors import BackendMissing, CheckFailed
from dynamic_confidence.runtime.manifest import Calibration
from dynamic_confidence.runtime.network_file import read_manifest, write_calibration
from dynamic_confidence.runtime.onnx_file import read_onnx
from dynamic_confidence.runtime.plan_file import read_plan
from dynamic_confidence.toolchain import export as export_module
from dynamic_confidence.toolchain import simulate as simulate_module
from dynamic_confidence.toolchain.dc_export import main
from dynamic_confidence.toolchain.export import ExportOptions, ann_logits, export
from dynamic_confidence.toolchain.onnx_from_snn import StepGraph, onnx_from_snn


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def refused(result: Result, message: str, folder: Path, left: set[str], code: int = 2) -> None:
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stdout == ""
    assert {entry.name for entry in folder.iterdir()} == left


@pytest.fixture
def model(model_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    path.write_bytes(model_file.read_bytes())
    return path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "not a checkpoint (torch.load: "),
        (lambda content: b"this is no network", "model.pt: not a checkpoint (torch.load: "),
        (lambda content: content[: len(content) // 2], "not a checkpoint (torch.load: "),
        (lambda content: content[:4], "model.pt: not "),
    ],
    ids=["empty", "junk", "truncated", "four bytes"],
)
def test_a_broken_model(model: Path, tmp_path: Path, damage: Callable[[bytes], bytes], message: str):
    model.write_bytes(damage(model.read_bytes()))
    refused(run(model), message, tmp_path, {"model.pt"})


def test_a_missing_model(tmp_path: Path):
    refused(run(tmp_path / "model.pt"), "no such file. Train one with `dc-train`", tmp_path, set())


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_model_is_not_run(tmp_path: Path, write: Callable[[object, Path], object]):
    write({"format": "dynamic-confidence/model", "state_dict": Hostile(tmp_path / "ran")}, tmp_path / "model.pt")
    refused(run(tmp_path / "model.pt"), "unpickling such a file can run code", tmp_path, {"model.pt"})


def rewritten(model: Path, **changes: object) -> Path:
    torch.save(torch.load(model, weights_only=True) | changes, model)
    return model


def test_a_foreign_torch_file(tmp_path: Path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "model.pt")
    refused(run(tmp_path / "model.pt"), "convert it: `dc-import model.pt -o model.pt`", tmp_path, {"model.pt"})


def test_an_unknown_architecture(model: Path, tmp_path: Path):
    result = run(rewritten(model, architecture="resnet21"))
    refused(result, "architecture 'resnet21' is unknown, known: resnet8, ", tmp_path, {"model.pt"})
    assert "Did you mean 'resnet" in result.stderr


def test_weights_of_another_width(model: Path, checkpoint: Checkpoint, tmp_path: Path):
    rewritten(model, arguments={**checkpoint.arguments, "width": 8})
    refused(run(model), "the weights do not fit resnet8", tmp_path, {"model.pt"})


def test_a_missing_weight(model: Path, checkpoint: Checkpoint, tmp_path: Path):
    rewritten(model, state_dict={k: v for k, v in checkpoint.state_dict.items() if k != "fc.bias"})
    refused(run(model), "'fc.bias' is missing", tmp_path, {"model.pt"})


def test_a_relu_network(checkpoint: Checkpoint, tmp_path: Path):
    arguments = {**checkpoint.arguments, "activation": "relu"}
    weights = build("resnet8", **arguments).state_dict()
    relu = Checkpoint("resnet8", arguments, weights, checkpoint.preprocessing, checkpoint.class_names)
    save_checkpoint(tmp_path / "model.pt", relu)
    refused(run(tmp_path / "model.pt"), "`dc-train --from model.pt --activation lsq", tmp_path, {"model.pt"})


def test_class_names_that_do_not_fit(model: Path, tmp_path: Path):
    rewritten(model, class_names=["a", "b"])
    refused(run(model), "the checkpoint names 2 classes, the network has 4", tmp_path, {"model.pt"})


def test_another_suffix_is_refused(model_file: Path, tmp_path: Path):
    result = run(model_file, "-o", tmp_path / "net.foo")
    assert result.exit_code == 2
    assert "net.foo: an exported network is named .onnx: -o " in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["-T", "-K"])
@pytest.mark.parametrize("value", [0, -1])
def test_no_steps(model: Path, tmp_path: Path, option: str, value: int):
    message = "expected at least 1 time step and 1 step per call"
    refused(run(model, option, value), message, tmp_path, {"model.pt"})


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("missing/net.onnx", "net.onnx: its folder does not exist: mkdir -p "),
        ("model.pt/net.onnx", "net.onnx: cannot write there ("),
    ],
)
def test_an_output_that_cannot_be_written_is_found_before_the_work(
    model: Path, tmp_path: Path, place: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export_module, "export", lambda *_, **__: pytest.fail("the work was done first"))
    refused(run(model, "-o", tmp_path / place), message, tmp_path, {"model.pt"})


def test_calibration_data_without_labels(model: Path, pixels: np.ndarray, tmp_path: Path):
    np.save(tmp_path / "a.npy", pixels[:4])
    left = {"model.pt", "a.npy"}
    refused(run(model, "--calibrate-on", tmp_path / "a.npy"), "has no label", tmp_path, left)


def test_calibration_data_of_one_class_is_found_before_the_work(
    model: Path, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export_module, "export", lambda *_, **__: pytest.fail("the work was begun"))
    np.savez(tmp_path / "a.npz", image=pixels[:4], label=np.zeros(4, np.int64))
    message = "a.npz: all 4 images are of one class"
    refused(run(model, "--calibrate-on", tmp_path / "a.npz"), message, tmp_path, {"model.pt", "a.npz"})


def test_the_file_and_what_is_said_about_it(model: Path, tmp_path: Path):
    result = run(model, "-T", 6, "-K", 2, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    output = tmp_path / "model_qcfs.onnx"
    assert facts["output"] == str(output)
    assert facts["bytes"] == output.stat().st_size
    assert (facts["max_steps"], facts["steps_per_call"], facts["method"]) == (6, 2, "qcfs")
    assert facts["self_check"]["spikes"] > 0
    assert facts["settles_on_the_quantised_network_after"] >= 3
    assert read_onnx(output)[1].name == "model_qcfs"
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.pt", "model_qcfs.onnx"}


def test_several_k_in_one_file(model: Path, pixels: np.ndarray, tmp_path: Path):
    np.savez(tmp_path / "val.npz", image=pixels, label=np.arange(64) % 4)
    given = (model, "-T", 6, "-K", "4,1", "--calibrate-on", tmp_path / "val.npz", "--force")
    facts = json.loads(run(*given, "--json").stdout)
    assert (facts["steps_per_call"], facts["more_steps_per_call"]) == (1, [4])
    assert read_onnx(tmp_path / "model_qcfs.onnx")[1].call_sizes == (1, 4)
    said = run(*given).stdout
    assert "T = 6, K = 1, 4, " in said
    assert f"next: dc-tune {tmp_path / 'model_qcfs.onnx'} --data DIR   (until then calls take 1 step)" in said


def test_every_k_is_checked(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A graph of one K that fires once too often is not written."""
    right = export_module.onnx_from_snn

    def wrong(snn, *, steps_per_call: int, **options: object):
        graph = right(snn, steps_per_call=steps_per_call, **options)
        if steps_per_call == 4:
            next(node for node in graph.model.graph.node if node.op_type == "Floor").op_type = "Identity"
        return graph

    monkeypatch.setattr(export_module, "onnx_from_snn", wrong)
    assert run(model, "-T", 6, "-K", "1,2", "-o", tmp_path / "net.onnx").exit_code == 0
    result = run(model, "-T", 6, "-K", "1,4", "-o", tmp_path / "other.onnx")
    assert result.exit_code == 1
    assert "self-check: " in result.stderr
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("-T", "4", "-K", "1,8"),
            "-K 1,8 with -T 4: a call would run more time steps than there are",
        ),
        (("-K", "1,x"), "-K 1,x: expected time steps per call, such as 4 or 1,4,8"),
        (("-K", ""), "-K : expected time steps per call"),
        (("-K", "4,1,4"), "K = 1,4,4: expected each once, the smallest first"),
        (("-K", "0,4"), "T = None, K = 0,4: expected at least 1 time step and 1 step per call"),
        (("-K", "1,4", "--frames"), "--frames with K = 1,4: its calls take an image for each of their steps"),
    ],
)
def test_several_k_that_cannot_be(model: Path, tmp_path: Path, options: tuple[str, ...], message: str):
    refused(run(model, *options), message, tmp_path, {"model.pt"})


def test_exporting_twice_gives_the_same_bytes_and_a_next_step(model: Path, tmp_path: Path):
    contents = []
    for _ in range(2):
        result = run(model, "--method", "qffs", "-T", 6, "-o", tmp_path / "net.onnx")
        assert result.exit_code == 0, result.output
        assert "settles on the quantised network after" in result.stdout
        assert "self-check: oracle, torch simulation and graph are equal on" in result.stdout
        assert f"next: dc-calibrate {tmp_path / 'net.onnx'} --data DIR" in result.stdout
        contents.append((tmp_path / "net.onnx").read_bytes())
    assert contents[0] == contents[1]


def test_calibrate_on_calibrates_as_well(model: Path, pixels: np.ndarray, tmp_path: Path):
    np.savez(tmp_path / "val.npz", image=pixels, label=np.arange(64) % 4)
    result = run(model, "-T", 6, "-o", tmp_path / "net.onnx", "--calibrate-on", tmp_path / "val.npz")
    assert result.exit_code == 0, result.output
    calibration = read_onnx(tmp_path / "net.onnx")[1].calibration
    assert (calibration.data, calibration.samples) == ("val.npz", 64)
    assert (
        f"calibrated on 64 images of {tmp_path / 'val.npz'}: temperature {calibration.temperature:.4g}" in result.stdout
    )
    assert "next:" not in result.stdout


def test_what_the_conversion_costs_is_said(model: Path, pixels: np.ndarray, tmp_path: Path):
    checkpoint = load_checkpoint(model)
    label = ann_logits(checkpoint.network(), checkpoint.preprocessing, pixels).argmax(axis=1)
    np.savez(tmp_path / "val.npz", image=pixels, label=label)
    said = []
    for method, steps in (("qcfs", 1), ("qffs", 12)):
        given = (model, "--method", method, "-T", steps, "-o", tmp_path / f"{method}.onnx", "--calibrate-on")
        result = run(*given, tmp_path / "val.npz", "--json")
        assert result.exit_code == 0, result.output
        accuracy = json.loads(result.stdout)["accuracy_on_calibration_data"]
        assert accuracy["quantised"] == 1.0
        text = run(*given, tmp_path / "val.npz", "--force").stdout
        spiking = f"{100 * accuracy['spiking']:.2f}"
        assert f"accuracy there: quantised network 100.00 %, spiking {spiking} % after {steps} steps" in text
        assert ("It loses" in text) == (accuracy["spiking"] < 0.98)
        said.append(text)
    assert "points: try -T 2 or --method qffs, or train longer" in said[0]


@pytest.mark.parametrize(
    ("precision", "texts"),
    [
        ("int8", ["0.02 MB, qcfs, int8, T = 6", "oracle, torch simulation and graph are equal on", "exact in float32"]),
        ("fp16", ["qcfs, fp16, T = 6", "every step follows from the last, within half precision", "approximate: "]),
    ],
)
def test_another_precision_has_another_name(model: Path, tmp_path: Path, precision: str, texts: list[str]):
    result = run(model, "-T", 6, "--precision", precision)
    assert result.exit_code == 0, result.output
    for text in texts:
        assert text in result.stdout
    numerics = read_onnx(tmp_path / f"model_qcfs_{precision}.onnx")[1].numerics
    assert (numerics.precision, numerics.exact) == (precision, precision == "int8")


def test_a_plan_in_the_same_command(model: Path, tmp_path: Path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    result = run(model, "-T", 6, "--precision", "int8", "--plan", "--target", "sm89", "--json")
    assert result.exit_code == 0, result.output
    plan = read_plan(tmp_path / "model_qcfs_int8.plan")
    assert (plan.engine.targets, plan.engine.onnx) == (("sm89",), "model_qcfs_int8.onnx")
    assert json.loads(result.stdout)["plan"]["engine"]["plan_sha256"] == plan.engine.plan_sha256
    again = run(model, "-T", 6, "--precision", "int8", "--plan", "--target", "sm89")
    assert again.exit_code == 0, again.output  # the plan goes with its network
    assert "--force: the plan has a calibration of its own" in again.stdout
    assert "model_qcfs_int8.plan.json: its manifest; keep both together" in again.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-T", 0), "T = 0, K = 1: expected at least 1 time step"),
        (("--target", "sm89"), "--target sm89 is for a plan"),
    ],
)
def test_options_are_checked_before_what_is_there(
    model: Path, exported: Callable[..., Path], tmp_path: Path, options: tuple[object, ...], message: str
):
    net = tmp_path / "net.onnx"
    net.write_bytes(exported().read_bytes())
    write_calibration(net, Calibration(alpha=6.0, threshold=0.6, data="val"))
    refused(run(model, *options, "-o", net), message, tmp_path, {"model.pt", "net.onnx"})


@pytest.mark.parametrize("suffix", [".onnx", ".plan"])
def test_a_calibration_is_not_lost(model: Path, tmp_path: Path, suffix: str):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    net = tmp_path / "net.onnx"
    assert run(model, "-T", 6, "-o", net, "--plan").exit_code == 0
    write_calibration(net.with_suffix(suffix), Calibration(alpha=6.0, threshold=0.6, data="val"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    message = f"net{suffix}: exists and is calibrated on val (threshold 0.6). Replace it with --force"
    refused(run(model, "-T", 6, "-o", net, "--plan"), message, tmp_path, set(before))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert run(model, "-T", 6, "-o", net, "--plan", "--force").exit_code == 0
    assert read_manifest(net.with_suffix(suffix)).calibration.data is None


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        (("--plan", "--target", ","), "--target ',': expected GPUs such as sm86,sm89", 2),
        (("--plan", "--target", "sm87"), "sm87, a Jetson, builds its own (docs/jetson.md)", 2),
        (("--target", "sm89"), "--target sm89 is for a plan: add --plan, or leave it out", 2),
        (("--plan", "--target", "sm1"), "target sm1: TensorRT-RTX", 2),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_the_work(model: Path, tmp_path: Path, options, message, code):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    refused(run(model, *options), message, tmp_path, {"model.pt"}, code)


@pytest.mark.parametrize("existing", [None, b"older"])
def test_an_interrupted_export_leaves_nothing_behind(checkpoint: Checkpoint, tmp_path: Path, existing: bytes | None):
    arguments = {**checkpoint.arguments, "width": 8}
    torch.manual_seed(0)
    weights = build("resnet18", **arguments).state_dict()
    model = Checkpoint("resnet18", arguments, weights, checkpoint.preprocessing, checkpoint.class_names)
    save_checkpoint(tmp_path / "model.pt", model)
    output = tmp_path / "net.onnx"
    if existing is not None:
        output.write_bytes(existing)
    # Under a shell's `&`, SIGINT is ignored and Python takes that over: put its own handler back.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from dynamic_confidence.toolchain.dc_export import main; main()"
    command = [sys.executable, "-c", program, tmp_path / "model.pt", "-T", "256", "-o", output]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        give_up = time.monotonic() + 60
        while not list(tmp_path.glob(".*.part.onnx")) and process.poll() is None and time.monotonic() < give_up:
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.endswith("Interrupted.\n")
    assert "Traceback" not in stderr
    assert stdout == ""
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.pt"} | ({"net.onnx"} if existing else set())
    assert existing is None or output.read_bytes() == existing


def tampered(edit: Callable[[onnx.ModelProto], object], probe: bool) -> Callable[..., StepGraph]:
    """An exporter whose graph (or whose probe) is not the network."""

    def write(snn, **options) -> StepGraph:
        graph = onnx_from_snn(snn, **options)
        if options["probe"] == probe:
            edit(graph.model)
        return graph

    return write


def other_weight(model: onnx.ModelProto) -> None:
    (tensor,) = (t for t in model.graph.initializer if t.name == "readout/i0/w")
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + np.float32(2**-10), tensor.name))


def other_spikes(model: onnx.ModelProto) -> None:
    (node,) = (n for n in model.graph.node if n.output[0] == "spikes.layer1.0.activation1")
    node.op_type = "Neg"


def other_confidence(model: onnx.ModelProto) -> None:
    (node,) = (n for n in model.graph.node if n.output[0] == "confidence")
    node.op_type = "ReduceMin"


def other_label(model: onnx.ModelProto) -> None:
    (node,) = (n for n in model.graph.node if n.output[0] == "label")
    node.op_type = "ArgMin"


@pytest.mark.parametrize(
    ("edit", "probe", "message"),
    [
        (other_weight, False, r"step 1: logits of the torch simulation and of the graph differ in \d+ of 64 values"),
        (other_weight, True, r"step 1: logits of the graph and of its probe differ"),
        (other_spikes, True, r"step 1, layer layer1\.0\.activation1: oracle and graph differ in \d+ of \d+ values"),
        (other_label, False, r"step 1: labels of the simulation and of the graph differ"),
        (other_confidence, False, r"threshold 0\.5: exit steps of the oracle and of the graph differ"),
    ],
)
def test_a_graph_that_is_not_the_network_fails_the_check(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, edit, probe: bool, message: str
):
    monkeypatch.setattr(export_module, "onnx_from_snn", tampered(edit, probe))
    with pytest.raises(CheckFailed, match=rf"self-check: {message}.*expected none\. Nothing was written\..*report it"):
        export(checkpoint, "0" * 64, ExportOptions(steps=6))
    assert CheckFailed.exit_code == 1


def test_a_simulation_that_is_not_the_network_fails_the_check(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its neurons fire a quarter of the threshold too late."""
    true_step = simulate_module.if_step

    def late(current, state):
        return true_step(current - 0.25, state)

    monkeypatch.setattr(simulate_module, "if_step", late)
    result = run(model, "-T", 6, "-o", tmp_path / "net.onnx")
    message = "logits of the oracle and of the torch simulation differ in"
    refused(result, message, tmp_path, {"model.pt"}, code=1)
    assert "Error: self-check: step " in result.stderr


def test_the_check_needs_its_backend(model_file: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        BackendMissing, match=r"the self-check needs ONNX Runtime: `pip install 'dynamic-confidence\[cpu"
    ):
        export(checkpoint, sha256_of(model_file), ExportOptions(steps=2))
