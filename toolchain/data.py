"""Labelled image sets for training: read with the runtime's own preprocessing, split, augmented."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from ..runtime.errors import BackendMissing, DynamicConfidenceError
from ..runtime.images import ARRAY_SUFFIXES, IMAGE_SUFFIXES, labelled_arrays, read_array
from ..runtime.manifest import Preprocessing

Color = Literal["RGB", "L"]
AUGMENTATIONS = ("none", "shift", "crop-flip")
DIGIT_PARTS = {"train": 0.6, "calibration": 0.2, "test": 0.2}
_GREY_MODES = frozenset({"1", "L", "LA"})


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A labelled set of images in memory."""

    pixels: Tensor
    """uint8 `[N, channel, y, x]`"""
    labels: Tensor
    """int64 `[N]`, indices into `class_names`"""
    class_names: tuple[str, ...]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> ImageSet:
        """Return the images of these rows `[n]`."""
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows])


def load_image_set(
    path: Path,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    size: int | None = None,
    color: Color | None = None,
) -> ImageSet:
    """Read an ImageFolder tree (one folder per class) or a .npz with `image` and `label`.

    Without `class_names` they are the folders' names in order, or "0", "1", … for arrays. Without `preprocessing` the
    colour and the size are those of the first image (`size` and `color` override them), and mean and standard
    deviation (of pixels / 255) are the set's own.
    Raises: DynamicConfidenceError when anything is missing, broken, without a label or of an unknown class.
    """
    names = _class_names(path) if class_names is None else tuple(class_names)
    wanted = preprocessing or _derived_preprocessing(path, size, color)
    with Console(stderr=True).status(f"reading {path.name} …"):
        pixels, labels = labelled_arrays(path, wanted, names)
    odd = labels[(labels < 0) | (labels >= len(names))]
    if len(odd):
        raise DynamicConfidenceError(f"{path}: label {odd[0]} is outside the {len(names)} classes 0..{len(names) - 1}.")
    if preprocessing is None:
        mean, std = pixel_statistics(pixels)
        wanted = Preprocessing(color=wanted.color, height=wanted.height, width=wanted.width, mean=mean, std=std)
    return ImageSet(torch.from_numpy(pixels), torch.from_numpy(labels), names, wanted)


def pixel_statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of uint8 pixels `[N, channel, y, x]` divided by 255."""
    values = np.arange(256) / 255.0
    means, deviations = [], []
    for channel in range(pixels.shape[1]):
        # The histogram keeps the sums exact and needs no float copy of the set.
        share = np.bincount(pixels[:, channel].ravel(), minlength=256) / pixels[:, channel].size
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


def augmented(pixels: Tensor, augment: str) -> Tensor:
    """Return a randomly changed copy of uint8 pixels `[batch, channel, y, x]`, from torch's random state.

    "shift" moves each image by up to an eighth of its size and repeats its edge; "crop-flip" also mirrors every second
    one; "none" returns the images as they are.
    """
    if augment not in AUGMENTATIONS:
        raise DynamicConfidenceError(f"augmentation '{augment}' is unknown, known: {', '.join(AUGMENTATIONS)}.")
    if augment == "none":
        return pixels
    count, _, height, width = pixels.shape
    # Clamped indices repeat the edge, which costs no padded copy.
    rows = (torch.arange(height) + _offsets(count, height)).clamp(0, height - 1)
    columns = (torch.arange(width) + _offsets(count, width)).clamp(0, width - 1)
    if augment == "crop-flip":
        columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    images = torch.arange(count)[:, None, None]
    return pixels[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


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
    train, validation = _stratified(image_set.labels.numpy(), (1.0 - fraction, fraction), seed)
    return image_set.take(torch.from_numpy(train)), image_set.take(torch.from_numpy(validation))


def write_digits(folder: Path, seed: int = 0) -> None:
    """Write scikit-learn's digits as 16x16 grey images `folder/{train,calibration,test}/<digit>/<index>.png`.

    The 1797 images of 8x8 pixels 0..16 are scaled to 0..255, enlarged bilinearly and split 60/20/20 within each digit.
    Digits written before are left as they are: they are moved into place whole, so they cannot be half there.
    Raises: BackendMissing without scikit-learn; DynamicConfidenceError when something else is in the way.
    """
    if folder.exists():
        if folder.is_dir() and {entry.name for entry in folder.iterdir()} == set(DIGIT_PARTS):
            return
        raise DynamicConfidenceError(
            f"{folder}: exists and does not hold the digits. Choose another folder or remove it."
        )
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise BackendMissing(
            "the digits need scikit-learn, which is not installed: `pip install 'dynamic-confidence[train]'`."
        ) from error
    from PIL import Image

    values, labels = load_digits(return_X_y=True)
    scaled = np.rint(np.asarray(values).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            whole = Path(temporary) / folder.name
            rows_of_part = _stratified(np.asarray(labels), tuple(DIGIT_PARTS.values()), seed)
            for part, rows in zip(DIGIT_PARTS, rows_of_part, strict=True):
                for row in rows:
                    file = whole / part / str(labels[row]) / f"{row:04d}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(scaled[row]).resize((16, 16), Image.Resampling.BILINEAR).save(file)
            whole.rename(folder)
    except OSError as error:
        raise DynamicConfidenceError(
            f"{folder}: cannot write there ({error.strerror}). Choose another folder."
        ) from error


def _stratified(labels: np.ndarray, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
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


def _offsets(count: int, size: int) -> Tensor:
    reach = max(1, size // 8)
    return torch.randint(-reach, reach + 1, (count, 1))


def _class_names(path: Path) -> tuple[str, ...]:
    if path.suffix.lower() in ARRAY_SUFFIXES and path.is_file():
        labels = read_array(path)[1]
        if labels is None or labels.size == 0:
            raise DynamicConfidenceError(f"{path}: has no labels. Expected an .npz with 'image' and 'label'.")
        return tuple(str(index) for index in range(int(labels.max()) + 1))
    if not path.is_dir():
        raise DynamicConfidenceError(
            f"{path}: no such data set. Expected one folder per class in a folder, or an .npz with 'image' and 'label'."
        )
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DynamicConfidenceError(f"{path}: expected one folder of images per class, got no folder in it.")
    return tuple(names)


def _derived_preprocessing(path: Path, size: int | None, color: Color | None) -> Preprocessing:
    native, (height, width) = _first_array(path) if path.suffix.lower() in ARRAY_SUFFIXES else _first_file(path)
    channels = 3 if (color or native) == "RGB" else 1
    return Preprocessing(
        color=color or native,
        height=size or height,
        width=size or width,
        mean=(0.0,) * channels,  # until the pixels are read
        std=(1.0,) * channels,
    )


def _first_array(path: Path) -> tuple[Color, tuple[int, int]]:
    shape = read_array(path)[0].shape
    if len(shape) == 3:
        return "L", (shape[1], shape[2])
    if len(shape) == 4 and shape[1] in (1, 3):
        return "RGB" if shape[1] == 3 else "L", (shape[2], shape[3])
    if len(shape) == 4 and shape[3] in (1, 3):
        return "RGB" if shape[3] == 3 else "L", (shape[1], shape[2])
    raise DynamicConfidenceError(
        f"{path}: got images of shape {list(shape)}, expected [N, y, x], [N, channel, y, x] or [N, y, x, channel] with "
        "1 or 3 channels."
    )


def _first_file(path: Path) -> tuple[Color, tuple[int, int]]:
    from PIL import Image, ImageOps

    files = [file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    if not files:
        raise DynamicConfidenceError(
            f"{path}: no image in this folder (looked for {' '.join(sorted(IMAGE_SUFFIXES))})."
        )
    first = min(files)
    try:
        with Image.open(first) as opened:
            image = ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DynamicConfidenceError(f"{first}: not a readable image ({error}).") from error
    return "L" if image.mode in _GREY_MODES else "RGB", (image.height, image.width)
