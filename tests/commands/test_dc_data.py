"""dc-data: three sets without a common image, that the other commands read, or an error and nothing written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from support import write_idx

from dynamic_confidence.calib.dc_calibrate import main as calibrate
from dynamic_confidence.models.checkpoint import load_checkpoint, sha256_of
from dynamic_confidence.runtime.onnx_file import read_onnx
from dynamic_confidence.runtime.pixels import read_array
from dynamic_confidence.toolchain import sets
from dynamic_confidence.toolchain.data import load_image_set
from dynamic_confidence.toolchain.dc_data import main
from dynamic_confidence.toolchain.dc_train import main as train
from dynamic_confidence.toolchain.export import ExportOptions, export
from dynamic_confidence.toolchain.torchvision_sets import SETS

NAMES = ("oak", "elm", "ash")
"""In another order than their labels: 0 is ash."""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def write_tree(folder: Path, seed: int, count: int = 20, size: int = 10) -> Path:
    rng = np.random.default_rng(seed)
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (size, size), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """`train` and `test`, each image another one."""
    write_tree(tmp_path / "photos" / "train", seed=0)
    write_tree(tmp_path / "photos" / "test", seed=1, count=4)
    return tmp_path / "photos"


def contents(part: Path) -> dict[bytes, int]:
    """Label by image."""
    pixels, label = read_array(part)
    assert label is not None
    assert len(label) == len(pixels)
    return {image.tobytes(): int(one) for image, one in zip(pixels, label, strict=True)}


def test_own_images_become_three_sets_without_a_common_image(photos: Path, tmp_path: Path):
    output = tmp_path / "sets"
    result = run(photos / "train", "--test", photos / "test", "--validation-fraction", 0.25, "-o", output)
    assert result.exit_code == 0, result.output
    assert f"{output}: train.npz 45, validation.npz 15, test.npz 12 images of 3 classes" in result.stdout
    assert sorted(path.name for path in output.iterdir()) == ["test.npz", "train.npz", "validation.npz"]
    train_set, validation, test = (contents(output / f"{name}.npz") for name in ("train", "validation", "test"))
    assert (len(train_set), len(validation), len(test)) == (45, 15, 12)
    assert not train_set.keys() & validation.keys()
    assert not (train_set | validation).keys() & test.keys()
    assert [list(validation.values()).count(label) for label in range(3)] == [5, 5, 5]
    for part, folder in ((train_set | validation, "train"), (test, "test")):
        files = {np.asarray(Image.open(f)).tobytes(): f.parent.name for f in (photos / folder).rglob("*.png")}
        assert {image: sorted(NAMES)[label] for image, label in part.items()} == files
    assert {load_image_set(output / f"{name}.npz").class_names for name in ("train", "validation", "test")} == {
        ("ash", "elm", "oak")
    }


def test_the_split_depends_on_the_seed_only(photos: Path, tmp_path: Path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(photos / "train", "--seed", seed, "-o", tmp_path / name).exit_code == 0
    a, b, c = (contents(tmp_path / name / "validation.npz").keys() for name in "abc")
    assert a == b != c
    assert not (tmp_path / "a" / "test.npz").exists()


def test_images_of_any_size_become_one_size(photos: Path, tmp_path: Path):
    write_tree(tmp_path / "large", seed=2, count=2, size=30)
    assert run(photos / "train", "--test", tmp_path / "large", "--size", 8, "-o", tmp_path / "sets").exit_code == 0
    shapes = {read_array(path)[0].shape[1:] for path in (tmp_path / "sets").iterdir()}
    assert shapes == {(1, 8, 8)}


def test_the_other_commands_read_them(photos: Path, tmp_path: Path):
    output, model, network = tmp_path / "sets", tmp_path / "model.pt", tmp_path / "net.onnx"
    assert run(photos / "train", "--test", photos / "test", "-o", output).exit_code == 0
    options = ["--width", 4, "--epochs", 1, "--threads", 1, "--device", "cpu", "-o", model]
    data = ["--data", output / "train.npz", "--validation", output / "validation.npz"]
    trained = CliRunner().invoke(train, [str(a) for a in (*data, *options)])
    assert trained.exit_code == 0, trained.output
    checkpoint = load_checkpoint(model)
    assert checkpoint.class_names == ("ash", "elm", "oak")
    assert (checkpoint.notes["training_images"], checkpoint.notes["validation_images"]) == (54, 6)
    network.write_bytes(export(checkpoint, sha256_of(model), ExportOptions(steps=4)).content)
    done = CliRunner().invoke(calibrate, [str(network), "--data", str(output / "validation.npz")])
    assert done.exit_code == 0, done.output
    found = read_onnx(network)[1].calibration
    assert (found.data, found.samples) == ("validation.npz", 6)


def fake_mnist(root: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    pixels = {
        "train": rng.integers(0, 256, (40, 28, 28), np.uint8),
        "t10k": rng.integers(0, 256, (10, 28, 28), np.uint8),
    }
    for part, images in pixels.items():
        write_idx(root / SETS["mnist"].marker, part, images, np.arange(len(images)) % 10)
    return pixels


def test_a_set_of_torchvision_keeps_its_own_test_images(tmp_path: Path):
    pixels = fake_mnist(tmp_path / "root")
    result = run("mnist", "--root", tmp_path / "root", "--validation-fraction", 0.25, "-o", tmp_path / "mnist")
    assert result.exit_code == 0, result.output
    assert "train.npz 30, validation.npz 10, test.npz 10 images of 10 classes" in result.stdout
    parts = [contents(tmp_path / "mnist" / f"{name}.npz") for name in ("train", "validation", "test")]
    expected = [{image.tobytes(): row % 10 for row, image in enumerate(images)} for images in pixels.values()]
    assert [parts[0] | parts[1], parts[2]] == expected
    names = load_image_set(tmp_path / "root").class_names
    assert {load_image_set(path).class_names for path in (tmp_path / "mnist").iterdir()} == {names}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{tmp}/photos/train", "-o", "{tmp}/photos"), "photos: exists. Choose another folder with -o, or remove it."),
        (("mnist", "--size", 8), "mnist has a test set and a size of its own: leave --test and --size out."),
        (("mnist", "--test", "x"), "mnist has a test set and a size of its own: leave --test and --size out."),
        (("{tmp}/photos/train", "--root", "x"), "--root and --download are for cifar10, cifar100, mnist, fashion-mnis"),
        (("minst", "--download"), "fashion-mnist; 'minst' is taken as images of your own."),
        (("minst",), "minst: no such data set. Expected one folder per class"),
        (("mnist", "--root", "{tmp}"), "the training part of mnist is missing or damaged (Dataset not found."),
        (("{tmp}/photos/train", "--test", "{tmp}/other"), "has no label that the network knows (its classes: ash, elm"),
        (("{tmp}/photos/train", "--validation-fraction", 1), "validation fraction 1: expected a number between 0 and"),
        (("{tmp}/photos/train", "--size", 0), "0 is not in the range 1<=x<=4096"),
        (("{tmp}/photos/train", "-o", "{tmp}/file/sets"), "sets: cannot write there ("),
        (("{tmp}/photos/train", "--test", "{tmp}/photos/train"), "train: is SOURCE itself, expected other images."),
        (("{tmp}/photos/train", "-o", "{tmp}/photos/train/sets"), "lies in SOURCE and would be read as a class of it"),
    ],
)
def test_bad_input_writes_nothing(photos: Path, tmp_path: Path, arguments: tuple[object, ...], message: str):
    (tmp_path / "file").touch()
    (tmp_path / "other" / "fir").mkdir(parents=True)
    Image.new("L", (10, 10)).save(tmp_path / "other" / "fir" / "0.png")
    before = sorted(tmp_path.rglob("*"))
    result = run("-o", tmp_path / "sets", *(str(a).format(tmp=tmp_path) for a in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_was_begun_and_not_finished_is_gone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
):
    write, written = sets.write_part, []

    def second_fails(path: Path, part: object) -> None:
        if written:
            raise fault
        write(path, part)  # type: ignore[arg-type]
        written.append(path)

    monkeypatch.setattr(sets, "write_part", second_fails)
    result = run(photos / "train", "-o", tmp_path / "sets")
    assert result.exit_code == (130 if isinstance(fault, KeyboardInterrupt) else 2)
    if isinstance(fault, OSError):
        assert "sets: cannot write there (No space left on device). Choose another -o." in result.stderr
    assert written
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
