"""The study of precisions: every number is that of the answers, what is done is kept, and the page is the record's."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT, random_checkpoint

from dynamic_confidence.benchmarks import precisions
from dynamic_confidence.benchmarks.model_and_data import spread
from dynamic_confidence.benchmarks.precisions_page import page
from dynamic_confidence.models.checkpoint import Checkpoint, save_checkpoint
from dynamic_confidence.runtime.engine import open_engine
from dynamic_confidence.runtime.stepping import run_to_the_end
from dynamic_confidence.toolchain.export import ExportOptions, ann_logits, export

LONGEST = 8
RECORD = json.loads((ROOT / "benchmarks" / "results" / "precisions.json").read_text(encoding="utf-8"))
SETTINGS = RECORD["results"]["settings"]


def run(folder: Path, *more: object) -> Result:
    words = [f"{folder / 'model.pt'}={folder / 'blobs'}", "-T", LONGEST, "-o", folder / "record.json", *more]
    return CliRunner().invoke(precisions.main, [str(word) for word in words])


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    return random_checkpoint()


@pytest.fixture(scope="module")
def images(model: Checkpoint) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Blobs, sorted by class as sets may be, with the quantised network's answers as labels, four fifths of them."""
    generator = np.random.default_rng(2)
    coarse = np.kron(generator.uniform(0, 255, (240, 1, 4, 4)), np.ones((1, 1, 3, 3)))
    pixels = np.clip(coarse + generator.normal(0, 15, coarse.shape), 0, 255).astype(np.uint8)
    label = ann_logits(model.network(), model.preprocessing, pixels).argmax(1)
    label[::5] = (label[::5] + 1) % 4
    parts = {}
    for name, rows in (("validation", slice(0, 100)), ("test", slice(100, 240))):
        order = np.argsort(label[rows], kind="stable")
        parts[name] = pixels[rows][order], label[rows][order]
    return parts


@pytest.fixture(scope="module")
def made(model: Checkpoint, images, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder with the record, and what the command printed."""
    folder = tmp_path_factory.mktemp("precisions")
    save_checkpoint(folder / "model.pt", model)
    (folder / "blobs").mkdir()
    for part, (pixels, label) in images.items():
        np.savez(folder / "blobs" / f"{part}.npz", image=pixels, label=label, class_names=np.array(model.class_names))
    result = run(folder, "--calibration-images", 60)
    assert result.exit_code == 0, result.output
    return folder, result.stdout


def settings_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "record.json").read_text())["results"]["settings"]


def logits_of(model: Checkpoint, pixels: np.ndarray, method: str, steps: int | None, precision: Any, path: Path):
    path.write_bytes(export(model, "0" * 64, ExportOptions(method, steps, precision=precision)).content)
    with open_engine(path, batch=len(pixels)) as engine:
        return run_to_the_end(engine, pixels, 1.0).logits


def test_the_record_s_numbers_are_those_of_the_answers(made, model: Checkpoint, images, tmp_path: Path):
    folder, printed = made
    found = {setting["method"]: setting for setting in settings_of(folder)}
    assert list(found) == ["qcfs", "qffs"]
    (seen, seen_label), (pixels, label) = spread(images["validation"], 60), images["test"]
    quantised = ann_logits(model.network(), model.preprocessing, pixels).argmax(1) == label
    for method, setting in found.items():
        longest = LONGEST if method == "qcfs" else None
        first = logits_of(model, seen, method, longest, "fp32", tmp_path / "net.onnx")
        accuracy = (first.argmax(2) == seen_label[:, None]).mean(0)
        steps = next(t for t, value in enumerate(accuracy, start=1) if value >= accuracy.max() - 0.001)
        assert setting["steps"] == steps
        assert (setting["calibration_images"], setting["test_images"]) == (60, 140)
        assert setting["ann_accuracy"] == quantised.mean()
        answers = {
            precision: logits_of(model, pixels, method, steps, precision, tmp_path / "net.onnx").argmax(2)
            for precision in ("fp32", "int8")
        }
        right = {precision: (labels == label[:, None]).mean(0) for precision, labels in answers.items()}
        for precision, entry in setting["precisions"].items():
            np.testing.assert_allclose(entry["accuracy_at_step"], right[precision], atol=1e-12)
            difference, half = entry["difference_at_T"]
            assert difference == pytest.approx(right[precision][-1] - right["fp32"][-1])
            assert entry["equal_labels_at_T"] == (answers[precision][:, -1] == answers["fp32"][:, -1]).mean()
            exits = entry["accuracy_with_exit"] - setting["precisions"]["fp32"]["accuracy_with_exit"]
            assert entry["difference_with_exit"][0] == pytest.approx(exits)
            assert 0 < half < 0.2
            assert 1 <= entry["mean_steps"] <= steps
        assert f"| {100 * right['int8'][-1]:.2f} |" in printed
    assert found["qcfs"]["precisions"]["int8"]["equal_labels_at_T"] < 1 or found["qffs"]["steps"] > 1


def test_what_is_done_is_kept(made, monkeypatch: pytest.MonkeyPatch):
    folder, printed = made
    before = settings_of(folder)
    measured, calls = precisions.measured, []

    def counted(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments[1]["method"])
        return measured(*arguments)

    monkeypatch.setattr(precisions, "measured", counted)
    again = run(folder, "--calibration-images", 60)
    assert (again.stdout, calls, settings_of(folder)) == (printed, [], before)
    assert run(folder, "--calibration-images", 60, "--precision", "fp16").exit_code == 0
    assert calls == ["qcfs", "qffs"]
    assert all(set(setting["precisions"]) == {"fp32", "fp16"} for setting in settings_of(folder))
    assert run(folder, "--calibration-images", 60, "--limit", 70).exit_code == 0
    assert [setting["test_images"] for setting in settings_of(folder)] == [70, 70]


def test_a_network_without_data_is_refused(tmp_path: Path):
    result = CliRunner().invoke(precisions.main, ["model.pt", "-o", str(tmp_path / "record.json")])
    assert result.exit_code == 2
    assert "model.pt: expected MODEL=DATA, for example model.pt=cifar10" in result.stderr


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.none() | st.integers(1, 80))
def test_images_are_taken_evenly(labels: list[int], count: int | None):
    label = np.sort(np.array(labels))
    rows, chosen = spread((np.arange(len(label)), label), count)
    assert len(rows) == min(count or len(label), len(label))
    assert rows[0] == 0
    assert np.array_equal(chosen, label[rows])
    gaps = np.diff(np.append(rows, len(label)))
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    ("difference", "half", "worse", "unsure"),
    [
        (-0.02, 0.005, True, False),
        (-0.02, 0.015, False, True),
        (-0.002, 0.005, False, False),
        (0.03, 0.05, False, True),
    ],
)
def test_the_page_says_where_int8_is_worse(difference: float, half: float, worse: bool, unsure: bool):
    setting = copy.deepcopy(SETTINGS[0])
    setting["precisions"] = {name: setting["precisions"][name] for name in ("fp32", "int8")}
    setting["precisions"]["int8"]["difference_at_T"] = [difference, half]
    name = f"{setting['network']} {setting['method']}"
    line = next(line for line in page([setting]).splitlines() if line.startswith("- at T: "))
    assert line == (
        f"- at T: {100 * difference:+.2f} ± {100 * half:.2f} points on average over the 1 rows, taken as independent. "
        f"Worse by more than 1 point, the whole interval: {name if worse else 'none'}. "
        f"Not excluded, since the interval begins there: {name if unsure else 'none'}."
    )


def test_the_page_is_the_record_s():
    text = (ROOT / "docs" / "precisions.md").read_text(encoding="utf-8")
    assert text.startswith(f"{page(SETTINGS)}\n")
    for setting in SETTINGS:
        assert f"| {setting['network']} | {setting['method']} |" in text
        assert f"`{setting['network']}`" in text  # where it comes from


@pytest.mark.parametrize("network", ["resnet20_cifar10", "resnet8_mnist"])
def test_the_networks_that_ship_are_in_it(network: str):
    found = [setting for setting in SETTINGS if setting["network"] == network]
    assert [setting["method"] for setting in found] == ["qcfs", "qffs"]
    assert all(setting["test_images"] == 5000 for setting in found)
