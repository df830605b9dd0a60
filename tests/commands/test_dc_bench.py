"""dc-bench: what it records is what the network answers, also when it is stopped; and it says what is doubtful."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from latency_records import MACHINE

from dynamic_confidence.benchmarks.latency import bench, dc_bench, machine, measure
from dynamic_confidence.benchmarks.latency.dc_bench import main
from dynamic_confidence.benchmarks.latency.energy import Meter
from dynamic_confidence.benchmarks.latency.record import Energy, LatencyRecord, NotMeasured, read_record
from dynamic_confidence.benchmarks.latency.statistics import summary
from dynamic_confidence.runtime.engine import open_engine
from dynamic_confidence.runtime.exit_policy import policy_from_manifest
from dynamic_confidence.runtime.manifest import Schedule
from dynamic_confidence.runtime.network_file import read_manifest, write_calibration
from dynamic_confidence.runtime.onnx_file import write_schedule
from dynamic_confidence.runtime.stepping import infer

IMAGES, STEPS = 12, 12


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warm-up to speak of, an idle machine, and no meter, which would take its time."""
    monkeypatch.setattr(measure, "WARM_UP_S", 0.001)
    monkeypatch.setattr(machine, "described", lambda *, on_gpu: MACHINE)
    monkeypatch.setattr(bench, "find_meter", lambda *, on_gpu: NotMeasured(reason="no meter"))
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def label() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 4, IMAGES)


@pytest.fixture
def data(pixels: np.ndarray, label: np.ndarray, tmp_path: Path) -> Path:
    np.savez(tmp_path / "test.npz", image=pixels[:IMAGES], label=label)
    return tmp_path / "test.npz"


@pytest.fixture
def make(exported: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A network with a threshold, exported in some form."""

    def network(name: str = "net.onnx", *, calibrated: bool = True, **options: object) -> Path:
        path = tmp_path / name
        path.write_bytes(exported(**options).read_bytes())
        if calibrated:
            calibration = read_manifest(path).calibration
            write_calibration(path, msgspec.structs.replace(calibration, threshold=0.6, data="val", samples=64))
        return path

    return network


def measured(path: Path, data: Path, record: Path, *more: object) -> LatencyRecord:
    result = run(path, "--data", data, "--rounds", 2, "-o", record, *more)
    assert result.exit_code == 0, result.output
    return read_record(record)


@pytest.mark.parametrize("options", [{"method": "qcfs", "count_spikes": True}, {"method": "qffs", "steps_per_call": 4}])
def test_the_record_is_what_the_network_answers(make, data: Path, pixels, label, tmp_path: Path, options: dict):
    path = make(**options)
    record = measured(path, data, tmp_path / "r.json", "--batch", 4, "--threads", 1)
    (found,) = record.runs
    with open_engine(path, threads=1) as engine:
        policy = policy_from_manifest(engine.manifest)
        answers = [infer(engine, image[None], policy).rows[0] for image in pixels[:IMAGES]]
        backend, manifest = engine.backend, engine.manifest
    assert found.exit_steps == [answer.steps for answer in answers]
    assert found.right == [answer.label == truth for answer, truth in zip(answers, label, strict=True)]
    assert len(set(found.exit_steps)) > 1
    for series in (found.with_exit, found.without_exit):
        assert [len(round_) for round_ in series.ms] == [12, 12]
    assert (found.file, found.backend, found.threads) == ("net.onnx", backend, 1)
    assert found.network.graph_sha256 == manifest.provenance.graph_sha256
    assert (found.network.threshold, found.network.calibrated_on) == (0.6, "val")
    assert found.step_ms == sorted(found.step_ms)
    assert len(found.step_ms) == STEPS
    evaluation = found.evaluation
    assert evaluation is not None
    assert evaluation.accuracy == np.mean(found.right)
    assert evaluation.mean_steps == np.mean(found.exit_steps)
    assert evaluation.accuracy_at_step[-1] == np.mean(found.right_without_exit)
    assert evaluation.gross_spikes is not None
    assert found.overhead is not None
    assert {len(us) for us in msgspec.structs.asdict(found.overhead).values()} == {30}
    assert [(one.batch, one.early_exit) for one in found.throughput] == [(4, False), (4, True)]
    assert found.memory is None or 0 < found.memory.rss_before <= found.memory.rss_peak
    assert found.energy == NotMeasured(reason="no meter")
    assert (found.complete, found.failure) == (record.complete, record.stopped) == (True, None)
    assert (record.data.title, record.data.images, record.rounds) == ("test.npz", IMAGES, 2)
    assert record.machine == MACHINE
    assert record.pairs == []


def test_the_table_has_both_columns(make, data: Path, tmp_path: Path):
    path = make()
    result = run(path, "--data", data, "--rounds", 2, "-o", tmp_path / "r.json", "--threads", 1)
    assert result.exit_code == 0, result.output
    numbers = summary(read_record(tmp_path / "r.json").runs[0])
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in result.stdout.splitlines()]
    assert ["time steps", "12", f"{numbers.mean_steps:.2f}"] in lines
    assert ["accuracy %", f"{100 * numbers.accuracy_without_exit:.2f}", f"{100 * numbers.accuracy:.2f}"] in lines
    for name, key in (("mean", "mean"), ("median", "p50"), ("95 % below", "p95"), ("99 % below", "p99")):
        late, early = getattr(numbers.without_exit, key), getattr(numbers.with_exit, key)
        assert [f"ms, {name}", f"{late:.3f}", f"{early:.3f}"] in lines
    assert ["saved, % of the time steps", "", f"{100 * numbers.saving_steps:.1f}"] in lines
    assert ["saved, % of the milliseconds", "", f"{100 * numbers.saving_ms:.1f}"] in lines
    for text in (
        "net.onnx: ONNX Runtime",
        "1 thread",
        "without early exit ┃ with Dynamic Confidence",
        "12 images of test.npz, 2 rounds; opened in ",
        "an answer takes ",
        "the stepping loop adds ",
        " us per time step to the engine's calls (",
        " % of a step) and ",
        " us once per inference (",
        " % of a step); a confidence on the host would take ",
        "batch 12: ",
        "energy: not measured: no meter",
        f"{tmp_path / 'r.json'}: the record, with every sample",
    ):
        assert text in result.stdout, text
    assert "is not calibrated" not in result.stderr


def test_json_is_the_statistics(make, data: Path, tmp_path: Path):
    result = run(make(), "--data", data, "--rounds", 2, "-o", tmp_path / "r.json", "--json")
    assert result.exit_code == 0, result.output
    found, record = json.loads(result.stdout), read_record(tmp_path / "r.json")
    numbers = summary(record.runs[0])
    (only,) = found["runs"]
    assert only["with_exit"] == pytest.approx(numbers.with_exit._asdict())
    assert only["saving_ms"] == pytest.approx(numbers.saving_ms)
    assert only["network"]["method"] == "qcfs"
    assert only["energy"] == {"kind": "not measured", "reason": "no meter"}
    assert (found["complete"], found["pairs"]) == (True, [])


def test_several_are_measured_one_after_another(make, data: Path, tmp_path: Path):
    paths = [make("a.onnx"), make("b.onnx", method="qffs")]
    result = run(*paths, "--data", data, "--rounds", 1, "--images", 5, "-o", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    record = read_record(tmp_path / "r.json")
    assert [(one.file, one.network.method) for one in record.runs] == [("a.onnx", "qcfs"), ("b.onnx", "qffs")]
    assert [len(one.exit_steps) for one in record.runs] == [5, 5]
    assert record.data.images == 5
    assert record.pairs == []


def test_two_that_take_turns(make, data: Path, tmp_path: Path):
    path, other = make("k4.onnx", steps_per_call=4), make("k1.onnx")
    result = run(path, "--against", other, "--data", data, "--rounds", 3, "-o", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    record = read_record(tmp_path / "r.json")
    assert [one.file for one in record.runs] == ["k4.onnx", "k1.onnx"]
    assert record.runs[0].exit_steps == record.runs[1].exit_steps
    (pair,) = record.pairs
    assert (pair.first, pair.second, len(pair.with_exit), len(pair.without_exit)) == (0, 1, 3, 3)
    assert "k1.onnx (ONNX Runtime" in result.stdout
    assert "times as long as k4.onnx" in result.stdout


def test_a_schedule_is_followed(make, data: Path, tmp_path: Path):
    path = make(steps_per_call=1, more_steps_per_call=(4,))
    write_schedule(path, Schedule((4, 1), ((1, 1.0), (4, 2.0)), "ONNX Runtime", None, 1.0, 1.0))
    (found,) = measured(path, data, tmp_path / "r.json", "--backend", "onnxruntime").runs
    assert found.network.calls == [4, 1]
    assert len(set(found.step_ms[:4])) == 1
    assert len(set(found.step_ms[3:])) == STEPS - 3


def test_images_are_as_many_as_the_seconds_allow(make, pixels: np.ndarray, tmp_path: Path):
    np.savez(tmp_path / "many.npz", image=pixels, label=np.arange(64) % 4)
    record = measured(make(), tmp_path / "many.npz", tmp_path / "r.json", "--seconds", 1e-6)
    assert record.data.images == bench.FEWEST
    assert [len(round_) for round_ in record.runs[0].with_exit.ms] == [bench.FEWEST]


def test_energy_is_measured_in_a_pass_of_its_own(make, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    used: list[bool] = []

    def joules(work: Callable[[], object]) -> float:
        work()
        used.append(True)
        return 4.0

    monkeypatch.setattr("dynamic_confidence.benchmarks.latency.energy.BLOCK_S", 0.01)
    monkeypatch.setattr(bench, "find_meter", lambda *, on_gpu: Meter("a meter", joules))
    result = run(make(), "--data", data, "--rounds", 1, "-o", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    energy = read_record(tmp_path / "r.json").runs[0].energy
    assert isinstance(energy, Energy)
    assert energy.source == "a meter"
    assert energy.joules_with_exit == energy.joules_without_exit > 0
    assert len(used) == 5  # idle, and four blocks
    assert "mJ without early exit" in result.stdout

    def refused(work: Callable[[], object]) -> float:
        raise OSError("gone")

    monkeypatch.setattr(bench, "find_meter", lambda *, on_gpu: Meter("a meter", refused))
    energy = measured(tmp_path / "net.onnx", data, tmp_path / "r.json").runs[0].energy
    assert energy == NotMeasured(reason="a meter stopped answering (gone)")


class Stopping:
    """`infer` that raises at its call of this number, as of the rounds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, calls: int, error: BaseException) -> None:
        self.left, self.error, self.right = calls, error, measure.infer
        monkeypatch.setattr(measure, "warm_up", lambda one: 1.0)
        monkeypatch.setattr(bench, "warm_up", lambda one: 1.0)
        monkeypatch.setattr(measure, "infer", self)

    def __call__(self, *arguments: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.right(*arguments)


@pytest.mark.parametrize(
    ("error", "stopped", "code", "said"),
    [
        (KeyboardInterrupt(), "Ctrl-C", 130, "Interrupted."),
        (SystemExit(143), "SIGTERM", 143, ""),
        (RuntimeError("device lost"), "failed on image [4] (RuntimeError: device lost)", 1, "Error: "),
    ],
)
def test_what_is_stopped_leaves_what_was_measured(
    make, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error, stopped: str, code: int, said: str
):
    path = make()
    Stopping(monkeypatch, 2 * 12 + 9, error)
    result = run(path, "--data", data, "--rounds", 3, "-o", tmp_path / "r.json")
    assert result.exit_code == code
    assert said in result.stderr
    record = read_record(tmp_path / "r.json")
    assert (record.complete, record.runs[0].complete) == (False, False)
    assert stopped in str(record.stopped)
    assert record.runs[0].failure == record.stopped
    assert [len(round_) for round_ in record.runs[0].with_exit.ms] == [12, 4]
    assert record.runs[0].evaluation is None
    assert record.runs[0].energy == NotMeasured(reason="it ended before")
    assert f"Warning: The measurement ended before its end ({record.stopped})" in result.stderr
    assert "12 images of test.npz, 2 rounds" in result.stdout


def test_what_was_not_begun_is_named(make, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, second = make("first.onnx"), make("second.onnx")
    Stopping(monkeypatch, 2 * 12 + 9, KeyboardInterrupt())
    result = run(first, second, "--data", data, "--rounds", 3, "-o", tmp_path / "r.json")
    record = read_record(tmp_path / "r.json")
    assert record.stopped == "Ctrl-C; nothing was measured of second.onnx"
    assert [one.failure for one in record.runs] == ["Ctrl-C"]
    assert f"Warning: The measurement ended before its end ({record.stopped})" in result.stderr


def test_what_is_stopped_at_once_leaves_the_record_that_was_there(
    make, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = make()
    (tmp_path / "r.json").write_text("before")
    Stopping(monkeypatch, 1, KeyboardInterrupt())
    result = run(path, "--data", data, "-o", tmp_path / "r.json")
    assert result.exit_code == 130
    assert (tmp_path / "r.json").read_text() == "before"
    assert result.stdout == ""


def test_a_pass_that_is_stopped_leaves_the_samples(make, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "throughput", stop)
    result = run(make(), "--data", data, "--rounds", 2, "-o", tmp_path / "r.json")
    assert result.exit_code == 130
    (found,) = read_record(tmp_path / "r.json").runs
    assert [len(round_) for round_ in found.with_exit.ms] == [12, 12]
    assert found.evaluation is not None
    assert found.overhead is not None
    assert (found.throughput, found.complete) == ([], False)


def test_a_network_that_is_not_calibrated_is_said(make, data: Path):
    result = run(make(calibrated=False), "--data", data, "--rounds", 1)
    assert result.exit_code == 0, result.output
    assert "Warning: net.onnx is not calibrated, so that confidence stops nothing early." in result.stderr


def test_a_busy_machine_is_said(make, data: Path, monkeypatch: pytest.MonkeyPatch):
    busy = msgspec.structs.replace(MACHINE, load_per_core=0.8)
    monkeypatch.setattr(machine, "described", lambda *, on_gpu: busy)
    result = run(make(), "--data", data, "--rounds", 1)
    assert result.exit_code == 0, result.output
    assert "Warning: The machine was busy (80% of all cores)" in result.stderr


def test_the_report_is_of_the_record(make, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from dynamic_confidence.benchmarks.latency import report

    written: list[tuple[list[LatencyRecord], Path]] = []
    monkeypatch.setattr(report, "write_report", lambda records, path: written.append((records, path)))
    record = measured(make(), data, tmp_path / "r.json", "--report", tmp_path / "r.html")
    assert written == [([record], tmp_path / "r.html")]


def test_every_way_to_show_progress_yields_every_item():
    assert list(dc_bench._calm_progress(range(5), "counting")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["net.onnx"], 2, "Missing option '--data'"),
        (["--data", "test.npz"], 2, "Missing argument 'ENGINE...'"),
        (["missing.onnx", "--data", "test.npz"], 2, "missing.onnx"),
        (["test.npz", "--data", "test.npz"], 2, "no engine runs '.npz' files"),
        (["broken.onnx", "--data", "test.npz"], 2, "broken.onnx"),
        (["net.onnx", "--data", "missing"], 2, "missing: no such data set. Expected a folder with one folder of"),
        (["net.onnx", "--data", "unlabelled.npz"], 2, "has no label that the network knows"),
        (["net.onnx", "--data", "large.npz"], 2, "got an array of shape [12, 1, 9, 9], expected uint8 pixels"),
        (["net.onnx", "--data", "empty"], 2, "no image in this folder"),
        (["net.onnx", "--data", "test.npz", "--images", "13"], 2, "--images 13: test.npz holds 12, expected that many"),
        (["net.onnx", "--data", "test.npz", "--images", "0"], 2, "--images 0: expected at least 1."),
        (["net.onnx", "--data", "test.npz", "--rounds", "0"], 2, "--rounds 0: expected at least 1."),
        (["net.onnx", "--data", "test.npz", "--batch", "0"], 2, "--batch 0: expected at least 1."),
        (["net.onnx", "--data", "test.npz", "--seconds", "0"], 2, "--seconds 0: expected a positive number."),
        (["net.onnx", "--data", "test.npz", "--threads", "0"], 2, "threads 0: expected at least 1."),
        (["net.onnx", "--data", "test.npz", "-o", "net.onnx"], 2, "net.onnx: is read here, or named twice; name"),
        (["net.onnx", "--data", "test.npz", "-o", "r.json", "--report", "r.json"], 2, "r.json: is read here, or named"),
        (["net.onnx", "--data", "test.npz", "-o", "empty"], 2, "empty: is a folder, expected the name of a file."),
        (["net.onnx", "--data", "test.npz", "-o", "test.npz/r.json"], 2, "test.npz/r.json: cannot write there ("),
        (["net.onnx", "--data", "test.npz", "--against", "missing.onnx"], 2, "missing.onnx"),
    ],
)
def test_bad_input(
    make, data, pixels, tmp_path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
):
    make()
    monkeypatch.chdir(tmp_path)
    np.savez("unlabelled.npz", image=pixels[:IMAGES])
    np.savez("large.npz", image=pixels[:IMAGES, :, :9, :9], label=np.zeros(IMAGES, np.int64))
    Path("broken.onnx").write_bytes(b"no network")
    Path("empty").mkdir()
    before = sorted(tmp_path.iterdir())
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert sorted(tmp_path.iterdir()) == before
    assert result.stdout == ""


def test_a_backend_that_is_missing(make, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from dynamic_confidence.runtime.errors import BackendMissing

    def refuse(*arguments: object, **options: object) -> None:
        raise BackendMissing("openvino is not there: pip install openvino")

    monkeypatch.setattr(bench, "open_engine", refuse)
    result = run(make(), "--data", data, "-o", tmp_path / "r.json")
    assert result.exit_code == 3
    assert "openvino is not there" in result.stderr
    assert not (tmp_path / "r.json").exists()
