"""A data set by number: read when asked for, in the order of `labelled_arrays`, and told apart by name and content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import CLASSES, GREY

from dynamic_confidence.calib.labelled_images import LabelledImages, labelled_images
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.images import labelled_arrays


@pytest.fixture
def folder(pixels: np.ndarray, tmp_path: Path) -> Path:
    for number, image in enumerate(pixels[:10]):
        path = tmp_path / "data" / CLASSES[number % 4] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(path)
    return tmp_path / "data"


@pytest.fixture
def archive(pixels: np.ndarray, tmp_path: Path) -> Path:
    np.savez(tmp_path / "data.npz", image=pixels[:10], label=np.arange(10) % 4)
    return tmp_path / "data.npz"


def listed(path: Path) -> LabelledImages:
    return labelled_images(path, GREY, CLASSES)


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_it_is_the_set_that_is_read_at_once(kind: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(kind)
    images, (pixels, label) = listed(path), labelled_arrays(path, GREY, CLASSES)
    assert len(images) == 10
    np.testing.assert_array_equal(images.label, label)
    np.testing.assert_array_equal(images.pixels(slice(0, 10)), pixels)
    np.testing.assert_array_equal(images.pixels(slice(3, 7)), pixels[3:7])
    assert images.title == path.name


def test_a_file_is_read_only_when_it_is_asked_for(folder: Path):
    (folder / "zero" / "4.png").write_bytes(b"no image")
    images = listed(folder)
    broken = images.names.index("zero/4.png")
    assert images.pixels(slice(0, broken)).shape == (broken, 1, 12, 12)
    with pytest.raises(
        DynamicConfidenceError, match=r"zero/4\.png: not a readable image .*Put a good copy in its place"
    ):
        images.pixels(slice(0, 10))


def test_identity_is_names_and_labels_and_digest_is_content(folder: Path):
    before = listed(folder)
    whole, halves = before.digest(slice(0, 10)), [before.digest(slice(0, 5)), before.digest(slice(5, 10))]
    Image.new("L", (12, 12)).save(folder / before.names[7])
    after = listed(folder)
    assert after.identity() == before.identity()
    assert after.digest(slice(0, 10)) != whole
    assert after.digest(slice(0, 5)) == halves[0]
    assert after.digest(slice(5, 10)) != halves[1]
    (folder / after.names[7]).rename(folder / "zero" / "renamed.png")
    assert listed(folder).identity() != before.identity()


def test_other_pixels_or_labels_in_an_archive(archive: Path, pixels: np.ndarray):
    before = listed(archive)
    np.savez(archive, image=pixels[1:11], label=np.arange(10) % 4)
    assert listed(archive).identity() == before.identity()
    assert listed(archive).digest(slice(0, 3)) != before.digest(slice(0, 3))
    np.savez(archive, image=pixels[:10], label=np.arange(10) % 3)
    assert listed(archive).identity() != before.identity()


def test_a_file_that_vanishes(folder: Path):
    images = listed(folder)
    (folder / images.names[0]).unlink()
    with pytest.raises(DynamicConfidenceError, match=r"one/1\.png: cannot be read \(No such file"):
        images.digest(slice(0, 2))


def not_there(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def unknown_class(path: Path) -> None:
    (path / "two").rename(path / "second")


def no_image(path: Path) -> None:
    for file in path.rglob("*.png"):
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (not_there, r"data: no such data set\. Expected a folder with one folder of images per class, or an \.npz"),
        (unknown_class, r"second/\d\.png: has no label that the network knows \(its classes: zero, one, two, three\)"),
        (no_image, "data: no image in this folder"),
    ],
)
def test_what_is_no_data_set(folder: Path, spoil: Callable[[Path], None], message: str):
    spoil(folder)
    with pytest.raises(DynamicConfidenceError, match=message):
        listed(folder)


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_that_is_no_class(archive: Path, pixels: np.ndarray, label: int):
    np.savez(archive, image=pixels[:2], label=np.array([0, label]))
    with pytest.raises(
        DynamicConfidenceError, match=r"data\.npz: its labels lie in .*, expected 0\.\.3\. Use the data"
    ):
        listed(archive)
