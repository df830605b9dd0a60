"""dc-calibrate: what it writes into the manifest is what the network then does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from dynamic_confidence.calib import calibrate as module
from dynamic_confidence.calib.calibrate import Settings, calibrate_file, calibrate_network, trace_from_engine
from dynamic_confidence.calib.dc_calibrate import main
from dynamic_confidence.calib.policy import Goal, calibrate
from dynamic_confidence.calib.temperature import fit_temperature, negative_log_likelihood
from dynamic_confidence.calib.thresholds import PAPER_GRID
from dynamic_confidence.calib.write_trace import write_trace
from dynamic_confidence.runtime.engine import open_engine
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.exit_policy import policy_from_manifest
from dynamic_confidence.runtime.manifest import Calibration
from dynamic_confidence.runtime.onnx_file import graph_sha256, read_onnx
from dynamic_confidence.runtime.stepping import infer, run_to_the_end

METHODS = ("qcfs", "qffs")
STEPS = 12


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def final(exported: Callable[..., Path], pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Per method the logits after the last step `[image, class]`."""
    found = {}
    for method in METHODS:
        with open_engine(exported(method=method), batch=64) as engine:
            found[method] = run_to_the_end(engine, pixels, engine.manifest.calibration.scale)[0][:, -1]
    return found


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def network(exported: Callable[..., Path], method: str, tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(exported(method=method, steps_per_call=4).read_bytes())
    return path


@pytest.fixture
def label(final: dict[str, np.ndarray], method: str) -> np.ndarray:
    """What the network says in the end, and something else for every fifth image."""
    answer = final[method].argmax(axis=1)
    answer[::5] = (answer[::5] + 1) % 4
    return answer


@pytest.fixture
def data(pixels: np.ndarray, label: np.ndarray, tmp_path: Path) -> Path:
    np.savez(tmp_path / "val.npz", image=pixels, label=label)
    return tmp_path / "val.npz"


def replayed(network: Path, pixels: np.ndarray, label: np.ndarray, batch: int = 64) -> tuple[float, float]:
    """Mean steps and accuracy of the calibrated network, run as dc-run does."""
    with open_engine(network, batch=batch) as engine:
        answers = infer(engine, pixels, policy_from_manifest(engine.manifest))
    return float(answers.steps.mean()), float((answers.label == label).mean())


@pytest.mark.parametrize("rule", ["safe", "grid", "exact"])
def test_the_manifest_says_what_the_network_does(network, method, data, pixels, label, final, rule):
    before, old = read_onnx(network)
    result = run(network, "--data", data, "--rule", rule, "--json")
    assert result.exit_code == 0, result.output
    after, manifest = read_onnx(network)
    calibration = manifest.calibration
    assert graph_sha256(after) == graph_sha256(before)
    assert (calibration.alpha, calibration.temperature) == (old.calibration.alpha, old.calibration.temperature)
    assert (calibration.data, calibration.samples, calibration.rule) == ("val.npz", 64, f"{rule}, max drop 0")
    assert rule != "grid" or calibration.threshold in PAPER_GRID
    steps, accuracy = replayed(network, pixels, label)
    assert (steps, accuracy) == (calibration.expected_mean_steps, calibration.expected_accuracy)
    assert accuracy >= (final[method].argmax(axis=1) == label).mean()
    assert steps < STEPS


def test_the_exact_rule_needs_no_more_steps_than_the_grid(network, data):
    reports = [json.loads(run(network, "--data", data, "--rule", rule, "--json").stdout) for rule in ("grid", "exact")]
    assert reports[1]["chosen"]["mean_steps"] <= reports[0]["chosen"]["mean_steps"]
    assert reports[1]["baseline_accuracy"] == reports[0]["baseline_accuracy"]


def test_json(network, data, final, label, method):
    report = json.loads(run(network, "--data", data, "--json").stdout)
    assert set(report) == {
        "calibration",
        "chosen",
        "front",
        "baseline_steps",
        "baseline_accuracy",
        "accuracy_at_step",
        "steps",
        "bound_steps",
        "bound_accuracy",
        "reliability_before",
        "reliability_after",
        "sweep",
    }
    assert report["sweep"] == []
    assert report["reliability_before"] == report["reliability_after"]
    assert set(report["reliability_after"]) == {"temperature", "nll", "ece", "bins"}
    assert sum(b["count"] for b in report["reliability_after"]["bins"]) == 64
    assert set(report["chosen"]) == {"threshold", "mean_steps", "accuracy"}
    assert report["baseline_accuracy"] == (final[method].argmax(axis=1) == label).mean()
    assert report["baseline_steps"] == STEPS if method == "qcfs" else report["baseline_steps"] < STEPS
    assert report["bound_accuracy"] >= report["baseline_accuracy"]
    assert report["bound_steps"] <= report["baseline_steps"]
    assert report["calibration"]["threshold"] == report["chosen"]["threshold"]
    accuracies = [point["accuracy"] for point in report["front"]]
    assert accuracies == sorted(set(accuracies))


def test_the_table(network, data):
    result = run(network, "--data", data)
    assert result.exit_code == 0, result.output
    assert "<- chosen" in result.stdout
    assert "baseline" in result.stdout
    assert "knows the label" in result.stdout
    assert "report accuracies on other images only" in " ".join(result.stdout.split())
    assert f"threshold {read_onnx(network)[1].calibration.threshold:.4g}, from 64 images" in (
        " ".join(result.stdout.split())
    )


@pytest.mark.parametrize("method", ["qcfs"], indirect=True)
def test_few_images_are_said(network, data, pixels, label, tmp_path: Path):
    text = "val.npz: 64 images say little about others: give 100 or more, or let --rule certified say what they can "
    result = run(network, "--data", data, "--json")
    assert result.stderr.startswith(text)
    assert len(result.stderr.splitlines()) == 1
    assert json.loads(result.stdout)["calibration"]["samples"] == 64
    assert "64 images" not in run(network, "--data", data, "--rule", "certified", "--max-drop", 50).stderr
    np.savez(tmp_path / "many.npz", image=np.resize(pixels, (100, *pixels.shape[1:])), label=np.resize(label, 100))
    assert run(network, "--data", tmp_path / "many.npz").stderr == ""


def test_max_drop_is_in_points(network, data, pixels, label):
    strict = json.loads(run(network, "--data", data, "--rule", "exact", "--json").stdout)
    loose = json.loads(run(network, "--data", data, "--rule", "exact", "--max-drop", 20, "--json").stdout)
    assert loose["chosen"]["mean_steps"] < strict["chosen"]["mean_steps"]
    assert loose["chosen"]["accuracy"] >= strict["baseline_accuracy"] - 0.2 - 1e-9
    assert loose["calibration"]["rule"] == "exact, max drop 0.2"
    assert replayed(network, pixels, label)[1] == loose["chosen"]["accuracy"]


def test_temperature_fit(network, data, final, label, method):
    alpha = read_onnx(network)[1].calibration.alpha
    result = run(network, "--data", data, "--temperature", "fit", "--json")
    assert result.exit_code == 0
    logits = final[method] / np.float32(alpha)
    expected = fit_temperature(logits, label)
    assert read_onnx(network)[1].calibration.temperature == expected != 1.0
    report = json.loads(result.stdout)
    before, after = report["reliability_before"], report["reliability_after"]
    assert (before["temperature"], after["temperature"]) == (1.0, expected)
    assert before["nll"] == negative_log_likelihood(logits, label, 1.0) > after["nll"]
    text = " ".join(run(network, "--data", data).stdout.split())
    assert f"Confidence after the last step: calibration error (ECE) {100 * before['ece']:.2f} %" in text
    assert f"; {100 * after['ece']:.2f} %, {after['nll']:.4f} at {expected:.4g}." in text


def test_temperature_and_alpha_by_hand(network, data, pixels, label):
    assert run(network, "--data", data, "--temperature", 0.5, "--alpha", 4).exit_code == 0
    calibration = read_onnx(network)[1].calibration
    assert (calibration.temperature, calibration.alpha, calibration.scale) == (0.5, 4.0, 2.0)
    expected = calibration.expected_mean_steps, calibration.expected_accuracy
    assert replayed(network, pixels, label) == expected
    # Kept the next time.
    assert run(network, "--data", data).exit_code == 0
    assert read_onnx(network)[1].calibration.scale == 2.0


@pytest.mark.parametrize("method", ["qcfs"], indirect=True)
def test_only_alpha_times_temperature_counts(network, data):
    chosen = []
    for alpha, temperature in ((4, 0.5), (0.5, 4)):
        result = run(network, "--data", data, "--alpha", alpha, "--temperature", temperature, "--json")
        chosen.append(json.loads(result.stdout)["chosen"])
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("method", ["qcfs"], indirect=True)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--alpha", "best"], "--alpha best: expected keep, method, sweep, a number, or several to sweep"),
        (["--metric", "best"], "'best' is not one of 'max-softmax', 'softmax-margin', 'logit-margin'"),
        (["--min-step", "13"], "min_step 13: expected 1 to 12, the steps that this network runs"),
        (["--min-step", "0"], "min_step 0: expected 1 to 12"),
        (["--max-steps", "13"], "mean steps 13: expected 1 to 12, the steps that this network runs"),
        (["--max-steps", "0.5"], "mean steps 0.5: expected 1 to 12"),
        (["--max-steps", "3", "--min-step", "4"], "no threshold takes 3 mean steps or fewer; the nearest takes 4"),
        (["--max-steps", "3", "--max-drop", "1"], "--max-drop 1 and --max-steps 3: choose one target."),
        (["--no-loss", "--max-drop", "1"], "--no-loss and --max-drop 1: choose one target."),
        (["--no-loss", "--max-steps", "3"], "--no-loss and --max-steps 3: choose one target."),
        (["--alpha", "sweep", "--temperature", "fit"], "a fitted temperature divides out every alpha"),
        (["--alpha", "sweep", "--metric", "patience"], "metric patience counts answers, which no alpha changes"),
        (
            ["--rule", "certified", "--max-drop", "1", "--temperature", "fit"],
            "a temperature fitted on the images that are to certify the threshold breaks the promise",
        ),
        (["--temperature", "warm"], "Error: --temperature warm: expected keep, fit or a number."),
        (["--temperature", "0"], "temperature 0: expected a positive number"),
        (["--temperature", "nan"], "temperature nan: expected a positive number"),
        (["--alpha", "-1"], "alpha -1: expected a positive number"),
        (["--alpha", "-1", "--temperature", "fit"], "alpha -1: expected a positive number"),
        (["--alpha", "inf"], "alpha inf: expected a positive number"),
        (["--max-drop", "-1"], "--max-drop -1: expected 0 or more points (0.5 is half a point)"),
        (["--threads", "0"], "threads 0: expected at least 1"),
        (["--rule", "best"], "'best' is not one of 'safe', 'grid', 'exact'"),
    ],
)
def test_options_that_make_no_sense_change_nothing(network, data, options: list[str], message: str):
    content = network.read_bytes()
    result = run(network, "--data", data, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert network.read_bytes() == content


@pytest.mark.parametrize("method", ["qcfs"], indirect=True)
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((3, 12, 12), np.uint8)}, "has no label that the network knows (its classes: zero, one,"),
        ({"image": np.zeros((1, 12, 12), np.uint8), "label": np.zeros(1, int)}, "1 images; a threshold needs many"),
        ({"image": np.zeros((2, 12, 12), np.uint8), "label": np.array([0, 4])}, "labels lie in 0..4, expected 0..3"),
        ({"image": np.zeros((2, 12, 12), np.uint8), "label": np.array([0])}, "2 images but labels of shape [1]"),
        (
            {"image": np.zeros((2, 10, 12), np.uint8), "label": np.array([0, 1])},
            "expected uint8 pixels 0..255 of shape",
        ),
    ],
)
def test_data_that_cannot_calibrate_changes_nothing(network, tmp_path: Path, arrays, message: str):
    content = network.read_bytes()
    np.savez(tmp_path / "bad.npz", **arrays)
    result = run(network, "--data", tmp_path / "bad.npz")
    assert result.exit_code == 2
    assert message in result.stderr
    assert network.read_bytes() == content


@pytest.mark.parametrize("method", ["qcfs"], indirect=True)
def test_missing_files(network, data, tmp_path: Path):
    assert "no such file. Make one with `dc-export" in run(tmp_path / "other.onnx", "--data", data).stderr
    assert "no such file or folder" in run(network, "--data", tmp_path / "other").stderr


@pytest.mark.parametrize("batch", [3, 64])
def test_a_trace_does_not_depend_on_the_batch(network, pixels, label, final, method, batch: int):
    with open_engine(network, batch=batch) as engine:
        trace = trace_from_engine(engine, pixels[:16], label[:16])
    np.testing.assert_array_equal(trace.logits[:, -1], final[method][:16])
    assert (trace.last_step == STEPS).all() if method == "qcfs" else (trace.last_step < STEPS).any()


@pytest.mark.parametrize("method", ["qcfs"], indirect=True)
def test_calibrate_is_a_function_of_the_trace(network, pixels, label):
    with open_engine(network, batch=64) as engine:
        trace = trace_from_engine(engine, pixels, label)
    current = Calibration(alpha=12.0, min_step=6)
    report = calibrate(trace, current, Goal("exact"), "x")
    assert report.chosen.mean_steps >= 6
    assert report.chosen in report.front
    assert report.calibration.min_step == 6


@pytest.mark.parametrize("method", ["qcfs"], indirect=True)
def test_a_write_that_fails_leaves_the_old_calibration(network, pixels, label, monkeypatch: pytest.MonkeyPatch):
    content = network.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_calibration", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate_file(network, pixels, label, data_name="x")
    assert network.read_bytes() == content


@pytest.mark.parametrize("method", ["qcfs"], indirect=True)
def test_images_of_one_class_cannot_calibrate(network, pixels, tmp_path):
    np.savez(tmp_path / "one.npz", image=pixels, label=np.ones(64, np.int64))
    content = network.read_bytes()
    result = run(network, "--data", tmp_path / "one.npz")
    assert result.exit_code == 2
    assert "one.npz: all 64 images are of one class; a threshold needs images of all classes" in result.stderr
    assert network.read_bytes() == content


@pytest.mark.parametrize("method", ["qcfs"], indirect=True)
def test_a_temperature_that_does_not_exist_is_not_invented(network, pixels, tmp_path):
    """Labels that are the network's own answers: ever sharper is ever better."""
    with open_engine(network, batch=64) as engine:
        label = infer(engine, pixels, policy_from_manifest(engine.manifest, threshold=1.0)).label
    np.savez(tmp_path / "own.npz", image=pixels, label=label)
    result = run(network, "--data", tmp_path / "own.npz", "--temperature", "fit")
    assert result.exit_code == 2
    assert "own.npz: no temperature between 0.05 and 20 fits best at alpha" in result.stderr
    with pytest.raises(DynamicConfidenceError, match=r"max_drop -0\.1: expected a fraction of 0 or more"):
        calibrate_file(network, pixels, label, data_name="own", max_drop=-0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--delta", 0.2), "--delta 0.2 is for --rule certified. Leave it out."),
        (("--rule", "certified", "--max-steps", 3), "--rule certified needs --max-drop above 0"),
        (("--rule", "certified", "--no-loss"), "--rule certified needs --max-drop above 0"),
        (("--rule", "certified"), "--rule certified needs --max-drop above 0, in points: --max-drop 1 (one point)."),
        (
            ("--rule", "certified", "--max-drop", 0.5),
            "its 64 images certify no threshold for a drop of 0.5 points with probability 0.9. Nothing was changed. "
            "Give more images (even where no answer changes it takes 638), or allow more: --max-drop 5 or above.",
        ),
    ],
)
def test_a_promise_that_cannot_be_made(network: Path, data: Path, options: tuple[object, ...], message: str):
    before = network.read_bytes()
    result = run(network, "--data", data, *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert network.read_bytes() == before


def test_a_promise_is_said(network: Path, data: Path):
    result = run(network, "--data", data, "--rule", "certified", "--max-drop", 50)
    assert result.exit_code == 0, result.output
    assert "With probability 0.9 over the choice of these images, accuracy on others" in result.stdout
    assert read_onnx(network)[1].calibration.rule == "certified, max drop 0.5, delta 0.1"


def test_a_promise_on_images_that_something_was_chosen_on_is_doubted(network: Path, data: Path):
    certified = ("--rule", "certified", "--max-drop", 50)
    assert run(network, "--data", data, *certified).stderr == ""
    assert run(network, "--data", data, *certified).stderr == ""
    assert run(network, "--data", data, "--alpha", "sweep").exit_code == 0
    said = run(network, "--data", data, *certified).stderr
    assert (
        "val.npz: alpha, temperature or metric may have been chosen on these images before (safe, max drop 0, " in said
    )


@pytest.mark.parametrize("metric", ["softmax-margin", "logit-margin", "entropy", "patience"])
def test_the_network_exits_by_the_metric_it_was_calibrated_with(network, method, data, pixels, label, metric: str):
    result = run(network, "--data", data, "--metric", metric, "--min-step", 2, "--max-drop", 10, "--rule", "exact")
    assert result.exit_code == 0, result.output
    assert f"metric {metric}, alpha" in " ".join(result.stdout.split())
    calibration = read_onnx(network)[1].calibration
    assert (calibration.metric, calibration.min_step) == (metric, 2)
    expected = calibration.expected_mean_steps, calibration.expected_accuracy
    assert replayed(network, pixels, label) == expected
    assert expected[0] < STEPS
    # Kept the next time.
    assert run(network, "--data", data, "--rule", "exact", "--max-drop", 10).exit_code == 0
    assert read_onnx(network)[1].calibration == calibration


def test_max_steps(network, data, pixels, label):
    report = json.loads(run(network, "--data", data, "--max-steps", 5.5, "--json").stdout)
    assert report["calibration"]["rule"] == "safe, mean steps 5.5"
    assert report["chosen"]["mean_steps"] <= 5.5
    assert replayed(network, pixels, label) == (report["chosen"]["mean_steps"], report["chosen"]["accuracy"])


def test_no_loss_is_the_default(network, data):
    reports = [json.loads(run(network, "--data", data, *options, "--json").stdout) for options in ((), ("--no-loss",))]
    assert reports[0] == reports[1]


def test_an_alpha_sweep(network, method, data, pixels, label):
    own = 12.0 if method == "qcfs" else 3.0
    report = json.loads(run(network, "--data", data, "--alpha", "sweep", "--json").stdout)
    assert [point["alpha"] for point in report["sweep"]] == [own / 4, own / 2, own, 2 * own, 4 * own]
    fewest = min(report["sweep"], key=lambda point: (point["mean_steps"], -point["accuracy"]))
    assert report["calibration"]["alpha"] == fewest["alpha"]
    assert report["chosen"] == {key: fewest[key] for key in ("threshold", "mean_steps", "accuracy")}
    assert replayed(network, pixels, label) == (fewest["mean_steps"], fewest["accuracy"])
    result = run(network, "--data", data, "--alpha", "3,6")
    text = " ".join(result.stdout.split())
    assert "Each alpha under the rule" in text
    assert "Threshold and alpha are fitted to this data: report accuracies on other images only." in text
    assert read_onnx(network)[1].calibration.alpha in (3.0, 6.0)
    assert run(network, "--data", data, "--alpha", "method").exit_code == 0
    assert read_onnx(network)[1].calibration.alpha == own


@pytest.mark.parametrize("method", ["qcfs"], indirect=True)
def test_a_trace_made_before_calibrates_the_same(network, pixels, label, data, tmp_path: Path):
    with open_engine(network, batch=64) as engine:
        trace = trace_from_engine(engine, pixels, label)
    report = calibrate_network(network, trace, Settings(Goal("exact"), alphas=(6.0,)), "val.npz")
    calibration = read_onnx(network)[1].calibration
    assert calibration == report.calibration
    assert run(network, "--data", data, "--rule", "exact", "--alpha", 6).exit_code == 0
    assert read_onnx(network)[1].calibration == calibration
    short = type(trace)(trace.logits[:, :5], trace.label, np.full(64, 5))
    message = r"val\.npz: a trace of 5 steps and 4 classes, but .* has 12 and 4: it is another network's.*dc-eval"
    with pytest.raises(DynamicConfidenceError, match=message):
        calibrate_network(network, short, Settings(), "val.npz")


@pytest.mark.parametrize("options", [(), ("--rule", "exact", "--temperature", "fit"), ("--alpha", "sweep")])
def test_a_trace_of_dc_eval_calibrates_as_its_images_do(network, data, tmp_path: Path, monkeypatch, options):
    write_trace(network, data, tmp_path / "trace", shard_size=7)
    fresh = network.read_bytes()
    report = run(network, "--data", data, *options, "--json").stdout
    written = network.read_bytes()
    assert written != fresh
    network.write_bytes(fresh)
    monkeypatch.setattr(module, "open_engine", lambda *_, **__: pytest.fail("the network was run"))
    result = run(network, "--trace", tmp_path / "trace", *options, "--json")
    assert result.exit_code == 0, result.output
    assert result.stdout == report
    assert network.read_bytes() == written
    assert read_onnx(network)[1].calibration.data == "val.npz"
    text = "".join(run(network, "--trace", tmp_path / "trace").stdout.split())
    assert f"from64imagesof{tmp_path}/trace." in text


@pytest.mark.parametrize("method", ["qcfs"], indirect=True)
def test_traces_that_cannot_calibrate_change_nothing(network, data, exported, tmp_path: Path):
    other = exported(method="qffs")
    write_trace(other, data, tmp_path / "other")
    write_trace(network, data, tmp_path / "half", shard_size=7)
    (tmp_path / "half" / "shard-00003.npz").unlink()
    content = network.read_bytes()
    for folder, message in (
        ("other", f"holds a trace of {other.stem} (graph "),
        ("half", "1 of 10 shards are not there yet (3). Run `dc-eval` again as before"),
        ("none", "holds no trace (trace.json: No such file or directory). Make one: `dc-eval net.onnx --data DIR -o"),
    ):
        result = run(network, "--trace", tmp_path / folder)
        assert result.exit_code == 2
        assert message in result.stderr
    assert network.read_bytes() == content


@pytest.mark.parametrize("method", ["qcfs"], indirect=True)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --data (labelled images to run) or --trace (a folder that dc-eval wrote), for example --data data/"),
        (("--data", "x", "--trace", "y"), "give --data (labelled images to run) or --trace (a folder that dc-eval wr"),
        (
            ("--trace", "y", "--threads", 1, "--no-cuda-graph"),
            "--trace runs nothing: leave the options of the engine out (threads, cuda_graphs).",
        ),
    ],
)
def test_answers_have_one_source(network, options: tuple[object, ...], message: str):
    result = run(network, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert ("not both." in result.stderr) == ("--data" in options)
