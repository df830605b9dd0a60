"""What tests import by name: a small random network, equal weights, images, MNIST's files, the development data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dynamic_confidence.benchmarks import networks
from dynamic_confidence.models.checkpoint import Checkpoint
from dynamic_confidence.runtime.manifest import Preprocessing

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"

GREY = Preprocessing(color="L", height=12, width=12, mean=(0.3,), std=(0.4,))
CLASSES = ("zero", "one", "two", "three")


def random_checkpoint(
    architecture: str = "resnet8", preprocessing: Preprocessing = GREY, *, width: int = 4, **arguments: object
) -> Checkpoint:
    """`networks.random_checkpoint`, small and with names for its classes."""
    checkpoint = networks.random_checkpoint(architecture, preprocessing, width=width, classes=len(CLASSES), **arguments)
    return replace(checkpoint, class_names=CLASSES)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved_image(path: Path, pixels: np.ndarray, **options: object) -> Path:
    """Write an image file, and the folder it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def write_idx(folder: Path, part: str, pixels: np.ndarray, labels: np.ndarray) -> None:
    """The files of MNIST: big-endian magic number, sizes, bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        header = np.array([0x800 + array.ndim, *array.shape], ">i4").tobytes()
        (folder / f"{part}-{kind}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())


def assert_same_weights(one: Checkpoint, other: Checkpoint) -> None:
    assert one.state_dict.keys() == other.state_dict.keys()
    for name, tensor in one.state_dict.items():
        assert torch.equal(tensor, other.state_dict[name]), name
