"""The tables of a small trained network: every number is that of its traces, and all of it can be made again."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dynamic_confidence.benchmarks.tables.__main__ import main
from dynamic_confidence.benchmarks.tables.markdown import page
from dynamic_confidence.calib import write_trace
from dynamic_confidence.models.checkpoint import load_checkpoint, save_checkpoint
from dynamic_confidence.toolchain.data import load_image_set
from dynamic_confidence.toolchain.recipe import TrainingOptions
from dynamic_confidence.toolchain.starting_network import untrained
from dynamic_confidence.toolchain.train import accuracy_of, train

METHODS = ("qcfs", "qffs")
LEVELS, STEPS = 3, 16
PICTURES = ("figure_1.png", "figure_2.png", "figure_3.png", "figure_4.png", "reliability.png")


@dataclass(frozen=True)
class Made:
    """A folder with model.pt, the images, and what the command wrote."""

    folder: Path
    output: Path
    text: str
    settings: dict[str, dict[str, Any]]
    """By method, from the record."""

    def command(self, **changes: object) -> list[str]:
        arguments = {"-T": STEPS, "-o": self.output, **changes}
        words = [f"{self.folder / 'model.pt'}={self.folder / 'digits'}"]
        return [*words, *(str(word) for pair in arguments.items() for word in pair)]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Made:
    folder = tmp_path_factory.mktemp("tables")
    for part, name in (("train", "train"), ("calibration", "validation"), ("test", "test")):
        shutil.copytree(digits / part, folder / "digits" / name)
    train_set = load_image_set(folder / "digits" / "train", size=8)
    start = untrained("resnet8", {"width": 8}, train_set.preprocessing, train_set.class_names, seed=0)
    validation = load_image_set(folder / "digits" / "validation", train_set.preprocessing, train_set.class_names)
    options = TrainingOptions(epochs=4, batch=32)
    save_checkpoint(folder / "model.pt", train(start, train_set, validation, options, folder / "state"))
    made = Made(folder, folder / "tables", "", {})
    result = run(*made.command())
    assert result.exit_code == 0, result.output
    record = json.loads((made.output / "record.json").read_text())
    assert record["study"] == "tables"
    settings = {setting["method"]: setting for setting in record["results"]["settings"]}
    return Made(folder, made.output, result.stdout, settings)


@dataclass(frozen=True)
class Answers:
    """A trace, read from its shards without the product's code."""

    logits: np.ndarray
    label: np.ndarray
    last_step: np.ndarray
    net: np.ndarray
    gross: np.ndarray
    neurons: int

    def right(self, image: int, step: int) -> bool:
        return int(self.logits[image, step - 1].argmax()) == self.label[image]

    def sure(self, image: int, step: int, scale: float) -> float:
        d = self.logits[image, step - 1].astype(np.float64) / scale
        return float(1 / np.exp(d - d.max()).sum())

    def exit(self, image: int, scale: float, threshold: float, steps: int) -> int:
        last = min(int(self.last_step[image]), steps)
        for step in range(1, last):
            if threshold < 1 and self.sure(image, step, scale) > threshold:
                return step
        return last

    def stands_from(self, image: int, steps: int) -> int:
        answers = self.logits[image, :steps].argmax(axis=1).tolist()
        return next(step for step in range(1, steps + 1) if set(answers[step - 1 :]) == {answers[-1]})

    def accuracy(self, step: int) -> float:
        return sum(self.right(image, step) for image in range(len(self.label))) / len(self.label)


def answers(made: Made, method: str, role: str) -> Answers:
    folder = made.output / "traces" / f"model_{method}_{role}"
    shards = [np.load(path) for path in sorted(folder.glob("shard-*.npz"))]
    arrays = {name: np.concatenate([s[name] for s in shards]) for name in ("logits", "label", "last_step", "spikes")}
    net = np.concatenate([shard["net_spikes" if method == "qffs" else "spikes"] for shard in shards])
    neurons = sum(layer["neurons"] for layer in json.loads((folder / "trace.json").read_text())["layers"])
    return Answers(arrays["logits"], arrays["label"], arrays["last_step"], net, arrays["spikes"], neurons)


def test_everything_is_written(made: Made):
    assert set(made.settings) == set(METHODS)
    assert sorted(path.name for path in made.output.iterdir()) == sorted(
        [*PICTURES, "record.json", "tables.md", "traces"]
    )
    assert (made.output / "tables.md").read_text() == made.text
    for name in PICTURES:
        with Image.open(made.output / name) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        assert pixels.shape[1] > 1.5 * pixels.shape[0]  # a panel for each method
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
        for panel in np.array_split(pixels, len(METHODS), axis=1):
            assert 0.005 < (panel < 250).any(axis=2).mean() < 0.7, name


@pytest.mark.parametrize("method", METHODS)
def test_a_row_is_what_the_traces_say(made: Made, method: str):
    setting, seen, unseen = made.settings[method], answers(made, method, "calibration"), answers(made, method, "test")
    checkpoint = load_checkpoint(made.folder / "model.pt")
    quantised = {
        part: accuracy_of(
            checkpoint.network(),
            load_image_set(made.folder / "digits" / part, checkpoint.preprocessing, checkpoint.class_names),
        )
        for part in ("validation", "test")
    }
    assert setting["ann_accuracy"] == quantised["test"] > 0.6
    assert setting["calibration"] == {"data": "validation", "samples": len(seen.label)}
    assert setting["test"] == {"data": "test", "samples": len(unseen.label)}
    curve = [seen.accuracy(step) for step in range(1, setting["traced_steps"] + 1)]
    close = [step for step, accuracy in enumerate(curve, 1) if accuracy >= max(curve) - 0.001]
    reached = [step for step, accuracy in enumerate(curve, 1) if accuracy >= quantised["validation"]]
    for row, steps in ((setting["table_1"], close[:1]), (setting["table_s1"], reached[:1])):
        if not steps:
            assert row is None
            continue
        assert row["steps"] == steps[0]
        stands = [unseen.stands_from(image, steps[0]) for image in range(len(unseen.label))]
        assert row["answers_stand_from"] == pytest.approx(np.mean(stands))
        forced = row["saving_as_paper"]["evaluation"]["calibration"]
        assert forced["expected_mean_steps"] <= max(1.0, 0.59 * steps[0])
        for found in (*row["rules"].values(), row["saving_as_paper"]):
            assert_row(unseen, found, steps[0], alpha=steps[0] if method == "qcfs" else LEVELS)


def assert_row(trace: Answers, found: dict[str, Any], steps: int, alpha: float) -> None:
    evaluation, images = found["evaluation"], range(len(trace.label))
    calibration = evaluation["calibration"]
    assert calibration["alpha"] == alpha
    exits = [trace.exit(i, alpha * calibration["temperature"], calibration["threshold"], steps) for i in images]
    right = [trace.right(i, exits[i]) for i in images]
    at_end = [trace.right(i, steps) for i in images]
    assert evaluation["steps"] == steps
    assert evaluation["accuracy_at_step"] == pytest.approx([trace.accuracy(t) for t in range(1, steps + 1)])
    assert evaluation["accuracy"] == pytest.approx(np.mean(right))
    assert evaluation["mean_steps"] == pytest.approx(np.mean(exits))
    assert evaluation["saved"] == pytest.approx(1 - np.mean(exits) / steps)
    assert found["drop"] == pytest.approx(np.mean(at_end) - np.mean(right))
    lost = np.subtract(at_end, right, dtype=np.float64)
    more = np.concatenate([lost, [1, 0, 0, -1]])  # half of each: Agresti and Min
    weights = np.array([1.0] * len(lost) + [0.5] * 4)
    variance = np.average(more**2, weights=weights) - np.average(more, weights=weights) ** 2
    assert found["drop_95"] == pytest.approx(1.96 * np.sqrt(variance / weights.sum()))
    assert found["drop_95"] > 0
    for name, counts in (("net_spikes", trace.net), ("gross_spikes", trace.gross)):
        per_neuron = counts[:, :steps].sum(axis=2) / trace.neurons
        assert evaluation[name]["at_step"][-1] == pytest.approx(per_neuron[:, steps - 1].mean())
        assert evaluation[name]["at_exit"] == pytest.approx(np.mean([per_neuron[i, exits[i] - 1] for i in images]))


@pytest.mark.parametrize("method", METHODS)
def test_the_curves_are_those_of_the_traces(made: Made, method: str):
    setting, seen, unseen = made.settings[method], answers(made, method, "calibration"), answers(made, method, "test")
    steps = setting["table_1"]["steps"]
    scale = setting["temperature"] * (steps if method == "qcfs" else LEVELS)
    assert [curve["threshold"] for curve in setting["threshold_curves"]] == [t / 10 for t in range(11)]
    for curve in setting["threshold_curves"]:
        exits = [seen.exit(i, scale, curve["threshold"], steps) for i in range(len(seen.label))]
        for cap in range(1, steps + 1):
            stops = np.minimum(exits, cap)
            assert curve["mean_steps"][cap - 1] == pytest.approx(stops.mean())
            assert curve["accuracy"][cap - 1] == pytest.approx(np.mean([seen.right(i, s) for i, s in enumerate(stops)]))
    for when, divisor in (("before", setting["temperature"]), ("after", scale)):
        for step, mean in enumerate(setting["mean_confidence"][when], 1):
            sure = [unseen.sure(i, step, divisor) for i in range(len(unseen.label))]
            assert mean == pytest.approx(np.mean(sure), rel=1e-5)


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every Markdown table."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in block] for block in blocks]


def test_the_tables_show_the_record_and_the_paper(made: Made):
    accuracy, supplement, spikes, rules, published = tables(made.text)
    for table in (accuracy, supplement, spikes, rules, published):
        assert {len(row) for row in table} == {len(table[0])}
    for row, method in zip(accuracy[2:], METHODS, strict=True):
        found = made.settings[method]["table_1"]["rules"]["safe"]["evaluation"]
        assert row[:4] == [
            f"model_{method}",
            method,
            f"{100 * made.settings[method]['ann_accuracy']:.2f}",
            str(found["steps"]),
        ]
        assert row[5:8] == [
            f"{100 * found['accuracy']:.2f}",
            f"{found['mean_steps']:.2f}",
            f"{100 * found['saved']:.1f} %",
        ]
    assert [row[8:] for row in accuracy[2:]] == [["27", "11.51", "57.4 %"], ["4", "2.52", "41.0 %"]]
    assert [row[8:] for row in supplement[2:]] == [["19", "8.03", "63.0 %"], ["4", "–", "–"]]
    assert [row[7:] for row in spikes[2:]] == [["3.02", "1.29"], ["0.34", "–"]]
    assert [row[:2] for row in rules[2:]] == [
        [f"model_{m}", rule] for m in METHODS for rule in ("safe", "grid", "exact")
    ]
    assert [row[0] for row in published[2:]] == ["1, 3"] * 6 + ["S1"] * 4


def test_an_accuracy_that_no_step_reaches_leaves_a_gap(made: Made):
    settings = copy.deepcopy(list(made.settings.values()))
    settings[0]["table_s1"] = None
    supplement = tables(page(settings))[1]
    assert supplement[2][3:8] == ["–"] * 5
    assert {len(row) for row in supplement} == {11}


@pytest.mark.parametrize(
    ("drop", "saved", "text"),
    [
        (
            0.004,
            0.5,
            "loses 0.40 ± 0.10 points on the test images (95 %, paired); 50.0 % of the steps are saved, inside",
        ),
        (
            -0.002,
            0.6,
            "gains 0.20 ± 0.10 points on the test images (95 %, paired); 60.0 % of the steps are saved, above",
        ),
        (0.0, 0.4, "loses 0.00 ± 0.10 points on the test images (95 %, paired); 40.0 % of the steps are saved, below"),
    ],
)
def test_what_early_exit_costs_and_saves_is_said(made: Made, drop: float, saved: float, text: str):
    setting = copy.deepcopy(made.settings["qcfs"])
    rule = setting["table_1"]["rules"]["safe"]
    rule["drop"], rule["drop_95"], rule["evaluation"]["saved"] = drop, 0.001, saved
    sentence = f"- model_qcfs: early exit {text} the paper's range on CIFAR-10 (41 to 58 %)."
    shown = page([setting])
    assert sentence in shown
    why = (
        f" Answers stand from step {setting['table_1']['answers_stand_from']:.2f} of {setting['table_1']['steps']} on "
        "average, so an exit that knew when would save "
    )
    assert (sentence + why in shown) == (saved < 0.41)
    assert f"{'+' if drop <= 0 else '-'}{abs(100 * drop):.2f} ± 0.10" in shown


def test_run_again_it_traces_nothing_and_gives_the_same(made: Made, monkeypatch: pytest.MonkeyPatch):
    def results() -> list[Any]:
        return json.loads((made.output / "record.json").read_text())["results"]

    kept = [path for path in made.output.rglob("*") if path.is_file() and path.name != "record.json"]
    before, content = results(), {path: path.read_bytes() for path in kept}
    monkeypatch.setattr(write_trace, "open_engine", lambda *_, **__: pytest.fail("traced again"))
    result = run(*made.command())
    assert result.exit_code == 0, result.output
    assert result.stdout == made.text
    assert {path: path.read_bytes() for path in kept} == content
    assert results() == before


def test_a_shard_that_is_missing_is_made_again(made: Made):
    shard = made.output / "traces" / "model_qffs_test" / "shard-00000.npz"
    content = shard.read_bytes()
    shard.unlink()
    assert run(*made.command()).stdout == made.text
    assert shard.read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.pt"], "model.pt: expected MODEL=DATA, for example model.pt=cifar10."),
        (
            ["{model}={data}/train"],
            "train: has no part 'validation' (a folder, or validation.npz). `dc-data` makes such",
        ),
        (
            ["{model}={data}", "other/model.pt={data}"],
            "two networks are named model: rename one of the files, or run it",
        ),
        (["{model}={data}", "missing.pt={data}"], "missing.pt: no such file"),
        ([], "Missing argument"),
    ],
)
def test_bad_usage_is_said_before_the_work(made: Made, tmp_path: Path, arguments: list[str], message: str):
    words = (word.format(model=made.folder / "model.pt", data=made.folder / "digits") for word in arguments)
    result = run(*words, "-o", tmp_path / "tables")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_other_steps_need_another_folder(made: Made):
    result = run(*made.command(**{"-T": STEPS - 1}))
    assert result.exit_code == 2
    assert "which differs from that of model_qcfs on validation in" in result.stderr
    assert "Choose another folder with -o." in result.stderr


@pytest.mark.parametrize(("beyond", "said"), [(-0.02, True), (-0.005, False), (0.02, False)])
def test_that_more_steps_make_it_worse_is_said(made: Made, beyond: float, said: bool):
    setting = copy.deepcopy(made.settings["qcfs"])
    steps, traced = setting["table_1"]["steps"], setting["traced_steps"]
    assert len(setting["accuracy_at_step"]) == traced
    last = setting["accuracy_at_step"][steps - 1] + beyond
    setting["accuracy_at_step"] = [*setting["accuracy_at_step"][:steps], last]
    text = f" Beyond T it falls, to {100 * last:.2f} % after {steps + 1} steps: export it with `-T {steps}`."
    assert (text in page([setting])) == said
