"""Image sets: one preprocessing with the runtime, splits, the digits, sets on disk, torchvision's."""

from __future__ import annotations

import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import write_idx

from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Preprocessing
from dynamic_confidence.runtime.pixels import pixels_from_image
from dynamic_confidence.toolchain import data as data_module
from dynamic_confidence.toolchain.data import (
    ImageSet,
    load_image_set,
    normalised,
    pixel_statistics,
    split,
)
from dynamic_confidence.toolchain.digits import write_digits
from dynamic_confidence.toolchain.pixel_files import PixelFiles
from dynamic_confidence.toolchain.torchvision_sets import SETS, read_set, set_in


def write_tree(folder: Path, count: int = 3, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> Path:
    rng = np.random.default_rng(0)
    for name in ("b", "a"):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
            Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / name / f"{index}.png")
    return folder


def toy_set(counts: tuple[int, ...]) -> ImageSet:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    # Each image is told apart by its pixels.
    pixels = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    preprocessing = Preprocessing(color="L", height=2, width=2, mean=(0.0,), std=(1.0,))
    return ImageSet(pixels, labels, tuple(map(str, range(len(counts)))), preprocessing)


def test_digits_tree(digits: Path, tmp_path: Path):
    files = {part: sorted((digits / part).rglob("*.png")) for part in ("train", "calibration", "test")}
    counts = {part: len(found) for part, found in files.items()}
    assert sum(counts.values()) == 1797
    assert abs(counts["train"] - 1077) <= 5
    assert abs(counts["calibration"] - 360) <= 5
    assert {folder.name for folder in (digits / "test").iterdir()} == set("0123456789")
    assert len({file.name for found in files.values() for file in found}) == 1797  # no image in two parts
    with Image.open(files["test"][0]) as image:
        assert (image.mode, image.size) == ("L", (16, 16))
    again = tmp_path / "again"
    write_digits(again)
    assert all((again / file.relative_to(digits)).read_bytes() == file.read_bytes() for file in files["test"])
    write_digits(again)  # what is there is left alone
    assert [entry.name for entry in tmp_path.iterdir()] == ["again"]


def test_digits_do_not_overwrite_something_else(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(DynamicConfidenceError, match=r"exists and does not hold the digits\. Choose another folder"):
        write_digits(tmp_path / "mine")


def test_digits_set_has_its_own_statistics(digits: Path):
    images = load_image_set(digits / "calibration")
    assert images.pixels.dtype == torch.uint8
    assert images.pixels.shape[1:] == (1, 16, 16)
    assert (images.preprocessing.color, images.preprocessing.height) == ("L", 16)
    assert images.class_names == tuple("0123456789")
    values = normalised(images.pixels, images.preprocessing)
    assert float(values.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(values.std()) == pytest.approx(1.0, abs=1e-3)


def test_statistics_equal_the_definition_and_survive_a_constant_channel():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 5), np.uint8)
    pixels[:, 2] = 9
    mean, std = pixel_statistics(pixels)
    np.testing.assert_allclose(mean, (pixels / 255).mean(axis=(0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(std[:2], (pixels / 255).std(axis=(0, 2, 3))[:2], atol=1e-6)
    assert std[2] == 1.0


def test_statistics_are_exact_in_little_memory(monkeypatch: pytest.MonkeyPatch):
    pixels = np.random.default_rng(1).integers(0, 256, (401, 2, 50, 30), np.uint8)
    whole = pixel_statistics(pixels)
    monkeypatch.setattr(data_module, "COUNTED_AT_ONCE", 10_000)
    tracemalloc.start()
    assert pixel_statistics(pixels) == whole
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150_000 < 8 * pixels[:, 0].size
    monkeypatch.setattr(data_module, "COUNTED_AT_ONCE", 1)  # less than an image
    assert pixel_statistics(pixels[:3]) == pixel_statistics(np.concatenate([pixels[:3]] * 2))


def test_classes_in_linked_folders(tmp_path: Path):
    tree = write_tree(tmp_path / "tree")
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("a", "b"):
        (linked / name).symlink_to(tree / name)
    plain = load_image_set(tree)
    (tree / "a" / "again").symlink_to(linked)
    found = load_image_set(linked)
    assert torch.equal(found.pixels[:], plain.pixels[:])
    assert torch.equal(found.labels, plain.labels)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_array_and_folder_give_the_same_set(tmp_path: Path, mode: str):
    tree = write_tree(tmp_path / "tree", mode=mode)
    from_tree = load_image_set(tree)
    array = from_tree.pixels.numpy().transpose(0, 2, 3, 1)
    np.savez(tmp_path / "set.npz", image=array if mode == "RGB" else array[..., 0], label=from_tree.labels.numpy())
    from_array = load_image_set(tmp_path / "set.npz")
    assert from_tree.class_names == ("a", "b")
    assert from_array.class_names == ("0", "1")
    assert from_tree.preprocessing == from_array.preprocessing
    assert (from_tree.preprocessing.height, from_tree.preprocessing.width) == (5, 6)
    assert torch.equal(from_tree.pixels, from_array.pixels)
    assert torch.equal(from_tree.labels, from_array.labels)


def test_training_sees_the_pixels_that_inference_sees(tmp_path: Path):
    tree = write_tree(tmp_path / "tree", size=(20, 12))
    images = load_image_set(tree, size=8)
    assert images.preprocessing.shape == (3, 8, 8)
    expected = pixels_from_image(tree / "a" / "0.png", images.preprocessing)
    assert np.array_equal(images.pixels[0].numpy(), expected)


def test_colour_can_be_chosen(tmp_path: Path):
    assert load_image_set(write_tree(tmp_path / "tree"), color="L").pixels.shape[1] == 1


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"image": np.zeros((2, 4, 4), np.uint8)}, r"has no labels\. Expected an \.npz with 'image' and 'label'"),
        (
            {"image": np.zeros((2, 4, 4, 2), np.uint8), "label": np.arange(2)},
            r"got images of shape \[2, 4, 4, 2\], expe",
        ),
        ({"image": np.zeros((2, 4, 4), np.uint8), "label": np.array([0, -1])}, r"label -1 is outside the"),
    ],
)
def test_arrays_that_are_no_set(tmp_path: Path, arrays: dict[str, np.ndarray], text: str):
    np.savez(tmp_path / "set.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DynamicConfidenceError, match=text):
        load_image_set(tmp_path / "set.npz")


def test_folders_that_are_no_set(tmp_path: Path):
    with pytest.raises(DynamicConfidenceError, match=r"no such data set\. Expected one folder per class"):
        load_image_set(tmp_path / "missing")
    with pytest.raises(DynamicConfidenceError, match="expected one folder of images per class, got no folder in it"):
        load_image_set(tmp_path)
    (tmp_path / "class").mkdir()
    with pytest.raises(DynamicConfidenceError, match="no image in this folder"):
        load_image_set(tmp_path)
    (tmp_path / "class" / "a.png").write_bytes(b"not a picture")
    with pytest.raises(DynamicConfidenceError, match="not a readable image"):
        load_image_set(tmp_path)


def test_a_class_folder_without_an_image_is_named(tmp_path: Path):
    tree = write_tree(tmp_path / "tree")
    (tree / "c").mkdir()
    with pytest.raises(DynamicConfidenceError, match=r"tree/c: no image in this folder"):
        load_image_set(tree)


def test_a_folder_of_sets_is_no_set(tmp_path: Path):
    write_tree(tmp_path / "photos" / "train")
    write_tree(tmp_path / "photos" / "test")
    (tmp_path / "photos" / "__MACOSX").mkdir()
    text = r"photos: its folders hold folders \(test, train\), not images\. .* did you mean .*photos/train\?"
    with pytest.raises(DynamicConfidenceError, match=text):
        load_image_set(tmp_path / "photos")
    (tmp_path / "photos" / "train" / "__MACOSX").mkdir()
    assert load_image_set(tmp_path / "photos" / "train").class_names == ("a", "b")


def test_a_set_too_large_for_the_memory_stays_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tree = write_tree(tmp_path / "tree", count=4)
    whole = load_image_set(tree, size=8)
    monkeypatch.setattr(data_module, "LARGEST_IN_MEMORY", 8 * 3 * 8 * 8 - 1)
    lazy = load_image_set(tree, size=8)
    assert isinstance(lazy.pixels, PixelFiles)
    assert lazy.preprocessing == whole.preprocessing
    assert lazy.pixels.shape == whole.pixels.shape
    assert torch.equal(lazy.labels, whole.labels)
    for one, other in zip(split(lazy, 0.5, seed=1), split(whole, 0.5, seed=1), strict=True):
        assert isinstance(one.pixels, PixelFiles)
        assert torch.equal(one.pixels[:], other.pixels[:])
    assert torch.equal(lazy.pixels[torch.tensor([5, 1])], whole.pixels[torch.tensor([5, 1])])
    before = lazy.pixels.digest()
    assert before == load_image_set(tree, size=8).pixels.digest()  # type: ignore[union-attr]
    (tree / "a" / "0.png").write_bytes(b"not a picture")
    assert lazy.pixels.digest() != before
    with pytest.raises(DynamicConfidenceError, match=r"a/0\.png: not a readable image"):
        lazy.pixels[:1]
    with pytest.raises(DynamicConfidenceError, match=r"b/0\.png: has no label that the network knows"):
        load_image_set(tree, whole.preprocessing, ("a", "c"))


@pytest.mark.parametrize("labels", [[0, 10**12], [0, 2], [1, 2]])
def test_labels_without_names_count_from_0_without_a_gap(tmp_path: Path, labels: list[int]):
    np.savez(tmp_path / "set.npz", image=np.zeros((2, 5, 5), np.uint8), label=np.array(labels))
    with pytest.raises(
        DynamicConfidenceError, match=r"its labels are .*, expected 0, 1, 2, … with at least one image of"
    ):
        load_image_set(tmp_path / "set.npz")


def test_arrays_may_name_their_classes(tmp_path: Path):
    arrays = {"image": np.zeros((4, 5, 5), np.uint8), "label": np.array([0, 1, 1, 0])}
    np.savez(tmp_path / "set.npz", **arrays, class_names=np.array(["cat", "dog", "none"]))
    assert load_image_set(tmp_path / "set.npz").class_names == ("cat", "dog", "none")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist_files_are_read_by_torchvision(tmp_path: Path, name: str):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (20, 28, 28), np.uint8), np.arange(20) % 10
    write_idx(tmp_path / SETS[name].marker, "train", pixels, labels)
    write_idx(tmp_path / SETS[name].marker, "t10k", pixels[:10], labels[:10])
    assert set_in(tmp_path) == name
    images = load_image_set(tmp_path)
    assert torch.equal(images.pixels[:], torch.from_numpy(pixels)[:, None])
    assert images.labels.tolist() == labels.tolist()
    assert len(images.class_names) == 10
    assert images.preprocessing.shape == (1, 28, 28)
    assert len(read_set(name, tmp_path, train=False).labels) == 10
    (tmp_path / SETS[name].marker / "train-images-idx3-ubyte").write_bytes(b"half")
    with pytest.raises(DynamicConfidenceError, match=rf"the training part of {name} is missing or damaged .*dc-data"):
        load_image_set(tmp_path)


def test_cifar_files_are_read_by_torchvision_and_damaged_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (50, 3, 32, 32), np.uint8), [index % 10 for index in range(50)]
    for batch in range(5):
        rows = slice(10 * batch, 10 * batch + 10)
        content = {"data": pixels[rows].reshape(10, -1), "labels": labels[rows]}
        (folder / f"data_batch_{batch + 1}").write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with pytest.raises(DynamicConfidenceError, match="the training part of cifar10 is missing or damaged"):
        load_image_set(tmp_path)  # not the real files: the checksums differ
    monkeypatch.setattr(CIFAR10, "train_list", [(name, None) for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    images = load_image_set(tmp_path)
    assert torch.equal(images.pixels[:], torch.from_numpy(pixels))
    assert images.class_names == tuple("abcdefghij")
    assert images.labels.tolist() == labels


def test_unknown_sets_are_named(tmp_path: Path):
    assert set_in(tmp_path) is None
    with pytest.raises(DynamicConfidenceError, match="data set 'svhn' is unknown, known: cifar10, cifar100, mnist"):
        read_set("svhn", tmp_path, train=True)


def test_two_sets_in_one_folder_must_be_told_apart(tmp_path: Path):
    for name in ("mnist", "cifar10"):
        (tmp_path / SETS[name].marker).mkdir(parents=True)
    text = rf"holds cifar10 and mnist\. Say which: `dc-data cifar10 --root {tmp_path} -o cifar10`"
    with pytest.raises(DynamicConfidenceError, match=text):
        load_image_set(tmp_path)


def test_sets_of_torchvision_keep_their_size_and_classes(tmp_path: Path):
    for part in ("train", "t10k"):
        write_idx(tmp_path / SETS["mnist"].marker, part, np.zeros((20, 28, 28), np.uint8), np.arange(20) % 10)
    for option in ("size", "resize", "color"):
        with pytest.raises(DynamicConfidenceError, match="the images of mnist are not resized: leave --size and --res"):
            load_image_set(tmp_path, **{option: "L" if option == "color" else 14})
    known = load_image_set(tmp_path)
    assert load_image_set(tmp_path, known.preprocessing, known.class_names).class_names == known.class_names
    with pytest.raises(
        DynamicConfidenceError, match=r"the classes of mnist \(0 - zero, .*\) are not the network's \(a, b"
    ):
        load_image_set(tmp_path, known.preprocessing, tuple("abcdefghij"))


def test_a_folder_of_an_unknown_class_is_refused(tmp_path: Path):
    tree = write_tree(tmp_path / "tree")
    known = load_image_set(tree)
    with pytest.raises(
        DynamicConfidenceError, match=r"b/0\.png: has no label that the network knows \(its classes: a, c\)"
    ):
        load_image_set(tree, known.preprocessing, ("a", "c"))


def test_split_is_stratified_disjoint_complete_and_deterministic():
    images = toy_set((40, 10, 2))
    train, validation = split(images, 0.25, seed=3)
    assert torch.bincount(validation.labels).tolist() == [10, 2, 1]
    assert torch.bincount(train.labels).tolist() == [30, 8, 1]
    both = torch.cat([train.pixels, validation.pixels])[:, 0, 0, 0]
    assert sorted(both.tolist()) == list(range(52))
    again, _ = split(images, 0.25, seed=3)
    other, _ = split(images, 0.25, seed=4)
    assert torch.equal(train.pixels, again.pixels)
    assert not torch.equal(train.pixels, other.pixels)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_refuses_a_fraction_outside_0_to_1(fraction: float):
    with pytest.raises(DynamicConfidenceError, match=r"validation fraction .*: expected a number between 0 and 1"):
        split(toy_set((4, 4)), fraction, 0)


def test_split_refuses_a_class_of_one():
    with pytest.raises(DynamicConfidenceError, match="class '1' has a single image"):
        split(toy_set((4, 1)), 0.5, 0)


def test_normalised_is_the_written_formula():
    images = replace(toy_set((3,)), preprocessing=Preprocessing(color="L", height=2, width=2, mean=(0.4,), std=(0.5,)))
    values = normalised(images.pixels, images.preprocessing)
    np.testing.assert_allclose(values[2].numpy(), (2 / 255 - 0.4) / 0.5, rtol=1e-6)
