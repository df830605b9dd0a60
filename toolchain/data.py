"""Labelled image sets for training: read with the runtime's own preprocessing, and split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from ..runtime.errors import DynamicConfidenceError
from ..runtime.images import image_files, labelled_arrays, labels_from_folders, listed
from ..runtime.manifest import Preprocessing
from ..runtime.pixels import ARRAY_SUFFIXES, class_names_in, pixels_from_array, read_array
from .native_preprocessing import Color, first_image, native_preprocessing, shape_of
from .pixel_files import PixelFiles
from .torchvision_sets import Arrays, read_set, set_in

LARGEST_IN_MEMORY = 4 * 2**30
"""Bytes of pixels; image files that have more are read batch by batch."""
STATISTICS_FROM = 5_000
"""Images that mean and standard deviation are taken from where they are read batch by batch."""
COUNTED_AT_ONCE = 2**22
"""Pixels: `np.bincount` needs eight bytes for each."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A labelled set of images."""

    pixels: Tensor | PixelFiles
    """uint8 `[N, channel, y, x]`, in memory or on disk"""
    labels: Tensor
    """int64 `[N]`, indices into `class_names`"""
    class_names: tuple[str, ...]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> ImageSet:
        """Return the images of these rows `[n]`; files stay on disk."""
        pixels = self.pixels[rows] if isinstance(self.pixels, Tensor) else self.pixels.subset(rows)
        return replace(self, pixels=pixels, labels=self.labels[rows])


def load_image_set(
    path: Path,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    size: int | None = None,
    color: Color | None = None,
    resize: int | None = None,
) -> ImageSet:
    """Read an ImageFolder tree (one folder per class), a .npz with `image` and `label`, or torchvision's files.

    Of torchvision's files (`torchvision_sets`) the training part is read. Without `class_names` they are the set's own:
    the folders' names in order, or "0", "1", … for arrays that do not say. Without `preprocessing` the colour and the
    size are those of the first image (`size`, `resize` of the shorter side and `color` override them), and mean and
    standard deviation (of pixels / 255) are the set's own.
    Raises: DynamicConfidenceError when anything is missing, broken, without a label or of an unknown class.
    """
    with Console(stderr=True).status(f"reading {path.name} …"):
        name = set_in(path)
        if name:
            arrays = read_set(name, path, train=True)
            if size is not None or resize is not None or color is not None:
                raise DynamicConfidenceError(
                    f"{path}: the images of {name} are not resized: leave --size and --resize out."
                )
            if class_names is not None and tuple(class_names) != arrays.class_names:
                raise DynamicConfidenceError(
                    f"{path}: the classes of {name} ({listed(arrays.class_names)}) are not the network's "
                    f"({listed(class_names)})."
                )
            return image_set_from_arrays(arrays, path, preprocessing)
        names = _class_names(path) if class_names is None else tuple(class_names)
        wanted = preprocessing or native_preprocessing(first_image(path), size, color, resize)
        pixels, labels = _labelled(path, wanted, names)
        return _image_set(path, pixels, labels, names, wanted, measure=preprocessing is None)


def image_set_from_arrays(arrays: Arrays, source: Path, preprocessing: Preprocessing | None = None) -> ImageSet:
    """Return arrays in memory as an image set; `preprocessing` None: its own colour, size and statistics.

    Raises: DynamicConfidenceError for arrays that are no images, or do not fit the preprocessing.
    """
    wanted = preprocessing or native_preprocessing(shape_of(arrays.pixels, source))
    pixels = pixels_from_array(arrays.pixels, wanted, str(source))
    return _image_set(source, pixels, arrays.labels, arrays.class_names, wanted, measure=preprocessing is None)


def _image_set(
    path: Path,
    pixels: np.ndarray | PixelFiles,
    labels: np.ndarray,
    names: tuple[str, ...],
    preprocessing: Preprocessing,
    measure: bool,
) -> ImageSet:
    """Check the labels; `measure` mean and standard deviation where the preprocessing does not have them yet."""
    odd = labels[(labels < 0) | (labels >= len(names))]
    if len(odd):
        raise DynamicConfidenceError(f"{path}: label {odd[0]} is outside the {len(names)} classes 0..{len(names) - 1}.")
    read = pixels if isinstance(pixels, PixelFiles) else torch.from_numpy(pixels)
    if measure:
        mean, std = pixel_statistics(_some(read).numpy())
        preprocessing = msgspec.structs.replace(preprocessing, mean=mean, std=std)
        read = PixelFiles(read.files, preprocessing) if isinstance(read, PixelFiles) else read
    return ImageSet(read, torch.from_numpy(labels), names, preprocessing)


def pixel_statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of uint8 pixels `[N, channel, y, x]` divided by 255."""
    values = np.arange(256) / 255.0
    together = max(1, COUNTED_AT_ONCE // int(np.prod(pixels.shape[2:])))
    means, deviations = [], []
    for channel in range(pixels.shape[1]):
        # The histogram keeps the sums exact and needs no float copy of the set.
        counts = np.zeros(256, np.int64)
        for start in range(0, len(pixels), together):
            counts += np.bincount(pixels[start : start + together, channel].ravel(), minlength=256)
        share = counts / counts.sum()
        mean = float(share @ values)
        means.append(round(mean, 6))
        deviations.append(
            round(float(np.sqrt(share @ (values - mean) ** 2)), 6) or 1.0
        )  # a constant channel carries nothing, whatever it is divided by
    return tuple(means), tuple(deviations)


def normalised(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return what the quantised network sees of uint8 pixels `[batch, channel, y, x]`: (p / 255 - mean) / std."""
    mean = torch.tensor(preprocessing.mean, device=pixels.device).reshape(-1, 1, 1)
    std = torch.tensor(preprocessing.std, device=pixels.device).reshape(-1, 1, 1)
    # Rows of channels, not channels of rows: torch reads the strides of a shuffled grey batch as channels-last, and on
    # AVX-512 processors with several threads oneDNN's gradient of such 1x1 convolutions corrupts memory (torch 2.15).
    return ((pixels.float() / 255.0 - mean) / std).clone(memory_format=torch.contiguous_format)


def split(image_set: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split into (train, validation), the validation set holding `fraction` of every class, at least one image of it.

    Raises: DynamicConfidenceError when the fraction is not between 0 and 1 or a class has a single image.
    """
    if not 0.0 < fraction < 1.0:
        raise DynamicConfidenceError(f"validation fraction {fraction:g}: expected a number between 0 and 1.")
    counts = torch.bincount(image_set.labels, minlength=len(image_set.class_names)).tolist()
    for name, count in zip(image_set.class_names, counts, strict=True):
        if count == 1:
            raise DynamicConfidenceError(
                f"class '{name}' has a single image, which cannot be in both sets: add images, or give a validation "
                "set of its own with --validation."
            )
    train, validation = stratified(image_set.labels.numpy(), (1.0 - fraction, fraction), seed)
    return image_set.take(torch.from_numpy(train)), image_set.take(torch.from_numpy(validation))


def classes_missing(image_set: ImageSet, other: ImageSet) -> list[str]:
    """Return the names of the classes that have images in the other set, of the same classes, and none in this one."""
    counts = [torch.bincount(each.labels, minlength=len(other.class_names)).tolist() for each in (image_set, other)]
    return [name for name, here, there in zip(other.class_names, *counts, strict=True) if there and not here]


def stratified(labels: np.ndarray, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Cut the rows of every class into parts of these fractions (at least one row each); sorted rows per part."""
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in fractions]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        sizes = [max(1, round(len(rows) * fraction)) for fraction in fractions[1:]]
        first = max(1, len(rows) - sum(sizes))
        for part, piece in zip(parts, np.split(rows, np.cumsum([first, *sizes[:-1]])), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]


def _labelled(
    path: Path, preprocessing: Preprocessing, names: tuple[str, ...]
) -> tuple[np.ndarray | PixelFiles, np.ndarray]:
    """Read pixels and labels; of a folder too large for the memory, the names of its files."""
    files = image_files(path) if path.is_dir() else []
    if len(files) * int(np.prod(preprocessing.shape)) <= LARGEST_IN_MEMORY:
        return labelled_arrays(path, preprocessing, names)
    return PixelFiles(files, preprocessing), labels_from_folders(files, names)


def _some(pixels: Tensor | PixelFiles) -> Tensor:
    """Return pixels to take statistics from: all there are in memory, of files evenly spread ones."""
    return (
        pixels
        if isinstance(pixels, Tensor)
        else pixels[torch.arange(0, len(pixels), -(-len(pixels) // STATISTICS_FROM))]
    )


def _class_names(path: Path) -> tuple[str, ...]:
    if path.suffix.lower() in ARRAY_SUFFIXES and path.is_file():
        labels = read_array(path)[1]
        if labels is None or labels.size == 0:
            raise DynamicConfidenceError(f"{path}: has no labels. Expected an .npz with 'image' and 'label'.")
        named = class_names_in(path)
        if named is not None:
            return named
        classes = np.unique(labels)
        if classes[0] >= 0 and not np.array_equal(classes, np.arange(len(classes))):
            raise DynamicConfidenceError(
                f"{path}: its labels are {listed(classes.tolist())} to {classes[-1]}, expected 0, 1, 2, … with at "
                "least one image of each. Name the classes where some have none: an array `class_names`."
            )
        return tuple(map(str, range(len(classes))))
    if not path.is_dir():
        raise DynamicConfidenceError(
            f"{path}: no such data set. Expected one folder per class in a folder, or an .npz with 'image' and 'label'."
        )
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    parts = [name for name in ("train.npz", "validation.npz") if (path / name).is_file()]
    if len(parts) == 2:
        raise DynamicConfidenceError(
            f"{path}: holds the parts that `dc-data` wrote. Name them: --data {path / parts[0]} --validation "
            f"{path / parts[1]}."
        )
    folders = [folder for folder in folders if not folder.name.startswith("__")]  # what archives leave behind
    if not folders:
        raise DynamicConfidenceError(f"{path}: expected one folder of images per class, got no folder in it.")
    for folder in folders:
        files = image_files(folder)  # a class without an image would be a class that is never learned
        if all(file.parent != folder for file in files):
            meant = next((each for each in folders if each.name == "train"), folder)
            raise DynamicConfidenceError(
                f"{path}: its folders hold folders ({listed([each.name for each in folders])}), not images. "
                f"Expected one folder of images per class; did you mean {meant}?"
            )
    return tuple(folder.name for folder in folders)
