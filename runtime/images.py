"""Image input: files, folders and arrays become uint8 pixels by the manifest's preprocessing."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import DynamicConfidenceError
from .manifest import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
_DEEP_MODES = ("I", "F")
LARGEST_RESIZED = 2**26
"""Pixels an image may have after the resize: a strip of 30000 x 1 would grow to gigabytes before the crop."""
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError, ArithmeticError)
# A damaged header is parsed as Python, damaged zip fields ask for passwords, other compressions or endless memory.
BROKEN_ARRAY = (*_BROKEN_IMAGE, RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)


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


def pixels_from_image(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    """Decode, orient, convert, resize and crop an image file to uint8 `[channel, height, width]`.

    Raises: DynamicConfidenceError when the file is not a readable image, or one too long and thin to resize.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(_DEEP_MODES):  # Pillow would clip the values at 255
                raise DynamicConfidenceError(
                    f"{path}: has more than 8 bits per channel (mode {opened.mode}), expected 8. Convert it first."
                )
            image = _resized(ImageOps.exif_transpose(opened).convert(preprocessing.color), preprocessing, path)
    except (*_BROKEN_IMAGE, Image.DecompressionBombError) as error:
        raise DynamicConfidenceError(f"{path}: not a readable image ({error}).") from error
    pixels = np.asarray(image, np.uint8)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _resized(image: Image.Image, preprocessing: Preprocessing, path: Path) -> Image.Image:
    from PIL import Image

    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    height, width = preprocessing.height, preprocessing.width
    if preprocessing.resize_shorter_side is None:
        return image if image.size == (width, height) else image.resize((width, height), resampling)
    factor = preprocessing.resize_shorter_side / min(image.size)
    size = round(image.width * factor), round(image.height * factor)
    if size[0] * size[1] > LARGEST_RESIZED:
        raise DynamicConfidenceError(
            f"{path}: {image.width} x {image.height} pixels would become {size[0]} x {size[1]}, expected at most "
            f"{LARGEST_RESIZED} pixels. Crop it first."
        )
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return image.resize(size, resampling).crop((left, top, left + width, top + height))


def pixels_from_array(array: np.ndarray, preprocessing: Preprocessing, source: str) -> np.ndarray:
    """Check an array and return it as uint8 `[N, channel, height, width]`.

    Accepts one image or a stack of them, channels first or last; a grey image may leave its channel out. Arrays are
    never resized or converted: their values must be pixels already.
    Raises: DynamicConfidenceError with the expected shape and type.
    """
    channels, height, width = preprocessing.shape
    wanted = f"uint8 pixels 0..255 of shape [N, {channels}, {height}, {width}] or [N, {height}, {width}, {channels}]"
    if array.dtype != np.uint8:
        nan = np.issubdtype(array.dtype, np.floating) and bool(np.isnan(array).any())
        raise DynamicConfidenceError(
            f"{source}: got {array.dtype} values{', NaN among them' if nan else ''}, expected {wanted}. "
            "The normalisation is part of the network: give it the pixels as they are."
        )
    for layout, axes in (
        ((channels, height, width), (0, 1, 2, 3)),
        ((height, width, channels), (0, 3, 1, 2)),
        *((((height, width), None),) if channels == 1 else ()),
    ):
        if array.shape[-len(layout) :] == layout and array.ndim - len(layout) in (0, 1):
            stack = array if array.ndim > len(layout) else array[None]
            return np.ascontiguousarray(stack[:, None] if axes is None else stack.transpose(axes))
    raise DynamicConfidenceError(
        f"{source}: got an array of shape {list(array.shape)}, expected {wanted}. "
        "Image files are resized; arrays are not."
    )


def read_array(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a .npy, or the images (`image`, `images`, `x`, the only array) and labels (`label`, …) of a .npz.

    Raises: DynamicConfidenceError when the file is broken, holds Python objects, or has no such arrays.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        with loaded:
            names = loaded.files
            image = next((name for name in ("image", "images", "x") if name in names), None)
            label = next((name for name in ("label", "labels", "y") if name in names), None)
            if image is None and len(names) == 1:
                image = names[0]
            if image is None:
                raise DynamicConfidenceError(f"{path}: holds {names}, expected an array named 'image' (and 'label').")
            return loaded[image], None if label is None else loaded[label]
    except BROKEN_ARRAY as error:
        raise DynamicConfidenceError(f"{path}: not a readable .npy or .npz file ({error}).") from error


def class_names_in(path: Path) -> tuple[str, ...] | None:
    """Return the `class_names` that a .npz gives its labels, or None. Raises: as `read_array`."""
    if path.suffix.lower() != ".npz":
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return tuple(map(str, arrays["class_names"])) if "class_names" in arrays.files else None
    except BROKEN_ARRAY as error:
        raise DynamicConfidenceError(f"{path}: not a readable .npy or .npz file ({error}).") from error


def iterate_samples(
    paths: Sequence[Path], preprocessing: Preprocessing, class_names: Sequence[str]
) -> Iterator[Sample | Broken]:
    """Yield every input behind these paths, one by one; what cannot be read is reported and does not end the rest.

    Image files in a folder named like a class carry that label (the ImageFolder layout).
    """
    index_of = {name: index for index, name in enumerate(class_names)}
    for path in paths:
        try:
            files = _files(path)
        except DynamicConfidenceError as error:
            yield Broken(str(path), str(error))
            continue
        yield from _iterate(files, preprocessing, index_of)


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
            known = ", ".join(class_names[:4]) + (", …" if len(class_names) > 4 else "")
            raise DynamicConfidenceError(
                f"{item.name}: has no label that the network knows (its classes: {known}). Expected one folder "
                f"per class, named like it, or an .npz with 'image' and 'label'.{_numbered(class_names)}"
            )
        samples.append(item)
    if not samples:
        raise DynamicConfidenceError(f"{path}: holds no image.")
    return np.stack([s.pixels for s in samples]), np.array([s.label for s in samples], np.int64)


def image_files(folder: Path) -> list[Path]:
    """Return the image files in a folder and the folders in it, in order.

    Raises: DynamicConfidenceError when there is none.
    """
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    if not found:
        raise DynamicConfidenceError(
            f"{folder}: no image in this folder (looked for {' '.join(sorted(IMAGE_SUFFIXES))})."
        )
    return found


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return image_files(path)
    if not path.is_file():
        raise DynamicConfidenceError(f"{path}: no such file or folder.")
    return [path]


def _iterate(files: list[Path], preprocessing: Preprocessing, index_of: dict[str, int]) -> Iterator[Sample | Broken]:
    for file in files:
        try:
            if file.suffix.lower() not in ARRAY_SUFFIXES:
                yield Sample(str(file), pixels_from_image(file, preprocessing), index_of.get(file.parent.name))
                continue
            array, labels = read_array(file)
            _check_names(file, tuple(index_of))
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


def _numbered(class_names: Sequence[str]) -> str:
    """What to do about a network that was imported without the names of its classes."""
    if tuple(class_names) != tuple(map(str, range(len(class_names)))):
        return ""
    return " Classes that are only numbered are given names by `dc-import --class-names`."


def _check_names(file: Path, wanted: tuple[str, ...]) -> None:
    """Labels that count other classes, or the same in another order, would be wrong without a word.

    A network whose classes are only numbered, as many imported ones, takes any names.
    """
    names = class_names_in(file)
    numbered = wanted == tuple(map(str, range(len(wanted))))
    if names is None or names == wanted or (numbered and set(names) != set(wanted)):
        return
    raise DynamicConfidenceError(
        f"{file}: its classes are {', '.join(names[:4])}{', …' if len(names) > 4 else ''}, the network's "
        f"{', '.join(wanted[:4])}{', …' if len(wanted) > 4 else ''}: expected the same, in the same order."
    )


def frames_from_path(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    """Read an input that varies in time, a folder of frames in name order or an array: `[T, channel, height, width]`.

    Raises: DynamicConfidenceError as for single images.
    """
    if path.is_dir():
        return np.stack([pixels_from_image(file, preprocessing) for file in _files(path)])
    if path.suffix.lower() not in ARRAY_SUFFIXES or not path.is_file():
        raise DynamicConfidenceError(
            f"{path}: expected a folder of frames or a .npy of shape [T, {', '.join(map(str, preprocessing.shape))}]."
        )
    return pixels_from_array(read_array(path)[0], preprocessing, str(path))
