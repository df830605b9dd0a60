"""dc-run: what it prints, what it refuses, and the exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dynamic_confidence.runtime.dc_run import main
from dynamic_confidence.runtime.engine import EngineOptions, open_engine
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.exit_policy import policy_from_manifest
from dynamic_confidence.runtime.manifest import METADATA_KEY, Schedule
from dynamic_confidence.runtime.onnx_file import bytes_with_manifest, read_onnx, write_calibration, write_schedule
from dynamic_confidence.runtime.stepping import infer

CLASSES = ("zero", "one", "two", "three")
TIME = "ms"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def answered(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def without_time(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != TIME} for record in records]


@pytest.fixture(scope="module")
def network(exported: Callable[..., Path]) -> Path:
    return exported()


@pytest.fixture(scope="module")
def images(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images, in folders named like the classes, and in one that is not."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(10):
        name = (*CLASSES, "stray")[index % 5]
        (folder / name).mkdir(exist_ok=True)
        Image.fromarray(pixels[index, 0]).save(folder / name / f"{index}.png")
    return folder


def image_names(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def test_json_records(network: Path, images: Path, pixels: np.ndarray):
    result = run("--engine", network, images, "--threshold", 0.6, "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    records = answered(result)
    assert [record["input"] for record in records] == [str(file) for file in image_names(images)]
    with open_engine(network) as engine:
        policy = policy_from_manifest(engine.manifest, threshold=0.6)
        for record in records:
            file = Path(record["input"])
            row = int(file.stem)
            answer = infer(engine, pixels[row : row + 1], policy)
            expected = {
                "input": str(file),
                "label": int(answer.label[0]),
                "name": CLASSES[int(answer.label[0])],
                "confidence": float(answer.confidence[0]),
                "steps": int(answer.steps[0]),
                "exit": answer.reason[0],
            }
            if file.parent.name in CLASSES:
                expected["truth"] = CLASSES.index(file.parent.name)
            assert 0 < record.pop(TIME) < 10_000
            assert record == expected


def test_table_and_summary(network: Path, images: Path):
    records = answered(run("--engine", network, images, "--threshold", 0.6, "--json"))
    result = run("--engine", network, images, "--threshold", 0.6)
    assert result.exit_code == 0
    judged = [record["label"] == record["truth"] for record in records if "truth" in record]
    steps = np.mean([record["steps"] for record in records])
    assert len(judged) == 8
    assert f"10 inputs, on average: {steps:.2f} of 12 time steps ({100 - 100 * steps / 12:.1f} % saved)" in (
        " ".join(result.stdout.split())
    )
    assert f"accuracy {100 * np.mean(judged):.2f} % of 8" in " ".join(result.stdout.split())
    for column in ("input", "answer", "confidence", "steps", "ms", "exit"):
        assert column in result.stdout
    assert f", on ONNX Runtime {onnxruntime.__version__}, CPU\n" in result.stdout  # and one step per call
    assert "is not calibrated" not in result.stdout


def test_the_summary_says_how_many_steps_a_call_takes(exported: Callable[..., Path], images: Path):
    assert "CPU, 4 steps per call\n" in run("--engine", exported(steps_per_call=4), images).stdout


def test_a_schedule_is_named_and_so_is_another_tuning(exported: Callable[..., Path], images: Path, tmp_path: Path):
    path = tmp_path / "net.onnx"
    path.write_bytes(exported(more_steps_per_call=(2, 4)).read_bytes())
    here = f"ONNX Runtime {onnxruntime.__version__}, CPU"
    write_schedule(path, Schedule((4, 1), ((1, 1.0), (2, 1.5), (4, 2.0)), here, 1, 2.5, 2.25))
    same = run("--engine", path, images, "--threads", 1)
    assert f", on {here}, in calls of 4 and then 1 time steps, as tuned\n" in same.stdout
    assert same.stderr == ""
    other = run("--engine", path, images, "--threads", 2, "--json")
    assert other.stderr.startswith(f"The schedule was tuned on {here}, 1 thread, and this is {here}, 2 threads: ")
    assert len(answered(other)) == 10
    assert f"and this is {here}, threads of its choice: " in run("--engine", path, images).stderr
    together = run("--engine", path, images, "--batch", 4)  # no schedule is followed
    assert together.stderr == ""
    assert f", on {here}\n" in together.stdout


def test_a_provider_that_is_not_there(network: Path, images: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    result = run("--engine", network, images, "--provider", "cuda")
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: --provider cuda: the installed ONNX Runtime ")
    assert result.stdout == ""


def test_the_options_reach_the_engine(network: Path, images: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[EngineOptions] = []

    def remembered(path: Path, options: EngineOptions) -> None:
        seen.append(options)
        raise DynamicConfidenceError("enough")

    monkeypatch.setattr("dynamic_confidence.runtime.engines.onnxruntime.OnnxRuntimeEngine", remembered)
    run("--engine", network, images)
    arguments = (
        "--batch 4 --threads 2 --provider tensorrt --cuda pycuda --no-cuda-graph --speculate --backend onnxruntime"
    )
    run("--engine", network, images, *arguments.split())
    assert seen == [EngineOptions(), EngineOptions(4, 2, True, "tensorrt", "pycuda", False, True, "onnxruntime")]


@pytest.mark.parametrize(("arguments", "batch"), [([], 10), (["--threshold", 0.5], 10), (["--frames"], 1)])
def test_a_batch_that_nothing_fills_is_not_computed(network, images: Path, monkeypatch, arguments, batch: int):
    seen = []

    def remembered(path: Path, options: EngineOptions) -> None:
        seen.append(options.batch)
        raise DynamicConfidenceError("enough")

    monkeypatch.setattr("dynamic_confidence.runtime.engines.onnxruntime.OnnxRuntimeEngine", remembered)
    assert run("--engine", network, images, "--batch", 2000, *arguments).exit_code == 2
    assert seen == [batch]


def test_the_table_has_so_many_rows(network: Path, images: Path):
    result = run("--engine", network, images, "--rows", 3)
    assert "… and 7 more (--rows 10 or --json shows them)" in " ".join(result.stdout.split())
    assert result.stdout.count("last step") == 3


def test_no_accuracy_without_labels(network: Path, images: Path):
    result = run("--engine", network, images / "stray")
    assert "2 inputs" in result.stdout
    assert "accuracy" not in result.stdout


def test_a_network_that_is_not_calibrated_says_so(network: Path, images: Path, tmp_path: Path):
    result = run("--engine", network, images)
    assert "is not calibrated: its inputs run all their steps. `dc-calibrate` finds the threshold" in result.stdout
    assert "12.00 of 12 time steps" in " ".join(result.stdout.split())

    calibrated = tmp_path / "net.onnx"
    calibrated.write_bytes(network.read_bytes())
    calibration = read_onnx(network)[1].calibration
    write_calibration(calibrated, msgspec.structs.replace(calibration, threshold=0.6, data="validation"))
    assert "is not calibrated" not in run("--engine", calibrated, images).stdout
    by_file = answered(run("--engine", calibrated, images, "--json"))
    by_option = answered(run("--engine", network, images, "--threshold", 0.6, "--json"))
    assert without_time(by_file) == without_time(by_option)


@pytest.mark.parametrize("batch", [7, 64])
def test_a_batch_answers_as_single_inputs(network: Path, images: Path, batch: int):
    single = answered(run("--engine", network, images, "--threshold", 0.6, "--json"))
    together = answered(run("--engine", network, images, "--threshold", 0.6, "--json", "--batch", batch))
    assert without_time(together) == without_time(single)


def test_threads_change_nothing(network: Path, images: Path):
    one = answered(run("--engine", network, images, "--json", "--threads", 1))
    two = answered(run("--engine", network, images, "--json", "--threads", 2))
    assert without_time(one) == without_time(two)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_corrupt_image_does_not_end_the_rest(network: Path, images: Path, tmp_path: Path, batch: int):
    files = image_names(images)[:4]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"damaged")
    inputs = [*files[:2], broken, *files[2:]]
    result = run("--engine", network, *inputs, "--json", "--batch", batch)
    assert result.exit_code == 2
    records = answered(result)
    assert [record["input"] for record in records] == [str(file) for file in inputs]
    assert set(records[2]) == {"input", "error"}
    assert "broken.png: not a readable image" in records[2]["error"]
    assert without_time(records[:2] + records[3:]) == without_time(answered(run("--engine", network, *files, "--json")))

    table = run("--engine", network, *inputs, "--batch", batch)
    assert table.exit_code == 2
    assert "Error: " in table.stderr
    assert "broken.png: not a readable image" in table.stderr
    assert "4 inputs" in table.stdout


def test_only_corrupt_images(network: Path, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"")
    result = run("--engine", network, tmp_path / "a.png", "--threshold", 0.5)
    assert result.exit_code == 2
    assert "not a readable image" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((3, 12, 12), np.uint8)[None],
            "shape [1, 3, 12, 12], expected uint8 pixels 0..255 of shape [N, 1, 12",
        ),
        (np.full((12, 12), np.nan), "got float64 values, NaN among them, expected uint8 pixels"),
        (np.zeros((12, 12), np.float32), "got float32 values, expected uint8 pixels"),
    ],
)
def test_arrays_that_do_not_fit(network: Path, tmp_path: Path, array: np.ndarray, message: str):
    np.save(tmp_path / "a.npy", array)
    result = run("--engine", network, tmp_path / "a.npy", "--json")
    assert result.exit_code == 2
    assert message in answered(result)[0]["error"]


def test_arrays_answer_as_images_do(network: Path, images: Path, pixels: np.ndarray, tmp_path: Path):
    np.savez(tmp_path / "a.npz", image=pixels[:4, 0], label=np.arange(4))
    from_array = answered(run("--engine", network, tmp_path / "a.npz", "--json", "--batch", 3))
    files = [images / name / f"{index}.png" for index, name in enumerate(CLASSES)]
    from_files = answered(run("--engine", network, *files, "--json"))
    for one, other in zip(without_time(from_array), without_time(from_files), strict=True):
        assert one | {"input": ""} == other | {"input": ""}


def test_steps(network: Path, images: Path):
    result = run("--engine", network, images, "--steps", 5, "--json")
    assert {record["steps"] for record in answered(result)} == {5}


def test_deadline(network: Path, images: Path):
    records = answered(run("--engine", network, images, "--deadline-ms", 1e-6, "--json"))
    assert {record["exit"] for record in records} == {"deadline"}
    assert {record["steps"] for record in records} == {1}
    assert {record["late"] for record in records} == {True}
    table = run("--engine", network, images, "--deadline-ms", 1e-6)
    assert "10 of 10 missed the deadline of 1e-06 ms (longest: " in table.stdout
    far = answered(run("--engine", network, images, "--deadline-ms", 1e6, "--json"))
    assert not any(record.pop("late") for record in far)
    assert without_time(far) == without_time(answered(run("--engine", network, images, "--json")))


def test_frames(exported: Callable[..., Path], pixels: np.ndarray, tmp_path: Path):
    network = exported(steps_per_call=4, frames=True)
    film = tmp_path / "film"
    film.mkdir()
    for index in range(6):
        Image.fromarray(pixels[index, 0]).save(film / f"{index}.png")
    np.save(tmp_path / "film.npy", pixels[:6])
    result = run("--engine", network, film, tmp_path / "film.npy", tmp_path / "missing.npy", "--frames", "--json")
    assert result.exit_code == 2
    folder, array, missing = without_time(answered(result))
    assert folder | {"input": ""} == array | {"input": ""}
    assert folder["steps"] == 6
    assert "missing.npy: expected a folder of frames" in missing["error"]
    with open_engine(network) as engine:
        answer = infer(engine, pixels[:6, None], policy_from_manifest(engine.manifest))
    assert folder["confidence"] == float(answer.confidence[0])


def test_a_sequence_that_does_not_fit_does_not_end_the_rest(
    exported: Callable[..., Path], pixels: np.ndarray, tmp_path: Path
):
    for name, frames in (("long", 13), ("good", 6), ("empty", 0)):
        np.save(tmp_path / f"{name}.npy", pixels[:frames])
    (tmp_path / "folder").mkdir()
    inputs = [tmp_path / name for name in ("long.npy", "good.npy", "empty.npy", "folder")]
    result = run("--engine", exported(), *inputs, "--frames", "--json")
    assert result.exit_code == 2
    long, good, empty, folder = answered(result)
    assert good["steps"] == 6
    assert "long.npy: 13 frames: this network runs 12 time steps at most" in long["error"]
    assert "empty.npy: 0 frames: expected at least one" in empty["error"]
    assert "no image in this folder" in folder["error"]

    table = run("--engine", exported(), *inputs, "--frames")
    assert table.exit_code == 2
    assert "long.npy: 13 frames" in table.stderr
    assert "1 input: 6.00 of 12 time steps" in table.stdout

    qffs = run("--engine", exported(method="qffs"), tmp_path / "good.npy", "--frames", "--json")
    assert "good.npy: 6 frames: this QFFS network takes input in its first 3 steps" in answered(qffs)[0]["error"]


@pytest.mark.parametrize("name", ["pics[old]", "[bold]", "x[", "a:cat:b", "back\\"])
def test_a_path_is_shown_as_it_is(network: Path, pixels: np.ndarray, tmp_path: Path, monkeypatch, name: str):
    """Not as what rich takes for markup."""
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    Image.fromarray(pixels[0, 0]).save(f"{name}/a.png")
    result = run("--engine", network, f"{name}/a.png")
    assert result.exit_code == 0, result.stderr
    assert f"{name}/a.png" in result.stdout


def test_closing_markup_in_a_path_is_no_error(network: Path, pixels: np.ndarray, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x[").mkdir()
    Image.fromarray(pixels[0, 0]).save("x[/f].png")
    result = run("--engine", network, "x[/f].png")
    assert result.exit_code == 0, result.stderr
    assert "x[/f].png" in result.stdout


def test_a_path_that_is_no_utf8(network: Path, pixels: np.ndarray, tmp_path: Path):
    Image.fromarray(pixels[0, 0]).save(tmp_path / "a.png")
    odd = (tmp_path / "a.png").rename(tmp_path / "odd\udcff.png")
    assert answered(run("--engine", network, odd, "--json"))[0]["input"] == str(odd)
    table = run("--engine", network, odd)
    assert table.exit_code == 0
    assert r"odd\udcff.png" in "".join(column(table.stdout, 0))


def test_class_names_are_shown_as_they_are(network: Path, images: Path, tmp_path: Path):
    model, manifest = read_onnx(network)
    manifest = msgspec.structs.replace(manifest, class_names=("[red]", "[/b]", ":cat:", "[x]"))
    (tmp_path / "net.onnx").write_bytes(bytes_with_manifest(model, manifest))
    result = run("--engine", tmp_path / "net.onnx", images)
    assert result.exit_code == 0, result.stderr
    assert any(name in result.stdout for name in manifest.class_names)
    assert all(name in (*manifest.class_names,) for name in column(result.stdout, 1))


def column(table: str, index: int) -> list[str]:
    """The cells of a column, in rows that start an answer."""
    rows = [line.split("│") for line in table.splitlines() if line.startswith("│")]
    return [cell for row in rows if (cell := row[index + 1].strip())]


def test_frames_need_a_network_for_frames(exported: Callable[..., Path], pixels: np.ndarray, tmp_path: Path):
    np.save(tmp_path / "film.npy", pixels[:6])
    result = run("--engine", exported(steps_per_call=4), tmp_path / "film.npy", "--frames")
    assert result.exit_code == 2
    assert "export it with `dc-export --frames`" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "1.5"], "Error: threshold 1.5: a confidence is a probability, expected a value in [0, 1]"),
        (["--threshold", "-0.1"], "Error: threshold -0.1: a confidence is a probability"),
        (["--threshold", "much"], "'much' is not a valid float"),
        (["--steps", "0"], "Error: steps 0: expected 1 to 12"),
        (["--steps", "13"], "Error: steps 13: expected 1 to 12, the number this network was exported for"),
        (["--deadline-ms", "0"], "Error: deadline 0 ms: expected a positive number"),
        (["--batch", "0"], "Error: batch 0: expected at least 1"),
        (["--threads", "0"], "Error: threads 0: expected at least 1"),
    ],
)
def test_options_out_of_range(network: Path, images: Path, options: list[str], message: str):
    result = run("--engine", network, images, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_an_empty_folder_and_a_missing_input(network: Path, tmp_path: Path):
    empty = run("--engine", network, tmp_path)
    assert empty.exit_code == 2
    assert "no image in this folder (looked for" in empty.stderr
    missing = run("--engine", network, tmp_path / "missing.png")
    assert missing.exit_code == 2
    assert "missing.png: no such file or folder" in missing.stderr
    assert "Missing argument 'INPUTS...'" in run("--engine", network).stderr


def foreign(content: bytes) -> bytes:
    model = onnx.load_model_from_string(content)
    del model.metadata_props[:]
    return model.SerializeToString()


def unknown_key(content: bytes) -> bytes:
    model = onnx.load_model_from_string(content)
    (entry,) = (e for e in model.metadata_props if e.key == METADATA_KEY)
    entry.value = json.dumps(json.loads(entry.value) | {"flavour": 1})
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (foreign, "an ONNX file with 0 manifests where one is expected"),
        (unknown_key, "Object contains unknown field `flavour`"),
        (lambda content: content[: len(content) // 2], "not a complete ONNX file"),
        (lambda content: b"", "0 manifests"),
    ],
)
def test_networks_that_are_not_ours(
    network: Path, images: Path, tmp_path: Path, change: Callable[[bytes], bytes], message: str
):
    (tmp_path / "net.onnx").write_bytes(change(network.read_bytes()))
    result = run("--engine", tmp_path / "net.onnx", images)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "`dc-export model.pt`" in result.stderr


def test_missing_and_unknown_engines(images: Path, tmp_path: Path):
    missing = run("--engine", tmp_path / "net.onnx", images)
    assert missing.exit_code == 2
    assert "net.onnx: no such file. Make one with `dc-export model.pt -o net.onnx`" in missing.stderr
    unknown = run("--engine", tmp_path / "net.h5", images)
    assert unknown.exit_code == 2
    assert "no engine runs '.h5' files" in unknown.stderr


@pytest.mark.parametrize(
    ("block", "arguments", "code", "text"),
    [
        (None, ["{image}", "--json"], 0, '"exit": "last step"'),
        (None, ["{image}", "--threshold", "2"], 2, "Error: threshold 2: a confidence is a probability"),
        (None, ["{image}", "{missing}"], 2, "Error: {missing}: no such file or folder."),
        (
            "onnxruntime",
            ["{image}", "--backend", "onnxruntime"],
            3,
            "ONNX Runtime is not installed. Install it with `pip install",
        ),
    ],
)
def test_exit_codes_of_the_real_command(network: Path, images: Path, tmp_path: Path, block, arguments, code, text):
    places = {"image": image_names(images)[0], "missing": tmp_path / "missing.png"}
    program = f"import sys; sys.modules[{block!r}] = None; " if block else ""
    program += "from dynamic_confidence.runtime.dc_run import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--engine", network, *(a.format(**places) for a in arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code
    assert text.format(**places) in (done.stdout if code == 0 else done.stderr)
    assert "Traceback" not in done.stderr


def test_ctrl_c(network: Path, images: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dynamic_confidence.runtime.report.print_table", interrupted)
    result = run("--engine", network, images)
    assert result.exit_code == 130
    assert result.stderr == "Interrupted.\n"


def test_a_fault_of_the_program_is_no_failed_check(network: Path, images: Path, monkeypatch: pytest.MonkeyPatch):
    def faulty(*_: object) -> None:
        raise KeyError("what")

    monkeypatch.setattr("dynamic_confidence.runtime.report.print_table", faulty)
    result = run("--engine", network, images)
    assert result.exit_code == 70
    assert "Traceback" in result.stderr
    assert "KeyError: 'what'\nInternal error: this is a fault of dynamic-confidence. Report it" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"), [(click.UsageError("odd"), 2), (click.Abort(), 1), (BrokenPipeError(32, ""), 1)]
)
def test_what_click_handles_is_left_to_it(network: Path, images: Path, monkeypatch, error: Exception, code: int):
    def raising(*_: object) -> None:
        raise error

    monkeypatch.setattr("dynamic_confidence.runtime.report.print_table", raising)
    result = run("--engine", network, images)
    assert result.exit_code == code
    assert "Internal error" not in result.stderr


def test_a_forgotten_engine_option_is_guessed(network: Path, images: Path):
    result = run(network, images)
    assert result.exit_code == 2
    assert result.stderr == f"Error: which network? Name it with --engine {network}.\n"


def test_a_missing_file_does_not_end_the_rest(network: Path, images: Path, tmp_path: Path):
    result = run("--engine", network, tmp_path / "missing.png", images, "--json", "--rows", 0)
    assert result.exit_code == 2
    missing, *rest = answered(result)
    assert "missing.png: no such file or folder" in missing["error"]
    assert len(rest) == 10
    assert not any("error" in record for record in rest)


def test_a_folder_is_no_network(images: Path):
    assert "is a folder, expected a network file (.onnx" in run("--engine", images, images).stderr
