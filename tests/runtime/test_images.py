"""Files, folders and arrays, one after another or as one labelled set; what is broken does not end the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import noise, saved_image

from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.images import (
    Broken,
    Sample,
    frames_from_path,
    image_files,
    iterate_samples,
    labelled_arrays,
    labels_from_folders,
)
from dynamic_confidence.runtime.manifest import Preprocessing

COLOUR = Preprocessing(color="RGB", height=4, width=6, mean=(0.0,) * 3, std=(1.0,) * 3)
GREY = Preprocessing(color="L", height=4, width=6, mean=(0.0,), std=(1.0,))
NAMES = ("cat", "dog")


def tree(folder: Path) -> Path:
    """Two classes, a stray folder and a file that is no image."""
    for index, name in enumerate(("cat", "cat", "dog", "stray")):
        saved_image(folder / name / f"{index}.PNG", noise(4, 6, 3, seed=index), format="PNG")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_labels_come_from_the_folders(tmp_path: Path):
    samples = list(iterate_samples([tree(tmp_path / "set")], COLOUR, NAMES))
    assert [s.label for s in samples if isinstance(s, Sample)] == [0, 0, 1, None]
    assert [Path(s.name).name for s in samples] == ["0.PNG", "1.PNG", "2.PNG", "3.PNG"]
    for index, sample in enumerate(samples):
        assert isinstance(sample, Sample)
        np.testing.assert_array_equal(sample.pixels, noise(4, 6, 3, seed=index).transpose(2, 0, 1))


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path):
    folder, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    for index, path in enumerate((folder / "cat" / "0.png", elsewhere / "1.png", elsewhere / "deeper" / "2.png")):
        saved_image(path, noise(4, 6, 3, seed=index))
    (folder / "dog").symlink_to(elsewhere)
    (folder / "emu").symlink_to(elsewhere)  # twice the same images is no loop
    (folder / "cat" / "around").symlink_to(folder)
    (elsewhere / "deeper" / "back").symlink_to(folder / "cat")
    found = [file.relative_to(folder).as_posix() for file in image_files(folder)]
    own = [f"{name}/{file}" for name in ("dog", "emu") for file in ("1.png", "deeper/2.png", "deeper/back/0.png")]
    assert found == ["cat/0.png", *own]
    samples = [s for s in iterate_samples([folder], COLOUR, NAMES) if isinstance(s, Sample)]
    assert [s.label for s in samples[:2]] == [0, 1]
    np.testing.assert_array_equal(samples[1].pixels, noise(4, 6, 3, seed=1).transpose(2, 0, 1))


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cat").symlink_to("cat")
    with pytest.raises(DynamicConfidenceError, match=r"set/cat: cannot be read \(Too many levels of symbolic links\)"):
        image_files(tmp_path / "set")


def test_labels_from_the_names_of_folders():
    files = [Path(f"set/{name}/{index}.png") for index, name in enumerate(("dog", "cat", "dog"))]
    found = labels_from_folders(files, NAMES)
    assert (found.tolist(), found.dtype) == ([1, 0, 1], np.int64)
    with pytest.raises(DynamicConfidenceError, match=r"set/cat/1\.png: has no label that the network knows \(its cla"):
        labels_from_folders(files, ("dog",))
    text = r"its classes: 0, 1, 2, 3, …\)\. Expected .* Classes that are only numbered are given names by `dc-import"
    with pytest.raises(DynamicConfidenceError, match=text):
        labels_from_folders(files, tuple("01234"))


def test_labels_come_from_an_npz(tmp_path: Path):
    np.savez(tmp_path / "a.npz", image=noise(3, 4, 6, 3), label=np.array([1, 0, 1]))
    samples = list(iterate_samples([tmp_path / "a.npz"], COLOUR, NAMES))
    assert [s.label for s in samples if isinstance(s, Sample)] == [1, 0, 1]
    assert [s.name for s in samples] == [f"{tmp_path / 'a.npz'}[{row}]" for row in range(3)]


def test_a_single_image_in_an_array_bears_the_name_of_its_file(tmp_path: Path):
    np.save(tmp_path / "a.npy", noise(4, 6))
    (sample,) = iterate_samples([tmp_path / "a.npy"], GREY, NAMES)
    assert sample.name == str(tmp_path / "a.npy")


def test_a_broken_file_does_not_end_the_rest(tmp_path: Path):
    folder = tree(tmp_path / "set")
    (folder / "cat" / "1.PNG").write_bytes(b"damaged")
    np.savez(tmp_path / "b.npz", image=noise(2, 4, 6, 3), label=np.array([1]))
    np.save(tmp_path / "c.npy", np.zeros((4, 6, 3)))
    np.save(tmp_path / "d.npy", noise(4, 6, 3))
    items = list(iterate_samples([folder, *(tmp_path / f for f in ("b.npz", "c.npy", "d.npy"))], COLOUR, NAMES))
    assert [isinstance(item, Broken) for item in items] == [False, True, False, False, True, True, False]
    reasons = [item.reason for item in items if isinstance(item, Broken)]
    for reason, wanted in zip(
        reasons, ("1.PNG: not a readable image", "2 images but labels of shape [1]", "got float64 values"), strict=True
    ):
        assert wanted in reason


def test_a_missing_path_and_an_empty_folder_do_not_end_the_rest(tmp_path: Path):
    good = saved_image(tmp_path / "a.png", noise(4, 6, 3))
    (tmp_path / "empty").mkdir()
    paths = [tmp_path / "missing.png", good, tmp_path / "empty"]
    missing, sample, empty = iterate_samples(paths, COLOUR, NAMES)
    assert isinstance(missing, Broken)
    assert "missing.png: no such file or folder" in missing.reason
    assert isinstance(sample, Sample)
    assert isinstance(empty, Broken)
    assert "empty: no image in this folder (looked for .bmp" in empty.reason


@pytest.mark.parametrize("error", [MemoryError("all gone"), ZeroDivisionError("division by zero"), ValueError("odd")])
def test_an_image_that_cannot_be_resized_does_not_end_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    resize, failed = Image.Image.resize, []

    def first_fails(self, *arguments, **options):
        if not failed:
            failed.append(self)
            raise error
        return resize(self, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", first_fails)
    files = [saved_image(tmp_path / f"{name}.png", noise(9, 9, 3)) for name in "ab"]
    broken, good = iterate_samples(files, COLOUR, NAMES)
    assert isinstance(broken, Broken)
    assert f"a.png: not a readable image ({error})" in broken.reason
    assert isinstance(good, Sample)


def test_labelled_arrays_reads_a_whole_set(tmp_path: Path):
    folder = tree(tmp_path / "set")
    (folder / "stray" / "3.PNG").unlink()
    pixels, labels = labelled_arrays(folder, COLOUR, NAMES)
    assert pixels.shape == (3, 3, 4, 6)
    np.testing.assert_array_equal(labels, [0, 0, 1])
    assert labels.dtype == np.int64


def test_labelled_arrays_refuses_what_is_not_whole(tmp_path: Path):
    folder = tree(tmp_path / "set")
    with pytest.raises(
        DynamicConfidenceError,
        match=r"3\.PNG: has no label that the network knows \(its classes: cat, dog\)\. Expected .* or an \.npz",
    ):
        labelled_arrays(folder, COLOUR, NAMES)
    with pytest.raises(DynamicConfidenceError, match=r"has no label .* \(its classes: a, b, c, d, …\)"):
        labelled_arrays(folder, COLOUR, tuple("abcdef"))
    (folder / "cat" / "0.PNG").write_bytes(b"")
    with pytest.raises(DynamicConfidenceError, match=r"0\.PNG: not a readable image .* Remove it from the data set"):
        labelled_arrays(folder, COLOUR, NAMES)


def test_labels_of_other_classes_are_refused(tmp_path: Path):
    path = tmp_path / "a.npz"
    np.savez(path, image=noise(2, *COLOUR.shape), label=np.array([0, 1]), class_names=np.array(["cat", "dog"]))
    for names in (("cat", "dog"), ("0", "1")):  # an imported network may not know more than numbers
        assert labelled_arrays(path, COLOUR, names)[1].tolist() == [0, 1]
    for names in (("dog", "cat"), ("cat", "dog", "bird")):
        with pytest.raises(DynamicConfidenceError, match=r"its classes are cat, dog, the network's .*same order"):
            labelled_arrays(path, COLOUR, names)
    np.savez(path, image=noise(2, *COLOUR.shape), label=np.array([0, 1]), class_names=np.array(["1", "0"]))
    with pytest.raises(DynamicConfidenceError, match=r"its classes are 1, 0, the network's 0, 1: expected the same"):
        labelled_arrays(path, COLOUR, ("0", "1"))


def test_labelled_arrays_refuses_an_empty_array(tmp_path: Path):
    np.savez(tmp_path / "a.npz", image=np.zeros((0, 4, 6), np.uint8), label=np.zeros(0, np.int64))
    with pytest.raises(DynamicConfidenceError, match=r"a\.npz: holds no image"):
        labelled_arrays(tmp_path / "a.npz", GREY, NAMES)


@pytest.mark.parametrize("label", [np.array([0.5, 1.0]), np.array([np.nan, 1.0]), np.array(["cat", "dog"])])
def test_labels_that_are_no_class_indices_are_refused(tmp_path: Path, label: np.ndarray):
    np.savez(tmp_path / "a.npz", image=noise(2, 4, 6), label=label)
    with pytest.raises(DynamicConfidenceError, match=r"a\.npz: labels of type .*, expected whole numbers"):
        labelled_arrays(tmp_path / "a.npz", GREY, NAMES)


def test_frames_from_a_folder_in_name_order_and_from_an_array(tmp_path: Path):
    frames = noise(3, 4, 6)
    for index in (2, 0, 1):
        saved_image(tmp_path / "film" / f"{index}.png", frames[index])
    np.testing.assert_array_equal(frames_from_path(tmp_path / "film", GREY)[:, 0], frames)
    np.save(tmp_path / "film.npy", frames)
    np.testing.assert_array_equal(frames_from_path(tmp_path / "film.npy", GREY)[:, 0], frames)


@pytest.mark.parametrize("name", ["missing.npy", "image.png"])
def test_frames_from_anything_else_are_refused(tmp_path: Path, name: str):
    saved_image(tmp_path / "image.png", noise(4, 6))
    with pytest.raises(DynamicConfidenceError, match=r"expected a folder of frames or a \.npy of shape \[T, 1, 4, 6\]"):
        frames_from_path(tmp_path / name, GREY)
