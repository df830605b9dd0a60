"""Sets in the files of their authors, read by torchvision: CIFAR-10, CIFAR-100, MNIST and what looks like it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.errors import BackendMissing, DynamicConfidenceError


@dataclass(frozen=True)
class Arrays:
    """Part of a set: pixels uint8 `[N, y, x, channel]` or `[N, y, x]`, labels int64 `[N]`, class names."""

    pixels: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """How torchvision calls a set, and the folder in its root that shows that it is there."""

    dataset: str
    marker: str


SETS = {
    "cifar10": Source("CIFAR10", "cifar-10-batches-py"),
    "cifar100": Source("CIFAR100", "cifar-100-python"),
    "mnist": Source("MNIST", "MNIST/raw"),
    "fashion-mnist": Source("FashionMNIST", "FashionMNIST/raw"),
}


def set_in(root: Path) -> str | None:
    """Return the name of the set whose files lie in this folder as torchvision writes them, or None.

    Raises: DynamicConfidenceError for several of them.
    """
    found = [name for name, source in SETS.items() if (root / source.marker).is_dir()]
    if len(found) > 1:
        raise DynamicConfidenceError(
            f"{root}: holds {' and '.join(found)}. Say which: `dc-data {found[0]} --root {root} -o {found[0]}`."
        )
    return found[0] if found else None


def read_set(name: str, root: Path, *, train: bool, download: bool = False) -> Arrays:
    """Read the training or the test part of a set; torchvision compares the files with known checksums.

    Raises: BackendMissing without torchvision; DynamicConfidenceError for an unknown name, missing or damaged files.
    """
    if name not in SETS:
        raise DynamicConfidenceError(f"data set '{name}' is unknown, known: {', '.join(SETS)}.")
    try:
        from torchvision import datasets
    except ImportError as error:
        raise BackendMissing(
            f"{name} is read by torchvision, which is not installed: `pip install 'dynamic-confidence[train]'`."
        ) from error
    try:
        part: Any = getattr(datasets, SETS[name].dataset)(root, train=train, download=download)
    except Exception as error:  # torchvision has no error class of its own: pickle, zip, struct, assertions
        part_name, reason = "training" if train else "test", str(error).partition("\n")[0] or type(error).__name__
        raise DynamicConfidenceError(
            f"{root}: the {part_name} part of {name} is missing or damaged ({reason}). "
            f"`dc-data {name} --root {root} --download -o {name}` fetches it."
        ) from error
    return Arrays(np.asarray(part.data), np.asarray(part.targets, np.int64), tuple(map(str, part.classes)))
