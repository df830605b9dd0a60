"""Table 2 on a tiny network: what is measured, what is projected, and that a record says no more than was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
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

from dynamic_confidence.benchmarks.peers import machine
from dynamic_confidence.benchmarks.peers import measure as peers_measure
from dynamic_confidence.benchmarks.peers import ours as ours_module
from dynamic_confidence.benchmarks.peers.candidate import Missing
from dynamic_confidence.benchmarks.peers.setting import Setting, setting, spike_rate
from dynamic_confidence.benchmarks.record import write_record
from dynamic_confidence.benchmarks.table2 import __main__ as command
from dynamic_confidence.benchmarks.table2 import engines, measure, settings
from dynamic_confidence.benchmarks.table2.engines import Opened, cpu_engines, gpu_engines, passes, variants
from dynamic_confidence.benchmarks.table2.markdown import fastest, ms, page, projected
from dynamic_confidence.benchmarks.table2.record import (
    VERSION,
    Absent,
    Cell,
    Computer,
    Model,
    Row,
    Series,
    Table2Record,
    WithExit,
    read_record,
)
from dynamic_confidence.benchmarks.table2.settings import NETWORKS, SETTINGS, Network, PaperSetting
from dynamic_confidence.benchmarks.tables import published
from dynamic_confidence.calib.exits import exit_steps
from dynamic_confidence.models.checkpoint import save_checkpoint
from dynamic_confidence.models.registry import build
from dynamic_confidence.runtime.confidence import max_softmax
from dynamic_confidence.runtime.errors import BackendMissing, CheckFailed, DynamicConfidenceError
from dynamic_confidence.toolchain.export import ann_logits
from dynamic_confidence.toolchain.oracle import oracle_steps
from dynamic_confidence.toolchain.snap import snap
from dynamic_confidence.toolchain.snn_from_ann import snn_from_ann

STEPS = 4
TINY = {"tiny": Network("Tiny", "Noise", "resnet8", GREY, {"classes": 4}, width=16)}
TINY_SETTINGS = (
    PaperSetting("tiny", "qcfs", STEPS, 2.5, 100.0, 50.0, note="nobody published this"),
    PaperSetting("tiny", "qffs", 3),
)
BACKENDS = ("ONNX Runtime", "OpenVINO", "events")
ENGINES = {f"{backend} {precision}" for backend in BACKENDS for precision in ("fp32", "int8")}
GPU = "TensorRT and TensorRT-RTX"


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


def series(*wall_ms: float) -> Series:
    return Series(wall_ms=list(wall_ms), cpu_ms=[x / 2 for x in wall_ms])


def row(name: str, fixed: Series, **changes: Any) -> Row:
    values = {"backend": f"{name.split()[0]} 1.0", "precision": "fp32", "one_pass": None, "with_exit": None, **changes}
    return Row(name=name, fixed=fixed, **values)


def cell(*rows: Row, **changes: Any) -> Cell:
    """T = 4, and numbers that are easy to reckon with."""
    values: dict[str, Any] = {
        "steps": STEPS,
        "width": 16,
        "input": [1, 12, 12],
        "macs_per_step": 1_500_000,
        "weights": 1000,
        "neurons": 500,
        "spike_rate": 0.125,
        "model": None,
        "commit": "abc",
        "finished": "now",
        "load_average": [0.0, 1.5],
        "absent": [Absent(name=GPU, status="not possible", reason="no NVIDIA GPU on this machine")],
    }
    return Cell(rows=list(rows), **(values | changes))


def record_of(quick: bool = False, **cells: Cell) -> Table2Record:
    computer = Computer(
        processor="a processor",
        flags=["avx2"],
        cores=2,
        pinned_to=1,
        governor="performance",
        system="Linux",
        gpu=None,
        python="3.11",
        libraries={"onnxruntime": "1.0"},
    )
    named = {f"tiny/{method}": one for method, one in cells.items()}
    return Table2Record(version=VERSION, quick=quick, threads=1, machine=computer, cells=named)


ROWS = (
    row("ONNX Runtime fp32", series(20.0, 24.0, 16.0), one_pass=series(10.0, 10.0, 10.0)),
    row("events fp32", series(8.0, 9.0, 8.0)),
)


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
    one = setting("net", network.checkpoint(), method, steps=steps)
    return spike_rate(one.snn, one.pixels, min(steps, measure.RATE_STEPS))


def test_higher_thresholds_mean_fewer_spikes():
    rates = [rate_of(replace(TINY["tiny"], thresholds=thresholds), "qcfs", STEPS) for thresholds in (1.0, 4.0)]
    assert 0 < rates[1] < 0.7 * rates[0]


@pytest.mark.slow
@pytest.mark.parametrize("paper", SETTINGS, ids=lambda paper: paper.name)
def test_random_networks_spike_as_often_as_trained_ones(paper: PaperSetting):
    low, high = settings.LIKELY_RATES
    assert low <= rate_of(NETWORKS[paper.network], paper.method, paper.steps) <= high


def test_the_projection_is_linear_in_the_steps():
    assert projected(127.0, PaperSetting("n", "qcfs", 27, 11.51)) == pytest.approx(127.0 / 27 * 11.51)
    assert projected(60.0, PaperSetting("n", "qcfs", 30)) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (127.0, "127"), (99.96, "100.0"), (47.04, "47.0"), (5.1249, "5.12"), (0.0312, "0.031")],
)
def test_milliseconds_have_three_figures(value: float, text: str):
    assert ms(value) == text


def test_the_page_says_what_the_record_says(tiny: None):
    lines = page(record_of(qcfs=cell(*ROWS), qffs=cell(*ROWS))).splitlines()
    known = "| Noise | Tiny | QCFS | 4 | 2.5 | 12.5% | events fp32 | 8.00 | 5.00 (projected) | 10.0 | 100 | 50.0 |"
    assert known in lines
    no = "not known here"
    assert f"| Noise | Tiny | QFFS | 3 | {no} | 12.5% | events fp32 | 8.00 | {no} | 10.0 | {no} | {no} |" in lines
    assert (
        "| ONNX Runtime fp32 (ONNX 1.0) | 20.0 | 16.0 – 24.0 | 5.00 | 12.5 (projected) | 10.0 | 2.00 |"
    ) in lines  # 20 ms * 2.5 / 4; two steps in a pass
    assert "| events fp32 (events 1.0) | 8.00 | 8.00 – 9.00 | 2.00 | 5.00 (projected) | – | – |" in lines
    assert f"- {GPU}: not possible (no NVIDIA GPU on this machine)." in lines
    assert "- Tiny, Noise, QCFS: nobody published this." in lines
    text = "\n".join(lines)
    assert "Random weights, 16 channels in the first stage; 1 × 12 × 12 values, 1.5 million" in text
    assert "pinned to 1 core(s), governor performance. Python 3.11, onnxruntime 1.0. Commit abc." in text
    assert "Load average 0.0 to 1.5." in text
    assert "--quick" not in text
    assert "not what trained networks do" not in text


def test_the_page_of_a_part_and_of_a_quick_run(tiny: None):
    text = page(record_of(quick=True, qffs=cell(*ROWS, spike_rate=0.3, load_average=[None, None])))
    assert "| Noise | Tiny | QCFS | 4 | 2.5 |" + " not measured |" * 5 + " 100 | 50.0 |" in text.splitlines()
    assert "nothing here is to be quoted" in text
    assert "30.0% spike per step. **This is not what trained networks do.**" in text
    assert "Load average" not in text
    assert text.count("\n## ") == 2


def test_a_measured_exit_is_not_projected(tiny: None):
    measured = WithExit(series=series(3.0, 4.0, 3.0), exit_steps=[1, 2, 2], threshold=0.6)
    about = Model(title="net", sha256="0" * 64, data="noise", calibration_images=1000, test_images=3)
    one = cell(row("ONNX Runtime fp32", series(8.0, 8.0, 8.0), with_exit=measured), model=about, width=None)
    lines = page(record_of(qcfs=one)).splitlines()
    assert (
        "| Noise | Tiny | QCFS | 4 | 1.67 (here) | 12.5% | ONNX Runtime fp32 | 8.00 | 3.00 (measured) | – | "
        "100 | 50.0 |" in lines
    )
    assert "| ONNX Runtime fp32 (ONNX 1.0) | 8.00 | 8.00 – 8.00 | 2.00 | 3.00 (measured) | – | – |" in lines
    trained = "Trained: net (SHA-256 000000000000…), exits calibrated on 1,000 images of noise and measured on 3"
    assert any(line.startswith(trained) for line in lines)


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
    assert table.read_text(encoding="utf-8") == f"{page(whole)}\n"

    table.unlink()
    assert run("--from-record", "-o", output, "--table", table).exit_code == 0
    assert table.read_text(encoding="utf-8") == f"{page(whole)}\n"
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


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda plain: plain | {"study": "latency"}, "latency"),
        (lambda plain: plain | {"version": 2}, "version"),
        (lambda plain: plain | {"colour": "red"}, "colour"),
        (lambda plain: {key: plain[key] for key in plain if key != "threads"}, "threads"),
    ],
    ids=["another study", "another version", "an unknown key", "a missing key"],
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
    assert (found.model.calibration_images, found.model.test_images) == (30, 20)
    snn, _ = snap(snn_from_ann(checkpoint.network(), GREY, "qcfs"), STEPS)
    with np.load(tmp_path / "noise" / "test.npz") as data:
        pixels = data["image"][np.arange(20) * 30 // 20]
    confidence = np.stack([max_softmax(step.logits, STEPS) for step in oracle_steps(snn, pixels, STEPS)], axis=1)
    for one in found.rows:
        assert one.with_exit is not None
        assert len(one.with_exit.series.wall_ms) == peers_measure.QUICK_ROUNDS
        if one.precision == "fp32":
            expected = exit_steps(confidence, one.with_exit.threshold, np.full(20, STEPS))
            assert one.with_exit.exit_steps == expected.tolist()
    assert "(measured)" in page(read_record(output))
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


def test_the_fastest_is_that_of_the_medians():
    assert fastest([row("a", series(1.0, 9.0, 9.0)), row("b", series(5.0, 5.0, 5.0))]).name == "b"
