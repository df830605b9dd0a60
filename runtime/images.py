"""Image input: the files and arrays behind a path, one after another or as one labelled set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import DynamicConfidenceError
from .manifest import Preprocessing
from .pixels import (
    ARRAY_SUFFIXES,
    class_names_in,
    pixels_from_array,
    pixels_from_files,
    pixels_from_image,
    read_array,
)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
SHOWN = 4
"""Names that a message lists."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One input: uint8 pixels `[channel, height, width]`, and its class index where the data says it."""

    name: str
    pixels: np.ndarray
    label: int | None


@dataclass(frozen=True)
class Broken:
    """One input that could not be read, and why."""

    name: str
    reason: str


def iterate_samples(
    paths: Sequence[Path], preprocessing: Preprocessing, class_names: Sequence[str]
) -> Iterator[Sample | Broken]:
    """Yield every input behind these paths, one by one; what cannot be read is reported and does not end the rest.

    Image files in a folder named like a class carry that label (the ImageFolder layout).
    """
    for path in paths:
        try:
            files = _files(path)
        except DynamicConfidenceError as error:
            yield Broken(str(path), str(error))
            continue
        yield from _iterate(files, preprocessing, class_names)


def labelled_arrays(
    path: Path, preprocessing: Preprocessing, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Read a labelled data set (ImageFolder tree, or .npz) into pixels `[N, channel, height, width]` and labels `[N]`.

    Raises: DynamicConfidenceError when anything in it is broken or without a label: numbers come from whole sets only.
    """
    samples = []
    for item in iterate_samples([path], preprocessing, class_names):
        if isinstance(item, Broken):
            inside = item.name != str(path)
            raise DynamicConfidenceError(item.reason + " Remove it from the data set." * inside)
        if item.label is None:
            raise _unlabelled(item.name, class_names)
        samples.append(item)
    if not samples:
        raise DynamicConfidenceError(f"{path}: holds no image.")
    return np.stack([s.pixels for s in samples]), np.array([s.label for s in samples], np.int64)


def labels_from_folders(files: Sequence[Path], class_names: Sequence[str]) -> np.ndarray:
    """Return the class indices int64 `[N]` of image files: the folder that each lies in is named like its class.

    Raises: DynamicConfidenceError for a file in a folder of another name.
    """
    index_of = _index_of(class_names)
    for file in files:
        if file.parent.name not in index_of:
            raise _unlabelled(str(file), class_names)
    return np.array([index_of[file.parent.name] for file in files], np.int64)


def image_files(folder: Path) -> list[Path]:
    """Return the image files in a folder and the folders in it, in order; links are followed.

    Raises: DynamicConfidenceError when there is none, or a folder cannot be read.
    """
    found = sorted(file for file in _files_below(folder) if file.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DynamicConfidenceError(
            f"{folder}: no image in this folder (looked for {' '.join(sorted(IMAGE_SUFFIXES))})."
        )
    return found


def frames_from_path(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    """Read an input that varies in time, a folder of frames in name order or an array: `[T, channel, height, width]`.

    Raises: DynamicConfidenceError as for single images.
    """
    if path.is_dir():
        return pixels_from_files(image_files(path), preprocessing)
    if path.suffix.lower() not in ARRAY_SUFFIXES or not path.is_file():
        raise DynamicConfidenceError(
            f"{path}: expected a folder of frames or a .npy of shape [T, {', '.join(map(str, preprocessing.shape))}]."
        )
    return pixels_from_array(read_array(path)[0], preprocessing, str(path))


def listed(names: Sequence[object]) -> str:
    """Return the first names, for a message: "cat, dog, emu, fox, …"."""
    return ", ".join(map(str, names[:SHOWN])) + (", …" if len(names) > SHOWN else "")


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return image_files(path)
    if not path.is_file():
        raise DynamicConfidenceError(f"{path}: no such file or folder.")
    return [path]


def _files_below(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield the files in a folder and the folders in it; a link back to one of those `above` it is not followed."""
    place = os.path.realpath(folder)
    if place in above:
        return
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    yield from _files_below(Path(entry), (*above, place))
                elif entry.is_file():
                    yield Path(entry)
    except OSError as error:
        raise DynamicConfidenceError(f"{error.filename}: cannot be read ({error.strerror}).") from error


def _iterate(files: list[Path], preprocessing: Preprocessing, class_names: Sequence[str]) -> Iterator[Sample | Broken]:
    index_of = _index_of(class_names)
    for file in files:
        try:
            if file.suffix.lower() not in ARRAY_SUFFIXES:
                yield Sample(str(file), pixels_from_image(file, preprocessing), index_of.get(file.parent.name))
                continue
            array, labels = read_array(file)
            _check_names(file, tuple(class_names))
            stack = pixels_from_array(array, preprocessing, str(file))
            if labels is not None and labels.shape != (len(stack),):
                raise DynamicConfidenceError(f"{file}: {len(stack)} images but labels of shape {list(labels.shape)}.")
            if labels is not None and labels.dtype.kind not in "iu":
                raise DynamicConfidenceError(f"{file}: labels of type {labels.dtype}, expected whole numbers.")
        except DynamicConfidenceError as error:
            yield Broken(str(file), str(error))
            continue
        for row, pixels in enumerate(stack):
            name = f"{file}[{row}]" if len(stack) > 1 else str(file)
            yield Sample(name, pixels, None if labels is None else int(labels[row]))


def _index_of(class_names: Sequence[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(class_names)}


def _numbered(class_names: Sequence[str]) -> bool:
    """Whether the classes are only numbered, as those of many imported networks."""
    return tuple(class_names) == tuple(map(str, range(len(class_names))))


def _unlabelled(name: str, class_names: Sequence[str]) -> DynamicConfidenceError:
    naming = " Classes that are only numbered are given names by `dc-import --class-names`."
    return DynamicConfidenceError(
        f"{name}: has no label that the network knows (its classes: {listed(class_names)}). Expected one folder per "
        f"class, named like it, or an .npz with 'image' and 'label'.{naming if _numbered(class_names) else ''}"
    )


def _check_names(file: Path, wanted: tuple[str, ...]) -> None:
    """Labels that count other classes, or the same in another order, would be wrong without a word.

    A network whose classes are only numbered takes any names.
    """
    names = class_names_in(file)
    if names is None or names == wanted or (_numbered(wanted) and set(names) != set(wanted)):
        return
    raise DynamicConfidenceError(
        f"{file}: its classes are {listed(names)}, the network's {listed(wanted)}: expected the same, in the same "
        "order."
    )
