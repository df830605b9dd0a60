"""What is measured: the network files and the images for each, read and checked before anything is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...calib.labelled_images import LabelledImages, labelled_images
from ...runtime.errors import DynamicConfidenceError
from ...runtime.network_file import read_manifest
from .measure import Track


@dataclass(frozen=True, eq=False)
class Subject:
    """A network file, and images with the pixels that it takes."""

    path: Path
    images: LabelledImages
    pixels: np.ndarray
    """uint8 `[image, channel, y, x]`"""

    def only(self, count: int) -> Subject:
        """The same with so many of the images, or all where there are fewer."""
        rows = chosen_rows(len(self.images), count)
        return Subject(self.path, subset(self.images, rows), np.ascontiguousarray(self.pixels[rows]))


def read_subjects(paths: Sequence[Path], data: Path, asked: int | None, most: int, track: Track) -> dict[Path, Subject]:
    """Read manifests and images: as many as are asked for, else all, `most` at most.

    Raises: DynamicConfidenceError for a broken file or image, labels that do not fit, or too few images.
    """
    found: dict[Path, Subject] = {}
    for path in track(list(dict.fromkeys(paths)), "reading images"):
        manifest = read_manifest(path)
        whole = labelled_images(data, manifest.input.preprocessing, manifest.class_names)
        if asked is not None and asked > len(whole):
            raise DynamicConfidenceError(f"--images {asked}: {data} holds {len(whole)}, expected that many at most.")
        images = subset(whole, chosen_rows(len(whole), asked or most))
        found[path] = Subject(path, images, images.pixels(slice(None)))
    return found


def chosen_rows(total: int, count: int) -> list[int]:
    """So many of `total`, or all, evenly spread and in their order: sets are often sorted by class."""
    count = min(count, total)
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


def subset(images: LabelledImages, rows: list[int]) -> LabelledImages:
    """These of the images."""
    source = images.source
    return replace(
        images,
        names=tuple(images.names[row] for row in rows),
        label=images.label[rows],
        source=source[rows] if isinstance(source, np.ndarray) else tuple(source[row] for row in rows),
    )
