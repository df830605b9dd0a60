"""dc-train: what it trains and writes, how it goes on after it was stopped, and what it refuses before it begins."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support import assert_same_weights, write_idx

from dynamic_confidence.models.checkpoint import Checkpoint, load_checkpoint
from dynamic_confidence.models.qcfs import QCFS
from dynamic_confidence.models.registry import ARCHITECTURES
from dynamic_confidence.runtime.images import image_files
from dynamic_confidence.runtime.pixels import pixels_from_image
from dynamic_confidence.toolchain import train as train_module
from dynamic_confidence.toolchain.augment import AUGMENTATIONS
from dynamic_confidence.toolchain.data import ImageSet, load_image_set
from dynamic_confidence.toolchain.dc_train import main
from dynamic_confidence.toolchain.recipe import RECIPES, SCHEDULES
from dynamic_confidence.toolchain.torchvision_sets import SETS
from dynamic_confidence.toolchain.train import best_path
from dynamic_confidence.toolchain.training_output import held


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--threads", "1", "--device", "cpu"])


def tiny(digits: Path, output: Path) -> list[object]:
    return ["--data", digits / "test", "--width", 4, "--size", 8, "--epochs", 2, "--batch", 64, "-o", output]


def test_help_mentions_every_option_and_every_known_name():
    text = CliRunner().invoke(main, ["--help"]).output
    assert "Examples:\n    dc-train --data demo/digits/train" in text
    for parameter in main.params:
        assert parameter.opts[-1] in text
    flat = "".join(text.split())
    assert all(name in flat for name in ARCHITECTURES)
    for names, option in ((SCHEDULES, "schedule"), (AUGMENTATIONS, "augment"), (RECIPES, "recipe")):
        assert f"--{option}[{'|'.join(names)}]" in flat


def test_the_command_loads_torch_only_when_it_trains():
    heavy = "{'torch', 'numpy', 'rich'}"
    code = f"import sys, dynamic_confidence.toolchain.dc_train; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_command_trains_reports_and_removes_the_resume_file(tmp_path: Path, digits: Path):
    output = tmp_path / "model.pt"
    result = run(*tiny(digits, output), "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["model"] == str(output)
    assert record["data"] == "test"
    assert record["recipe"]["batch"] == 64
    assert "validation accuracy" in result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]
    notes = load_checkpoint(output).notes
    assert notes["validation_accuracy"] == record["validation_accuracy"]
    assert str(tmp_path) not in str(notes)


def test_command_resumes_after_ctrl_c(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch):
    output, whole = tmp_path / "model.pt", tmp_path / "whole.pt"
    assert run(*tiny(digits, whole)).exit_code == 0
    evaluate = train_module.accuracy_of
    calls = []

    def interrupted(*arguments: Any) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(train_module, "accuracy_of", interrupted)
    stopped = run(*tiny(digits, output))
    assert stopped.exit_code == 130
    assert f"The same command resumes from {output}.training" in stopped.stderr
    assert not output.exists()
    resumed = run(*tiny(digits, output))
    assert resumed.exit_code == 0
    assert "Resuming after epoch 1 of 2." in resumed.stderr
    assert_same_weights(load_checkpoint(output), load_checkpoint(whole))


def test_fresh_ignores_the_resume_file(tmp_path: Path, digits: Path):
    output = tmp_path / "model.pt"
    (tmp_path / "model.pt.training").write_bytes(b"of another training")
    refused = run(*tiny(digits, output))
    assert refused.exit_code == 2
    assert "Delete it or use `--fresh`" in refused.stderr
    assert run(*tiny(digits, output), "--fresh").exit_code == 0


def test_command_fine_tunes_a_float_network(tmp_path: Path, digits: Path):
    first, second = tmp_path / "float.pt", tmp_path / "quantised.pt"
    assert run(*tiny(digits, first), "--activation", "relu").exit_code == 0
    base = ["--data", digits / "test", "--validation", digits / "calibration", "--from", first, "--epochs", 1]
    result = run(*base, "--bits", 4, "-o", second)
    assert result.exit_code == 0, result.output
    tuned = load_checkpoint(second)
    assert (tuned.arguments["activation"], tuned.arguments["bits"]) == ("lsq", 4)
    assert tuned.preprocessing == load_checkpoint(first).preprocessing
    assert tuned.notes["recipe"]["lr"] == 0.01
    again = ["--data", digits / "test", "--from", second, "--bits", 2, "-o", tmp_path / "third.pt"]
    assert "the checkpoint is quantised already (activation lsq, bits 4)" in run(*again).stderr


def test_command_trains_and_fine_tunes_qcfs(tmp_path: Path, digits: Path):
    scratch, first, second = tmp_path / "scratch.pt", tmp_path / "float.pt", tmp_path / "quantised.pt"
    assert run(*tiny(digits, scratch), "--activation", "qcfs", "--levels", 3).exit_code == 0
    assert run(*tiny(digits, first), "--activation", "relu").exit_code == 0
    result = run("--data", digits / "test", "--from", first, "--activation", "qcfs", "--epochs", 1, "-o", second)
    assert result.exit_code == 0, result.output
    for path, levels in ((scratch, 3), (second, 4)):
        trained = load_checkpoint(path)
        assert (trained.arguments["activation"], trained.arguments["levels"]) == ("qcfs", levels)
        activations = [module for module in trained.network().modules() if isinstance(module, QCFS)]
        assert [module.levels for module in activations] == [levels] * 7
        assert all(float(module.threshold.detach()) not in (0.0, 1.0) for module in activations)
    again = run("--data", digits / "test", "--from", second, "--activation", "lsq", "-o", tmp_path / "third.pt")
    assert "the checkpoint is quantised already (activation qcfs, levels 4). Leave --activation out" in again.stderr


def test_command_takes_the_paper_s_recipe(tmp_path: Path, digits: Path):
    result = run(*tiny(digits, tmp_path / "model.pt")[:6], "--recipe", "paper", "--epochs", 1, "-o", tmp_path / "m.pt")
    assert result.exit_code == 0, result.output
    assert load_checkpoint(tmp_path / "m.pt").notes["recipe"] == {
        "epochs": 1,
        "batch": 32,
        "lr": 0.01,
        "weight_decay": 2.5e-5,
        "momentum": 0.9,
        "schedule": "exponential",
        "augment": "crop-flip",
        "seed": 0,
        "amp": False,
    }


def test_command_resizes_and_crops_as_the_network_will(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[ImageSet] = []

    def only_look(checkpoint: Checkpoint, train_set: ImageSet, *_: object, **__: object) -> Checkpoint:
        seen.append(train_set)
        return replace(checkpoint, notes={"validation_accuracy": 0.0, "best_epoch": 1})

    monkeypatch.setattr(train_module, "train", only_look)
    base = ["--data", digits / "test", "--validation", digits / "calibration"]
    result = run(*base, "--size", 8, "--resize", 12, "-o", tmp_path / "model.pt")
    assert result.exit_code == 0, result.output
    preprocessing = load_checkpoint(tmp_path / "model.pt").preprocessing
    assert (preprocessing.shape, preprocessing.resize_shorter_side) == ((1, 8, 8), 12)
    first = pixels_from_image(image_files(digits / "test")[0], preprocessing)
    assert np.array_equal(seen[0].pixels[0].numpy(), first)
    small = run(*base, "--size", 8, "--resize", 6, "-o", tmp_path / "other.pt")
    assert small.exit_code == 2
    assert "resize_shorter_side 6: expected at least 8, what the crop needs" in small.stderr


def test_command_reads_torchvision_s_files(tmp_path: Path):
    root, rng = tmp_path / "root", np.random.default_rng(0)
    for part in ("train", "t10k"):
        pixels = rng.integers(0, 256, (40, 28, 28), np.uint8)
        write_idx(root / SETS["mnist"].marker, part, pixels, np.arange(40) % 10)
    output = tmp_path / "model.pt"
    result = run("--data", root, "--width", 2, "--epochs", 1, "--validation-fraction", 0.25, "-o", output)
    assert result.exit_code == 0, result.output
    trained = load_checkpoint(output)
    assert trained.class_names == load_image_set(root).class_names
    assert (trained.notes["training_images"], trained.notes["validation_images"]) == (30, 10)
    assert trained.preprocessing.shape == (1, 28, 28)


def test_command_names_the_network_that_is_kept_when_training_fails(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
):
    output = tmp_path / "model.pt"
    command, state = [*tiny(digits, output), "--activation", "relu"], output.with_name("model.pt.training")
    kept = f"The best network so far is kept: {best_path(state)}."
    rate = train_module.learning_rate
    monkeypatch.setattr(train_module, "learning_rate", lambda options, done: rate(options, 0) if done < 0.5 else 1e30)
    failed = run(*command)
    assert failed.exit_code == 2
    assert "epoch 2: the loss is" in failed.stderr
    assert kept in failed.stderr
    best = best_path(state).read_bytes()
    assert load_checkpoint(best_path(state)).notes["best_epoch"] == 1
    assert not output.exists()
    monkeypatch.undo()
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    damaged = run(*command)
    assert damaged.exit_code == 2
    assert f"{state}: not a readable resume file. Delete it or use `--fresh` to begin anew." in damaged.stderr
    assert kept in damaged.stderr
    assert best_path(state).read_bytes() == best
    state.write_bytes(whole)
    assert "Resuming after epoch 1 of 2." in run(*command).stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--from", "x.pt", "--width", 4, "-o", "{tmp}/m.pt"], "--width cannot be set with --from"),
        (
            ["--activation", "relu", "--bits", 2, "-o", "{tmp}/m.pt"],
            "bits 2: activation 'relu' takes neither bits nor levels, bits is for lsq",
        ),
        (
            ["--levels", 3, "-o", "{tmp}/m.pt"],
            "levels 3: activation 'lsq' takes bits, levels is for qcfs. Leave it out, or choose the other activation.",
        ),
        (["--validation", "{data}", "-o", "{tmp}/m.pt"], "--validation is the training set itself: leave it out and a"),
        (["--lr", 0, "-o", "{tmp}/m.pt"], "--lr 0.0: expected a number above 0"),
        (["--architecture", "resnet19", "-o", "{tmp}/m.pt"], "Did you mean 'resnet18'?"),
        (["--from", "{tmp}/x.pt", "-o", "{tmp}/m.pt"], "x.pt: no such file"),
        (["-o", "{tmp}/missing/m.pt"], "missing/m.pt: its folder does not exist: mkdir -p "),
        (["-o", "{tmp}"], "is a folder, expected a file name"),
    ],
)
def test_bad_input_ends_before_training(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], text: str
):
    monkeypatch.setattr(train_module, "train", lambda *_, **__: pytest.fail("training began"))
    words = (str(a).format(tmp=tmp_path, data=digits / "test" / ".." / "test") for a in arguments)
    result = run("--data", digits / "test", *words)
    assert result.exit_code == 2
    assert text in result.stderr
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_one_output_has_one_training_at_a_time(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train_module, "train", lambda *_, **__: pytest.fail("training began"))
    output = tmp_path / "model.pt"
    for option in ("--json", "--fresh"):
        with held(output):
            result = run(*tiny(digits, output), option)
        assert result.exit_code == 2
        assert "model.pt: another training writes it now. Wait for its end, or choose another place" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_validation_set_without_some_classes_is_said(tmp_path: Path, digits: Path):
    for name in "0234":
        (tmp_path / "part").mkdir(exist_ok=True)
        (tmp_path / "part" / name).symlink_to(digits / "calibration" / name)
    result = run(*tiny(digits, tmp_path / "model.pt"), "--validation", tmp_path / "part", "--epochs", 1)
    assert result.exit_code == 0, result.output
    text = f"{tmp_path / 'part'}: no image of 1, 5, 6, 7, …: the best epoch is chosen without 6 of 10 classes.\n"
    assert text in result.stderr


def test_images_too_small_for_the_network_are_said_before_training(tmp_path: Path, digits: Path):
    result = run("--data", digits / "test", "--architecture", "vgg16", "--width", 2, "-o", tmp_path / "model.pt")
    assert result.exit_code == 2, result.output
    assert "cannot take images of [1, 16, 16]" in result.stderr


def test_command_does_not_replace_a_finished_network(tmp_path: Path, digits: Path):
    output = tmp_path / "model.pt"
    assert run(*tiny(digits, output)).exit_code == 0
    before = output.read_bytes()
    again = run(*tiny(digits, output))
    assert again.exit_code == 2
    assert "model.pt: exists. Train another one with another -o, or replace it: --fresh." in again.stderr
    assert output.read_bytes() == before
    assert run(*tiny(digits, output), "--fresh", "--seed", 1).exit_code == 0
    assert output.read_bytes() != before


def test_another_seed_holds_the_same_images_back(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch):
    """Else a fine-tuning with another seed would be judged by images that the network was trained on."""
    seen: list[ImageSet] = []

    def only_look(
        checkpoint: Checkpoint, _: ImageSet, validation_set: ImageSet, *__: object, **___: object
    ) -> Checkpoint:
        seen.append(validation_set)
        return replace(checkpoint, notes={"validation_accuracy": 0.0, "best_epoch": 1})

    monkeypatch.setattr(train_module, "train", only_look)
    for number, option in enumerate((["--seed", 0], ["--seed", 7], ["--split-seed", 7])):
        result = run("--data", digits / "test", *option, "-o", tmp_path / f"{number}.pt")
        assert result.exit_code == 0, result.output
    first, second, other = (images.pixels[:] for images in seen)
    assert np.array_equal(first.numpy(), second.numpy())
    assert not np.array_equal(first.numpy(), other.numpy())
