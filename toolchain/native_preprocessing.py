"""The preprocessing that changes a set's images least: the colour and the size of the first one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from ..runtime.errors import DynamicConfidenceError
from ..runtime.images import image_files
from ..runtime.manifest import Preprocessing
from ..runtime.pixels import ARRAY_SUFFIXES, read_array

Color = Literal["RGB", "L"]
First = tuple[Color, int, int]
"""Colour, height and width of a set's first image."""
_GREY_MODES = frozenset({"1", "L", "LA"})


def native_preprocessing(
    first: First, size: int | None = None, color: Color | None = None, resize: int | None = None
) -> Preprocessing:
    """Return the preprocessing of a set whose first image has this colour, height and width; options override it."""
    native, height, width = first
    channels = 3 if (color or native) == "RGB" else 1
    return Preprocessing(
        color=color or native,
        height=size or height,
        width=size or width,
        mean=(0.0,) * channels,  # until the pixels are read
        std=(1.0,) * channels,
        resize_shorter_side=resize,
    )


def first_image(path: Path) -> First:
    """Return what the first image of a folder or an array is. Raises: DynamicConfidenceError where there is none."""
    return shape_of(read_array(path)[0], path) if path.suffix.lower() in ARRAY_SUFFIXES else _first_file(path)


def shape_of(pixels: np.ndarray, source: Path) -> First:
    """Read colour and size off an array of images. Raises: DynamicConfidenceError for another shape."""
    shape = pixels.shape
    if len(shape) == 3:
        return "L", shape[1], shape[2]
    if len(shape) == 4 and shape[1] in (1, 3):
        return "RGB" if shape[1] == 3 else "L", shape[2], shape[3]
    if len(shape) == 4 and shape[3] in (1, 3):
        return "RGB" if shape[3] == 3 else "L", shape[1], shape[2]
    raise DynamicConfidenceError(
        f"{source}: got images of shape {list(shape)}, expected [N, y, x], [N, channel, y, x] or [N, y, x, channel] "
        "with 1 or 3 channels."
    )


def _first_file(path: Path) -> First:
    from PIL import Image, ImageOps

    first = image_files(path)[0]
    try:
        with Image.open(first) as opened:
            image = ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DynamicConfidenceError(f"{first}: not a readable image ({error}).") from error
    return "L" if image.mode in _GREY_MODES else "RGB", image.height, image.width
