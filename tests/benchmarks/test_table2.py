"""Table 2 on a tiny network: what is measured, what is projected, and that a record says no more than was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from support import GREY, noise, random_checkpoint
from table2_records import GPU, ROWS, STEPS, TINY, TINY_SETTINGS, cell, table2_record

from dynamic_confidence.benchmarks.latency.report import markdown_of
from dynamic_confidence.benchmarks.peers import machine
from dynamic_confidence.benchmarks.peers import measure as peers_measure
from dynamic_confidence.benchmarks.peers import ours as ours_module
from dynamic_confidence.benchmarks.peers.candidate import Missing
from dynamic_confidence.benchmarks.peers.setting import Setting, setting, spike_rate
from dynamic_confidence.benchmarks.record import write_record
from dynamic_confidence.benchmarks.table2 import __main__ as command
from dynamic_confidence.benchmarks.table2 import engines, measure, settings
from dynamic_confidence.benchmarks.table2.engines import Opened, cpu_engines, gpu_engines, passes, variants
from dynamic_confidence.benchmarks.table2.page import page_of
from dynamic_confidence.benchmarks.table2.record import (
    Absent,
    Cell,
    Table2Record,
    read_record,
)
from dynamic_confidence.benchmarks.table2.settings import NETWORKS, SETTINGS, Network, PaperSetting
from dynamic_confidence.benchmarks.tables import published
from dynamic_confidence.calib.exits import exit_steps
from dynamic_confidence.calib.tuning import representative
from dynamic_confidence.models.checkpoint import save_checkpoint
from dynamic_confidence.models.registry import build
from dynamic_confidence.runtime.confidence import max_softmax
from dynamic_confidence.runtime.errors import BackendMissing, CheckFailed, DynamicConfidenceError
from dynamic_confidence.toolchain.export import ann_logits
from dynamic_confidence.toolchain.oracle import oracle_steps
from dynamic_confidence.toolchain.snap import snap
from dynamic_confidence.toolchain.snn_from_ann import snn_from_ann

BACKENDS = ("ONNX Runtime", "OpenVINO", "events")
ENGINES = {f"{backend} {precision}" for backend in BACKENDS for precision in ("fp32", "int8")}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command on a tiny network, on no particular core, without a GPU."""
    monkeypatch.setattr(settings, "NETWORKS", TINY)
    monkeypatch.setattr(settings, "SETTINGS", TINY_SETTINGS)
    monkeypatch.setattr(machine, "pin", lambda threads: [0])  # pytest's other tests go on in this process
    monkeypatch.setattr(peers_measure, "WARM_UP_S", 0.0)
    for module in (engines, measure):
        monkeypatch.setattr(module, "device_target", lambda: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def measurements(tiny: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured, in order."""
    done: list[str] = []
    measured = measure.measured

    def noted(paper: PaperSetting, *arguments: Any, **options: Any) -> Cell:
        done.append(paper.name)
        return measured(paper, *arguments, **options)

    monkeypatch.setattr(measure, "measured", noted)
    return done


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command.main, [str(argument) for argument in arguments])


def tiny_setting(method: str = "qcfs") -> Setting:
    return setting("tiny", random_checkpoint("resnet8"), method, steps=STEPS)


def record_of(quick: bool = False, **cells: Cell) -> Table2Record:
    return table2_record({f"tiny/{method}": one for method, one in cells.items()}, quick=quick)


def test_the_eight_settings_are_the_papers():
    assert len(SETTINGS) == len({one.name for one in SETTINGS}) == 8
    assert {one.network for one in SETTINGS} == set(NETWORKS)
    known = {(one.data, one.network, one.method): one for one in published.SETTINGS}
    agreeing = 0
    for one in SETTINGS:
        network = NETWORKS[one.network]
        if (other := known.get((network.data, network.title, one.method))) is not None:
            assert one.steps == other.steps
            assert one.mean_steps == other.mean_steps
            agreeing += 1
    assert agreeing == len(published.SETTINGS)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("vgg16_cifar10", 14.7), ("resnet18_cifar10", 11.2), ("vgg16_imagenet", 138.4), ("resnet50_imagenet", 25.6)],
)
def test_the_networks_have_the_size_of_the_papers(name: str, millions: float):
    network = NETWORKS[name]
    with torch.device("meta"):
        whole, narrow = (
            build(network.architecture, width=network.channels(quick=quick), **network.arguments)
            for quick in (False, True)
        )
    count = sum(parameter.numel() for parameter in whole.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.01)
    assert count > 10 * sum(parameter.numel() for parameter in narrow.parameters())


def rate_of(network: Network, method: str, steps: int) -> float:
    one = setting("net", measure.random_network(network), method, steps=steps)
    return spike_rate(one.snn, one.pixels, min(steps, measure.RATE_STEPS))


def test_higher_thresholds_mean_fewer_spikes():
    rates = [rate_of(replace(TINY["tiny"], thresholds=thresholds), "qcfs", STEPS) for thresholds in (1.0, 4.0)]
    assert 0 < rates[1] < 0.7 * rates[0]


@pytest.mark.slow
@pytest.mark.parametrize("paper", SETTINGS, ids=lambda paper: paper.name)
def test_random_networks_spike_as_often_as_trained_ones(paper: PaperSetting):
    low, high = settings.LIKELY_RATES
    assert low <= rate_of(NETWORKS[paper.network], paper.method, paper.steps) <= high


def test_the_command_measures_goes_on_and_writes_the_page(measurements: list[str], tmp_path: Path):
    output, table = tmp_path / "record.json", tmp_path / "table2.md"
    result = run("--only", "tiny/qffs", "--quick", "-o", output)
    assert result.exit_code == 0, result.output
    assert "of the neurons spike per step" in result.stderr
    assert "ONNX Runtime fp32: ready" in result.stderr
    first = read_record(output)
    assert first.quick
    found = first.cells["tiny/qffs"]
    assert (found.steps, found.width, found.input, found.model) == (3, 4, [1, 12, 12], None)
    assert {one.name for one in found.rows} | {one.name for one in found.absent} == {*ENGINES, GPU}
    assert found.absent[-1] == Absent(name=GPU, status="not possible", reason="no NVIDIA GPU on this machine")
    for one in found.rows:
        assert len(one.fixed.wall_ms) == len(one.fixed.cpu_ms) == peers_measure.QUICK_ROUNDS
        assert min(one.fixed.wall_ms) > 0
        assert one.with_exit is None
        assert (one.one_pass is None) == one.name.startswith("events")

    result = run("--quick", "-o", output, "--table", table)
    assert result.exit_code == 0, result.output
    assert measurements == ["tiny/qffs", "tiny/qcfs"]
    assert "tiny/qffs: measured already" in result.stderr
    whole = read_record(output)
    assert whole.cells["tiny/qffs"] == found
    assert table.read_text(encoding="utf-8") == markdown_of(page_of([whole]))

    table.unlink()
    assert run("--from-record", "-o", output, "--table", table).exit_code == 0
    assert table.read_text(encoding="utf-8") == markdown_of(page_of([whole]))
    assert len(measurements) == 2


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, [], "was measured with quick True, now it is False: the two do not belong into one table"),
        ({"processor": "another one"}, ["--quick"], "was measured with processor another one, now it is"),
        ({"libraries": {"numpy": "0.1"}}, ["--quick"], "was measured with numpy 0.1, now it is"),
        ({"gpu": "sm89"}, ["--quick"], "was measured with gpu sm89, now it is None"),
    ],
)
def test_a_record_of_something_else_is_refused(
    measurements: list[str], tmp_path: Path, change: dict[str, Any], options: list[str], message: str
):
    output = tmp_path / "record.json"
    computer = measure.computer([0])
    if "libraries" in change:
        change = {"libraries": {**computer.libraries, **change["libraries"]}}
    elsewhere = msgspec.structs.replace(computer, **change)
    before = msgspec.structs.replace(record_of(quick=True, qcfs=cell(*ROWS)), machine=elsewhere)
    write_record(output, before)
    result = run(*options, "-o", output)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Name another file with -o, or remove this one." in result.stderr
    assert read_record(output) == before
    assert not measurements


SERIES = {"wall_ms": [1.0], "cpu_ms": [1.0]}
TESTED = {"accuracy": 0.5, "fixed_accuracy": 0.5, "mean_steps": 2.0}
EXITS = {"series": SERIES, "exit_steps": [4], "threshold": 1.0, "tested": TESTED}


def spoiled_row(key: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Put a value into the first row of a plain record."""

    def spoil(plain: dict[str, Any]) -> dict[str, Any]:
        plain["cells"]["tiny/qcfs"]["rows"][0][key] = value
        return plain

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda plain: plain | {"study": "latency"}, "latency"),
        (lambda plain: plain | {"version": 2}, "version"),
        (lambda plain: plain | {"colour": "red"}, "colour"),
        (lambda plain: {key: plain[key] for key in plain if key != "threads"}, "threads"),
        (spoiled_row("fixed", {"wall_ms": [], "cpu_ms": []}), "'wall_ms': 0, 'cpu_ms': 0} entries, expected equally"),
        (spoiled_row("fixed", {"wall_ms": [1.0], "cpu_ms": []}), "at least one - at `"),
        (spoiled_row("fixed", {"wall_ms": [-1.0], "cpu_ms": [1.0]}), "milliseconds must be positive"),
        (
            spoiled_row("with_exit", {**EXITS, "exit_steps": [5]}),
            "at least one, each 1 to 4",
        ),
        (
            spoiled_row("with_exit", {**EXITS, "exit_steps": []}),
            "exit_steps of ONNX Runtime",
        ),
        (spoiled_row("with_exit", {**EXITS, "tested": {**TESTED, "accuracy": 70}}), "expected fractions, 0 to 1"),
        (spoiled_row("with_exit", {**EXITS, "tested": {**TESTED, "mean_steps": 4.5}}), "mean_steps 4.5 of ONNX"),
        (lambda plain: plain | {"cells": {"tiny/qcfs": plain["cells"]["tiny/qcfs"] | {"rows": []}}}, "rows: expected"),
        (
            lambda plain: plain | {"cells": {"tiny/qcfs": plain["cells"]["tiny/qcfs"] | {"steps": 0}}},
            "steps 0: expected",
        ),
    ],
)
def test_a_record_is_read_strictly(tmp_path: Path, spoil: Any, message: str):
    path = tmp_path / "record.json"
    write_record(path, record_of(qcfs=cell(*ROWS)))
    plain = json.loads(path.read_text())
    assert plain["study"] == "table2"
    path.write_text(json.dumps(spoil(plain)))
    with pytest.raises(DynamicConfidenceError, match=f"not a record of Table 2 of version 1 .*{message}") as error:
        read_record(path)
    assert "or measure one: python -m dynamic_confidence.benchmarks.table2 -o record_2.json" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "vgg", "-o", "r.json"], "--only vgg: expected a network (tiny), or one with a method, as"),
        (["--only", "tiny/if", "-o", "r.json"], "as tiny/qcfs (qcfs, qffs)."),
        (["--from-record", "-o", "r.json"], "--from-record writes nothing but a page: name it with --table."),
        (["--from-record", "--table", "t.md", "-o", "missing.json"], "missing.json: cannot be read ("),
        (["-o", "broken.json"], "broken.json: not a record of Table 2 of version 1 ("),
        (["--table", "/dev/null/t.md", "-o", "r.json"], "t.md: cannot write there (File exists). Choose another"),
        (["--model", "net.pt", "-o", "r.json"], "net.pt: expected MODEL=DATA, for example model.pt=cifar10."),
        (["--model", "wide.pt=noise", "-o", "r.json"], "wide.pt: a resnet8 at 16 x 16 pixels is in no row of Table 2"),
        (["--model", "tiny.pt=noise", "--model", "tiny.pt=noise", "-o", "r.json"], "a second tiny, expected one."),
        ([], "Missing option '-o'"),
    ],
)
def test_bad_usage(
    measurements: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text('{"study": "table2", "versi')
    large = msgspec.structs.replace(GREY, height=16, width=16)
    save_checkpoint(Path("wide.pt"), random_checkpoint("resnet8", large))
    write_data(Path("noise"), trained_network(Path("tiny.pt")))
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("r.json").exists()
    assert not measurements


def test_a_model_that_only_leaves_out(measurements: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = {"other": Network("Other", "Noise", "resnet20", GREY, {"classes": 4}, width=4)}
    monkeypatch.setattr(settings, "NETWORKS", TINY | other)
    monkeypatch.setattr(settings, "SETTINGS", (*TINY_SETTINGS, PaperSetting("other", "qcfs", 2)))
    model = tmp_path / "tiny.pt"
    write_data(tmp_path / "noise", trained_network(model))
    result = run("--only", "other", "--model", f"{model}={tmp_path / 'noise'}", "-o", tmp_path / "r.json")
    assert result.exit_code == 2
    assert "it is a tiny, which --only leaves out. Add --only tiny." in result.stderr
    assert not measurements


def trained_network(path: Path) -> Any:
    """Write a network that stands for a trained one, and return it."""
    checkpoint = random_checkpoint("resnet8")
    save_checkpoint(path, checkpoint)
    return checkpoint


def write_data(folder: Path, checkpoint: Any) -> None:
    """Noise that is labelled with what the network answers, but for some."""
    folder.mkdir()
    for seed, part in enumerate(("validation", "test")):
        pixels = noise(30, *GREY.shape, seed=seed)
        label = ann_logits(checkpoint.network(), GREY, pixels).argmax(axis=1)
        label[::7] = (label[::7] + 1) % 4
        np.savez(folder / f"{part}.npz", image=pixels, label=label)


def test_the_exits_of_a_trained_network_are_measured(measurements: list[str], tmp_path: Path):
    model, output = tmp_path / "net.pt", tmp_path / "record.json"
    checkpoint = trained_network(model)
    write_data(tmp_path / "noise", checkpoint)
    assert run("--only", "tiny/qcfs", "--quick", "-o", output).exit_code == 0
    arguments = ("--only", "tiny/qcfs", "--quick", "--model", f"{model}={tmp_path / 'noise'}", "-o", output)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    found = read_record(output).cells["tiny/qcfs"]
    assert found.width is None
    assert found.model is not None
    assert (found.model.title, found.model.data) == ("net", "noise")
    assert (found.model.calibration_images, found.model.test_images) == (30, 30)
    snn, _ = snap(snn_from_ann(checkpoint.network(), GREY, "qcfs"), STEPS)
    with np.load(tmp_path / "noise" / "test.npz") as data:
        pixels, label = data["image"], data["label"]
    steps = list(oracle_steps(snn, pixels, STEPS))
    right = np.stack([step.logits.argmax(axis=1) == label for step in steps], axis=1)
    confidence = np.stack([max_softmax(step.logits, STEPS) for step in steps], axis=1)
    for one in found.rows:
        assert one.with_exit is not None
        assert len(one.with_exit.series.wall_ms) == peers_measure.QUICK_ROUNDS
        if one.precision == "fp32":
            expected = exit_steps(confidence, one.with_exit.threshold, np.full(30, STEPS))
            assert one.with_exit.exit_steps == expected[representative(expected, 20)].tolist()
            tested = one.with_exit.tested
            assert tested.mean_steps == pytest.approx(expected.mean())
            assert tested.accuracy == pytest.approx(right[np.arange(30), expected - 1].mean())
            assert tested.fixed_accuracy == pytest.approx(right[:, -1].mean())
    assert "(measured)" in markdown_of(page_of([read_record(output)]))
    # What is trained is neither measured again, nor replaced by random weights.
    assert "tiny/qcfs: measured already" in run(*arguments).stderr
    assert "tiny/qcfs: measured already" in run("--only", "tiny/qcfs", "--quick", "-o", output).stderr
    assert measurements == ["tiny/qcfs"] * 2


def test_one_engine_of_each_backend_and_precision(tmp_path: Path):
    assert len(variants()) == len(ENGINES)
    one = tiny_setting("qffs")
    with ExitStack() as stack:
        found = list(cpu_engines(one, tmp_path, stack, 1))
        assert {opened.name for opened in found} == ENGINES
        for opened in found:
            if isinstance(opened, Opened):
                assert opened.engine.manifest.steps_per_call == 1
                assert opened.engine.manifest.numerics.precision == opened.precision
                assert opened.file.exists()
    forms = {opened.name: opened.engine.manifest.numerics.form for opened in found if isinstance(opened, Opened)}
    assert {name for name, form in forms.items() if form == "matmul"} == {"ONNX Runtime int8"}


def test_a_backend_that_is_missing_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    open_engine = ours_module.open_engine

    def without_events(path: Path, *, backend: str, **options: Any) -> Any:
        if backend == "events":
            raise BackendMissing("numba is not installed")
        return open_engine(path, backend=backend, **options)

    monkeypatch.setattr(ours_module, "open_engine", without_events)
    with ExitStack() as stack:
        missing = [one for one in cpu_engines(tiny_setting(), tmp_path, stack, 1) if isinstance(one, Missing)]
    reason = "numba is not installed"
    assert [one for one in missing if one.name.startswith("events")] == [
        Missing(f"events {precision}", "not installed", reason) for precision in ("fp32", "int8")
    ]


def test_plans_are_measured_where_there_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one, opened, built = tiny_setting(), [], []
    monkeypatch.setattr(engines, "device_target", lambda: "sm89")
    monkeypatch.setattr(engines, "installed", lambda flavour: flavour == "rtx")

    def build_plan(network: Path, flavour: str) -> Path:
        if network.name.startswith("int8"):
            raise BackendMissing("no kernel for it")
        built.append((network.name, flavour))
        return network.with_suffix(".plan")

    class Plan:
        def __init__(self, path: Path) -> None:
            opened.append(path.name)

        def __enter__(self) -> Plan:
            return self

        def __exit__(self, *_: object) -> None:
            opened.append("closed")

    monkeypatch.setattr(engines, "build", build_plan)
    monkeypatch.setattr(engines, "open_engine", Plan)
    with ExitStack() as stack:
        absent, plan, refused = gpu_engines(one, tmp_path, stack)
    assert absent == Missing("TensorRT", "not installed", "`dc-doctor` says what it needs")
    assert refused == Missing("TensorRT-RTX int8", "not working here", "no kernel for it")
    assert isinstance(plan, Opened)
    assert (plan.name, plan.precision) == ("TensorRT-RTX fp32", "fp32")
    assert built == [("fp32_conv_1.onnx", "rtx")]
    assert opened == ["fp32_conv_1.plan", "closed"]


@pytest.mark.parametrize("architecture", ["resnet8", "vgg16"])
def test_one_pass_is_the_same_network_on_every_backend(architecture: str):
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'dynamic-confidence[openvino]'")
    about = msgspec.structs.replace(GREY, height=32, width=32) if architecture == "vgg16" else GREY
    one = setting("tiny", random_checkpoint(architecture, about), "qffs", steps=STEPS)
    found = passes(one)
    assert list(found) == ["ONNX Runtime fp32", "ONNX Runtime int8", "OpenVINO fp32", "OpenVINO int8"]
    for pixels in one.pixels[:, None]:
        for precision in ("fp32", "int8"):
            expected = found[f"ONNX Runtime {precision}"](pixels)
            assert np.ptp(expected) > 0.1
            np.testing.assert_allclose(found[f"OpenVINO {precision}"](pixels), expected, atol=1e-4)


def test_answers_that_differ_are_not_recorded():
    engine: Any = None  # of which only the answers are looked at
    precisions = (("a", "fp32"), ("b", "int8"), ("c", "fp32"))
    opened = [Opened(name, precision, Path(), engine) for name, precision in precisions]
    same = np.zeros((1, 4), np.float32)
    measure._equal("tiny/qcfs", opened, {"a": same, "b": same + 1, "c": same})
    with pytest.raises(CheckFailed, match="tiny/qcfs: the logits of 'c' are not those of 'a', expected the same bits"):
        measure._equal("tiny/qcfs", opened, {"a": same, "b": same, "c": same + 1e-7})
