"""A labelled data set by number: the images of a folder stay on disk until they are asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime.errors import DynamicConfidenceError
from ..runtime.images import image_files, labelled_arrays, labels_from_folders
from ..runtime.manifest import Preprocessing
from ..runtime.pixels import ARRAY_SUFFIXES, pixels_from_files


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images in a fixed order: `source` is their files, or (of an .npz) pixels uint8 `[sample, channel, y, x]`."""

    title: str
    """The folder's or file's name, for people."""
    names: tuple[str, ...]
    """One per sample: the path within the folder, or `[7]` within an .npz."""
    label: np.ndarray
    """int64 `[sample]`"""
    preprocessing: Preprocessing
    source: tuple[Path, ...] | np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, rows: slice) -> np.ndarray:
        """Read these images.

        Raises: DynamicConfidenceError that names the first file which is not a readable image.
        """
        chosen = self.source[rows]
        if isinstance(chosen, np.ndarray):
            return chosen
        try:
            return pixels_from_files(chosen, self.preprocessing)
        except DynamicConfidenceError as error:
            raise DynamicConfidenceError(f"{error} Put a good copy in its place, and run it again.") from error

    def identity(self) -> str:
        """SHA-256 of names and labels: which samples these are, and in which order, whatever the images hold."""
        lines = zip(self.names, self.label.tolist(), strict=True)
        return hashlib.sha256(b"".join(os.fsencode(f"{name}\0{label}\n") for name, label in lines)).hexdigest()

    def digest(self, rows: slice) -> str:
        """SHA-256 of the content of these images: the files' bytes, or the pixels.

        Raises: DynamicConfidenceError for a file that cannot be read.
        """
        chosen, found = self.source[rows], hashlib.sha256()
        for one in chosen:
            content = one.tobytes() if isinstance(one, np.ndarray) else _content(one)
            found.update(len(content).to_bytes(8, "little") + content)
        return found.hexdigest()


def labelled_images(path: Path, preprocessing: Preprocessing, class_names: Sequence[str]) -> LabelledImages:
    """List a labelled data set: a folder with one folder per class, or an .npz with 'image' and 'label'.

    Raises: DynamicConfidenceError when there is no image, or one without a label that the network knows.
    """
    title = path.resolve().name
    if path.suffix.lower() in ARRAY_SUFFIXES and not path.is_dir():
        pixels, label = labelled_arrays(path, preprocessing, class_names)
        if not (label.min() >= 0 and label.max() < len(class_names)):
            raise DynamicConfidenceError(
                f"{path}: its labels lie in {label.min()}..{label.max()}, expected 0..{len(class_names) - 1}. Use the "
                "data set that the network was trained for."
            )
        return LabelledImages(title, tuple(f"[{row}]" for row in range(len(label))), label, preprocessing, pixels)
    if not path.is_dir():
        raise DynamicConfidenceError(
            f"{path}: no such data set. Expected a folder with one folder of images per class, or an .npz."
        )
    files = image_files(path)
    names = tuple(file.relative_to(path).as_posix() for file in files)
    return LabelledImages(title, names, labels_from_folders(files, class_names), preprocessing, tuple(files))


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DynamicConfidenceError(f"{file}: cannot be read ({error.strerror}).") from error
