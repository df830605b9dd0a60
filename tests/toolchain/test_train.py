"""Training: it learns, resumes bit-identically, and refuses what does not belong."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import assert_same_weights

from dynamic_confidence.models.checkpoint import (
    Checkpoint,
    load_checkpoint,
    safe_load,
    save_checkpoint,
    write_torch_file,
)
from dynamic_confidence.models.lsq import LSQ
from dynamic_confidence.runtime.errors import BackendMissing, DynamicConfidenceError
from dynamic_confidence.toolchain import train as train_module
from dynamic_confidence.toolchain.augment import AUGMENTATIONS
from dynamic_confidence.toolchain.data import ImageSet, load_image_set, split
from dynamic_confidence.toolchain.distributed import Workers
from dynamic_confidence.toolchain.pixel_files import PixelFiles
from dynamic_confidence.toolchain.recipe import TrainingOptions, learning_rate, recipe
from dynamic_confidence.toolchain.starting_network import continued, untrained
from dynamic_confidence.toolchain.train import accuracy_of, best_path, torch_device, train
from dynamic_confidence.toolchain.training_state import EpochReport

Sets = tuple[ImageSet, ImageSet]


@pytest.fixture(scope="module")
def sets(digits: Path) -> Sets:
    """240 and 119 digits of 8x8 pixels."""
    return split(load_image_set(digits / "test", size=8), 1 / 3, seed=0)


def start(sets: Sets, **arguments: Any) -> Checkpoint:
    return untrained("resnet8", {"width": 4, **arguments}, sets[0].preprocessing, sets[0].class_names, seed=0)


class Stop(Exception):
    pass


def stop_after(epoch: int) -> Any:
    def on_epoch(report: EpochReport) -> None:
        if report.epoch == epoch:
            raise Stop

    return on_epoch


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_resuming_gives_the_weights_of_an_uninterrupted_run(tmp_path: Path, sets: Sets, augment: str):
    options = TrainingOptions(epochs=4, augment=augment)
    whole = train(start(sets), *sets, options, tmp_path / "whole")
    with pytest.raises(Stop):
        train(start(sets), *sets, options, tmp_path / "parts", on_epoch=stop_after(2))
    torch.manual_seed(123)  # whatever happened to the global random state in between
    torch.rand(10)
    resumed_after: list[int] = []
    reports: list[EpochReport] = []
    parts = train(
        start(sets), *sets, options, tmp_path / "parts", on_epoch=reports.append, on_resume=resumed_after.append
    )
    assert resumed_after == [2]
    assert [report.epoch for report in reports] == [3, 4]
    assert_same_weights(whole, parts)
    assert whole.notes == parts.notes
    # A finished training is not repeated.
    assert_same_weights(whole, train(start(sets), *sets, options, tmp_path / "parts", on_epoch=stop_after(4)))


def test_training_leaves_the_global_random_state_alone(tmp_path: Path, sets: Sets):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(start(sets), *sets, TrainingOptions(epochs=1), tmp_path / "state")
    assert torch.equal(torch.rand(3), expected)


def test_a_resume_file_of_another_training_is_refused(tmp_path: Path, sets: Sets):
    state, options = tmp_path / "model.pt.training", TrainingOptions(epochs=2)
    with pytest.raises(Stop):
        train(start(sets), *sets, options, state, on_epoch=stop_after(1))
    remedy = r"Delete it or use `--fresh` to begin anew\."
    one, two = sets
    half = one.take(torch.arange(0, len(one), 2))
    other_start = untrained("resnet8", {"width": 4}, one.preprocessing, one.class_names, seed=1)
    for checkpoint, train_set, other_options, text in (
        (start(sets), one, replace(options, lr=0.01), r"\(lr 0\.05, now 0\.01\)"),
        (start(sets), one, replace(options, seed=1, epochs=3), r"\(epochs 2, now 3, seed 0, now 1\)"),
        (start(sets), one, replace(options, schedule="exponential"), r"\(another schedule\)"),
        (start(sets, width=6), one, options, r"\(another arguments, another starting weights\)"),
        (other_start, one, options, r"\(another starting weights\)"),
        (start(sets), half, options, r"\(another training data\)"),
    ):
        with pytest.raises(DynamicConfidenceError, match=rf"the resume file of another training {text}\. {remedy}"):
            train(checkpoint, train_set, two, other_options, state)
    save_checkpoint(state, start(sets))
    with pytest.raises(DynamicConfidenceError, match=rf"not a resume file of `dc-train`\. {remedy}"):
        train(start(sets), *sets, options, state)
    state.write_bytes(b"half")
    with pytest.raises(DynamicConfidenceError, match=rf"not a readable resume file\. {remedy}"):
        train(start(sets), *sets, options, state)


def test_it_learns_and_keeps_the_best_epoch(tmp_path: Path, sets: Sets):
    reports: list[EpochReport] = []
    batches: list[tuple[int, int]] = []
    trained = train(
        start(sets, width=8),
        *sets,
        TrainingOptions(epochs=12, augment="none"),
        tmp_path / "state",
        on_epoch=reports.append,
        on_batch=lambda done, total: batches.append((done, total)),
    )
    assert reports[-1].loss < 0.4 * reports[0].loss
    best = max(report.accuracy for report in reports)
    assert best > 0.8
    network = trained.network()
    assert accuracy_of(network, sets[1]) == best == trained.notes["validation_accuracy"] == reports[-1].best_accuracy
    assert reports[trained.notes["best_epoch"] - 1].accuracy == best
    assert all(float(m.scale.detach()) > 0 for m in network.modules() if isinstance(m, LSQ))
    assert batches == [(i + 1, 12 * 15) for i in range(12 * 15)]
    assert trained.notes["recipe"]["epochs"] == 12
    assert (trained.notes["training_images"], trained.notes["validation_images"]) == tuple(map(len, sets))


def test_scales_get_no_weight_decay_and_are_initialised_once(tmp_path: Path, sets: Sets):
    frozen = TrainingOptions(epochs=1, lr=1e-12, weight_decay=1e9)
    first = train(start(sets), *sets, frozen, tmp_path / "a")
    scales = {name: value for name, value in first.state_dict.items() if name.endswith(".scale")}
    assert len(scales) == 7
    assert all(float(value) not in (0.0, 1.0) for value in scales.values())
    second = train(first, *sets, frozen, tmp_path / "b")
    for name, value in scales.items():
        assert torch.allclose(second.state_dict[name], value, rtol=1e-4), name
    assert not torch.allclose(second.state_dict["fc.weight"], first.state_dict["fc.weight"], rtol=1e-2)
    assert second.notes["before"] == first.notes


def test_a_float_network_is_quantised_with_its_weights_and_a_quantised_one_stays(tmp_path: Path, sets: Sets):
    float_one = train(start(sets, activation="relu"), *sets, TrainingOptions(epochs=1), tmp_path / "state")
    quantised = continued(float_one, bits=3)
    assert quantised.arguments == {**float_one.arguments, "activation": "lsq", "bits": 3}
    assert all(torch.equal(quantised.state_dict[name], tensor) for name, tensor in float_one.state_dict.items())
    assert all(name.endswith(".scale") for name in quantised.state_dict.keys() - float_one.state_dict.keys())
    assert {m.levels for m in quantised.network().modules() if isinstance(m, LSQ)} == {7}
    assert continued(quantised) is continued(quantised, "lsq", bits=3) is quantised
    same = continued(float_one, "relu")
    assert same.arguments == float_one.arguments
    assert_same_weights(same, float_one)
    text = r"the checkpoint is quantised already \(activation lsq, bits 3\)\. Leave --bits out to fine-tune it"
    with pytest.raises(DynamicConfidenceError, match=text):
        continued(quantised, bits=2)
    with pytest.raises(DynamicConfidenceError, match="bits 2: activation 'relu' takes neither bits nor levels"):
        continued(float_one, "relu", bits=2)


def test_a_loss_that_is_not_finite_is_one_error_and_keeps_the_last_good_network(
    tmp_path: Path, sets: Sets, monkeypatch: pytest.MonkeyPatch
):
    state, options = tmp_path / "state", TrainingOptions(epochs=3)
    with pytest.raises(DynamicConfidenceError, match=r"epoch 1: the loss is (nan|inf), .*\(`--lr`, now 1e\+30\)"):
        train(start(sets, activation="relu"), *sets, replace(options, lr=1e30), state)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(train_module, "learning_rate", lambda _, done: 0.05 if done < 0.5 else 1e30)
    with pytest.raises(DynamicConfidenceError, match=r"epoch 2: the loss is"):
        train(start(sets, activation="relu"), *sets, options, state)
    assert state.exists()
    kept = load_checkpoint(best_path(state))
    assert kept.notes["best_epoch"] == 1
    assert accuracy_of(kept.network(), sets[1]) == kept.notes["validation_accuracy"]


def test_weights_that_the_last_update_of_an_epoch_made_useless_are_not_kept(tmp_path: Path, sets: Sets):
    """The loss is looked at before an update, so the only one of this epoch is not seen to diverge."""
    options = TrainingOptions(epochs=1, batch=len(sets[0]), lr=1e38)
    with pytest.raises(
        DynamicConfidenceError, match="answers with numbers that are not finite: its training has diverg"
    ):
        train(start(sets, activation="relu"), *sets, options, tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_every_class_is_trained_on(tmp_path: Path, sets: Sets):
    """As with --from and a class folder that is empty: the names are the network's, so nobody else counts them."""
    without = sets[0].take(torch.nonzero((sets[0].labels != 3) & (sets[0].labels != 7)).flatten())
    with pytest.raises(DynamicConfidenceError, match="no image of 3, 7 to train on, expected some of every class"):
        train(start(sets), without, sets[1], TrainingOptions(epochs=1), tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_a_broken_image_stops_training_and_keeps_the_last_good_network(tmp_path: Path, sets: Sets, digits: Path):
    copy = tmp_path / "data"
    shutil.copytree(digits / "calibration", copy)
    files = sorted(copy.rglob("*.png"))
    whole = load_image_set(copy, sets[0].preprocessing, sets[0].class_names)
    on_disk = replace(whole, pixels=PixelFiles(files, whole.preprocessing))
    state, options = tmp_path / "model" / "state", TrainingOptions(epochs=2)
    state.parent.mkdir()

    def break_a_file(report: EpochReport) -> None:
        files[100].write_bytes(b"not a picture")

    with pytest.raises(DynamicConfidenceError, match="not a readable image"):
        train(start(sets), on_disk, sets[1], options, state, on_epoch=break_a_file)
    assert load_checkpoint(best_path(state)).notes["best_epoch"] == 1
    assert state.exists()


def test_images_on_disk_train_as_those_in_memory(tmp_path: Path, sets: Sets, digits: Path):
    files = sorted((digits / "calibration").rglob("*.png"))
    whole = load_image_set(digits / "calibration", sets[0].preprocessing, sets[0].class_names)
    on_disk = replace(whole, pixels=PixelFiles(files, whole.preprocessing))
    one = train(start(sets), whole, sets[1], TrainingOptions(epochs=1), tmp_path / "a")
    other = train(start(sets), on_disk, sets[1], TrainingOptions(epochs=1), tmp_path / "b")
    assert_same_weights(one, other)


def test_mixed_precision_learns_and_keeps_float_weights(tmp_path: Path, sets: Sets):
    reports: list[EpochReport] = []
    options = TrainingOptions(epochs=6, augment="none", amp=True)
    trained = train(start(sets, width=8), *sets, options, tmp_path / "state", on_epoch=reports.append)
    assert reports[-1].loss < 0.6 * reports[0].loss
    assert all(value.dtype in (torch.float32, torch.int64) for value in trained.state_dict.values())
    assert trained.notes["recipe"]["amp"] is True
    plain = train(start(sets, width=8), *sets, replace(options, epochs=1, amp=False), tmp_path / "plain")
    mixed = train(start(sets, width=8), *sets, replace(options, epochs=1), tmp_path / "mixed")
    assert not torch.equal(plain.state_dict["fc.weight"], mixed.state_dict["fc.weight"])


def test_recipes():
    paper = recipe("paper", 45_000, True, seed=None, epochs=None)
    assert (paper.epochs, paper.batch, paper.lr, paper.momentum) == (60, 32, 0.01, 0.9)
    assert (paper.weight_decay, paper.schedule, paper.augment) == (2.5e-5, "exponential", "crop-flip")
    assert recipe("paper", 45_000, True, epochs=2, seed=5) == replace(paper, epochs=2, seed=5)
    assert recipe("fast", 100, False) == TrainingOptions()
    assert recipe("fast", 100, True).lr == TrainingOptions().lr / 5
    assert recipe("fast", 10_000, False).batch == 128
    with pytest.raises(DynamicConfidenceError, match="recipe 'slow' is unknown, known: fast, paper"):
        recipe("slow", 100, False)


def test_images_that_do_not_fit_the_network(tmp_path: Path, sets: Sets):
    vgg = untrained("vgg16", {"width": 2}, sets[0].preprocessing, sets[0].class_names, seed=0)
    with pytest.raises(DynamicConfidenceError, match=r"vgg16 .* cannot take images of \[1, 8, 8\] .*another --size"):
        train(vgg, *sets, TrainingOptions(epochs=1), tmp_path / "state")
    renamed = replace(start(sets), class_names=tuple("abcdefghij"))
    with pytest.raises(DynamicConfidenceError, match="read with other preprocessing or class names than the network's"):
        train(renamed, *sets, TrainingOptions(epochs=1), tmp_path / "state")


def test_learning_rate_schedules():
    cosine, exponential = TrainingOptions(lr=0.2), TrainingOptions(lr=0.2, schedule="exponential")
    assert [learning_rate(cosine, x) for x in (0.0, 0.5, 1.0)] == pytest.approx([0.2, 0.1, 0.0])
    assert [learning_rate(exponential, x) for x in (0.0, 0.5, 1.0)] == pytest.approx([0.2, 0.02, 0.002])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"epochs": 0}, "epochs 0, batch 16: expected at least 1 epoch, 2 images"),
        ({"batch": 1}, "expected at least 1 epoch, 2 images"),
        ({"lr": -1.0}, "lr -1, .*: expected lr > 0"),
        ({"lr": float("nan")}, "expected lr > 0"),
        ({"schedule": "step"}, "schedule 'step' is unknown, known: cosine, exponential"),
        ({"augment": "rotate"}, "augment 'rotate' is unknown, known: none, shift, crop-flip"),
    ],
)
def test_options_are_checked(options: dict[str, Any], text: str):
    with pytest.raises(DynamicConfidenceError, match=text):
        TrainingOptions(**options)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device("auto").type == "cpu"
    with pytest.raises(BackendMissing, match=r"torch sees no NVIDIA GPU\. Use `--device cpu`"):
        torch_device("cuda")


def test_a_resume_file_that_is_not_whole_is_refused(tmp_path: Path, sets: Sets):
    state, options = tmp_path / "state", TrainingOptions(epochs=2)
    with pytest.raises(Stop):
        train(start(sets), *sets, options, state, on_epoch=stop_after(1))
    whole = safe_load(state)
    for change in (
        {"optimizer": {}},
        {"network": {}},
        {"progress": {"epochs": 1}},
        {"progress": {**whole["progress"], "epoch": 99}},
        {"origin": None},
    ):
        write_torch_file(state, {**whole, **change})
        with pytest.raises(DynamicConfidenceError, match=r"not a whole resume file \(.*Delete it or use `--fresh`"):
            train(start(sets), *sets, options, state)


def test_the_smallest_batch_has_two_images_for_every_process(tmp_path: Path, sets: Sets):
    few = sets[0].take(torch.arange(17))
    with pytest.raises(DynamicConfidenceError, match=r"batches of 5 images for 3 processes \(17 images, --batch 6\)"):
        train(start(sets), few, sets[1], TrainingOptions(batch=6), tmp_path / "state", workers=Workers(0, 3))
