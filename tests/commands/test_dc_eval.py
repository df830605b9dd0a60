"""dc-eval: the summary is that of the trace it leaves behind, and says what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from dynamic_confidence.calib.calibrate import calibrate_file
from dynamic_confidence.calib.dc_eval import main
from dynamic_confidence.calib.evaluation import Evaluation
from dynamic_confidence.runtime.engine import open_engine
from dynamic_confidence.runtime.exit_policy import policy_from_manifest
from dynamic_confidence.runtime.stepping import infer

SAMPLES, STEPS = 40, 12


def run(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], env=env)


@pytest.fixture
def label() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 4, SAMPLES)


@pytest.fixture
def data(pixels: np.ndarray, label: np.ndarray, tmp_path: Path) -> Path:
    np.savez(tmp_path / "test.npz", image=pixels[:SAMPLES], label=label)
    return tmp_path / "test.npz"


@pytest.fixture(params=["qcfs", "qffs"])
def network(exported: Callable[..., Path], request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(exported(method=request.param, steps_per_call=4, count_spikes=True).read_bytes())
    return path


def test_the_summary_is_what_the_network_does(network: Path, data: Path, pixels, label, tmp_path: Path):
    calibrate_file(network, pixels, np.resize(label, 64), data_name="x", max_drop=0.1)
    result = run(network, "--data", data, "-o", tmp_path / "trace", "--json", "--shard-size", 7)
    assert result.exit_code == 0, result.output
    found = msgspec.json.decode(result.stdout, type=Evaluation)
    with open_engine(network, batch=SAMPLES) as engine:
        policy = policy_from_manifest(engine.manifest)
        answers = infer(engine, pixels[:SAMPLES], policy)
        full = infer(engine, pixels[:SAMPLES], policy_from_manifest(engine.manifest, threshold=1.0))
    assert (found.samples, found.steps) == (SAMPLES, STEPS)
    assert found.mean_steps == answers.steps.mean() < STEPS
    assert found.accuracy == (answers.label == label).mean()
    assert found.accuracy_at_step[-1] == (full.label == label).mean()
    assert found.fixed_steps == full.steps.mean()
    assert found.exit_histogram == (np.bincount(answers.steps, minlength=STEPS + 1)[1:] / SAMPLES).tolist()
    assert found.calibration.threshold == policy.threshold
    assert found.net_spikes is not None
    assert found.gross_spikes is not None
    assert 0 < found.net_spikes.at_exit < found.gross_spikes.at_step[-1]
    assert (found.net_spikes == found.gross_spikes) == (found.method == "qcfs")
    assert json.loads((tmp_path / "trace" / "summary.json").read_text()) == json.loads(result.stdout)


def test_a_new_calibration_needs_no_new_trace(network: Path, data: Path, pixels, label, tmp_path: Path):
    folder = tmp_path / "trace"
    before = json.loads(run(network, "--data", data, "-o", folder, "--json").stdout)
    assert before["calibration"]["data"] is None
    files = {file.name: file.read_bytes() for file in folder.glob("*.npz")}
    calibrate_file(network, pixels, np.resize(label, 64), data_name="x", max_drop=0.1)
    after = json.loads(run(network, "--data", data, "-o", folder, "--json").stdout)
    assert after["mean_steps"] < before["mean_steps"]
    assert after["accuracy_at_step"] == before["accuracy_at_step"]
    assert {file.name: file.read_bytes() for file in folder.glob("*.npz")} == files


def test_the_table(network: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    result = run(network, "--data", data, "-o", tmp_path / "trace", "--rows", 3)
    assert result.exit_code == 0, result.output
    assert [line.split()[1] for line in result.stdout.splitlines() if line.startswith("│ ")][:3] == ["1", "7", "12"]
    assert "it is not calibrated, and nothing stops early for confidence" in result.stdout
    assert "spikes per neuron, net: " in result.stdout
    assert "layer1.0.activation1" in result.stdout
    assert "trace: 1 shards, 1 of them made now, and summary.json" in result.stdout


def test_without_counts_it_says_so(exported: Callable[..., Path], data: Path, tmp_path: Path):
    bare, signed = (run(exported(method=m), "--data", data, "-o", tmp_path / m) for m in ("qcfs", "qffs"))
    assert "spikes per neuron, net: not counted (export with --count-spikes)" in bare.stdout
    assert "Spikes per neuron and inference" not in bare.stdout
    assert "spikes per neuron, net: not counted (export with --count-spikes)" in signed.stdout
    assert "spikes per neuron, gross (of either sign): 0." in signed.stdout
    assert "gross, exit" in signed.stdout


def test_ranks_from_options_and_from_torchrun(network: Path, data: Path, tmp_path: Path):
    folder, options = tmp_path / "two", (network, "--data", data, "--shard-size", 7)
    first = run(*options, "-o", folder, "--rank", 1, "--world-size", 2)
    assert first.exit_code == 0, first.output
    assert "rank 1 of 2 is done: it made 3 shards; 3 of 6 are still missing in " in first.stdout
    assert not (folder / "summary.json").exists()
    status = run(*options, "-o", folder, "--rank", 1, "--world-size", 2, "--json").stdout
    assert json.loads(status) == {"shards": 6, "made": [], "missing": [0, 2, 4]}
    last = run(*options, "-o", folder, "--json", env={"RANK": "0", "WORLD_SIZE": "2"})
    one = run(*options, "-o", tmp_path / "one", "--json")
    assert last.stdout == one.stdout
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == {
        f.name: f.read_bytes() for f in (tmp_path / "one").iterdir()
    }


def test_that_it_goes_on_is_said(network: Path, data: Path, tmp_path: Path):
    options = (network, "--data", data, "-o", tmp_path / "trace", "--shard-size", 7, "--json")
    fresh = run(*options)
    assert "going on" not in fresh.stderr
    for shard in (1, 4, 5):
        (tmp_path / "trace" / f"shard-0000{shard}.npz").unlink()
    part = run(*options, "--rank", 1, "--world-size", 2)
    assert f"{tmp_path / 'trace'}: 1 of 3 shards of rank 1 are there; going on.\n" in part.stderr
    again = run(*options)
    assert f"{tmp_path / 'trace'}: 5 of 6 shards are there; going on.\n" in again.stderr
    assert again.stdout == fresh.stdout
    assert "going on" not in run(*options).stderr


def test_images_that_the_threshold_was_fitted_to_are_said(network: Path, data: Path, pixels, label, tmp_path: Path):
    said = []
    for name in ("test.npz", "validation.npz"):
        calibrate_file(network, pixels, np.resize(label, 64), data_name=name)
        said.append(" ".join(run(network, "--data", data, "-o", tmp_path / "trace").stdout.split()))
    text = "its threshold was fitted to images of that name, test.npz: if they are these, report accuracies on others"
    assert text in said[0]
    assert "its threshold was fitted" not in said[1]


def test_a_broken_shard_is_said(network: Path, data: Path, tmp_path: Path):
    folder = tmp_path / "trace"
    before = run(network, "--data", data, "-o", folder, "--json").stdout
    path = folder / "shard-00000.npz"
    path.write_bytes(path.read_bytes()[:-100])
    again = run(network, "--data", data, "-o", folder, "--json")
    assert again.stdout == before
    assert "shard-00000.npz: not a whole shard of this trace" in again.stderr
    assert "made again" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rank", 1), "rank 1 of 1 processes: expected 0 to 0. Give both --rank and --world-size."),
        (("--data", "nowhere"), "nowhere: no such data set"),
        (("--batch", 0), "0 is not in the range x>=1"),
    ],
)
def test_bad_usage(network: Path, data: Path, tmp_path: Path, arguments: tuple[object, ...], message: str):
    result = run(network, "--data", data, "-o", tmp_path / "trace", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
