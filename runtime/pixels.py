"""One image or array becomes uint8 pixels, by the manifest's preprocessing."""

from __future__ import annotations

import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import DynamicConfidenceError
from .manifest import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
_DEEP_MODES = ("I", "F")
LARGEST_RESIZED = 2**26
"""Pixels an image may have after the resize: a strip of 30000 x 1 would grow to gigabytes before the crop."""
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError, ArithmeticError)
# A damaged header is parsed as Python, damaged zip fields ask for passwords, other compressions or endless memory.
BROKEN_ARRAY = (*_BROKEN_IMAGE, RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)


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


def pixels_from_files(files: Sequence[Path], preprocessing: Preprocessing) -> np.ndarray:
    """Decode image files to uint8 `[N, channel, height, width]`, several at once: Pillow lets go of the interpreter.

    Raises: DynamicConfidenceError as `pixels_from_image`, for the first file that cannot be read.
    """
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        return np.stack(list(pool.map(lambda file: pixels_from_image(file, preprocessing), files)))


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
