"""Image sets as arrays on disk: of torchvision's, or of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .data import ImageSet, image_set_from_arrays, load_image_set
from .torchvision_sets import read_set


def parts_of_named(name: str, root: Path, download: bool) -> tuple[ImageSet, ImageSet]:
    """Return the training and the test part of one of torchvision's sets. Raises: as `torchvision_sets.read_set`."""
    train = image_set_from_arrays(read_set(name, root, train=True, download=download), root)
    test = read_set(name, root, train=False, download=download)
    return train, image_set_from_arrays(test, root, train.preprocessing)


def parts_of_own(source: Path, test: Path | None, size: int | None) -> tuple[ImageSet, ImageSet | None]:
    """Return one's own images, and test images of the same classes and size. Raises: as `data.load_image_set`."""
    whole = load_image_set(source, size=size)
    return whole, None if test is None else load_image_set(test, whole.preprocessing, whole.class_names)


def write_part(path: Path, image_set: ImageSet) -> None:
    """Write an .npz that every command reads: `image` uint8 `[N, channel, y, x]`, `label` int64, `class_names`."""
    arrays: dict[str, Any] = {
        "image": image_set.pixels[:].numpy(),
        "label": image_set.labels.numpy(),
        "class_names": np.array(image_set.class_names),
    }
    np.savez(path, **arrays)
