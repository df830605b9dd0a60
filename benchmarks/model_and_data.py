"""MODEL=DATA, as studies of several networks take it: a model.pt and a folder with the parts validation and test."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..runtime.errors import DynamicConfidenceError

PARTS = ("validation", "test")
Images = tuple[np.ndarray, np.ndarray]
"""Pixels `[image, channel, y, x]`, labels `[image]`."""


def model_and_parts(text: str) -> tuple[Path, list[Path]]:
    """Read MODEL=DATA: the model and the paths of the two `PARTS`.

    Raises: DynamicConfidenceError for another form, or a folder without them.
    """
    model, equals, data = text.partition("=")
    if not equals:
        raise DynamicConfidenceError(f"{text}: expected MODEL=DATA, for example model.pt=cifar10.")
    return Path(model), [_part(Path(data), part) for part in PARTS]


def spread(images: Images, count: int | None) -> Images:
    """So many of the images, evenly spread, since sets may lie class by class; all where there are no more."""
    found = len(images[0])
    wanted = min(count or found, found)
    rows = np.arange(wanted) * found // wanted
    return images[0][rows], images[1][rows]


def _part(folder: Path, part: str) -> Path:
    found = next((path for path in (folder / part, folder / f"{part}.npz") if path.exists()), None)
    if found is None:
        raise DynamicConfidenceError(
            f"{folder}: has no part '{part}' (a folder, or {part}.npz). `dc-data` makes such parts: "
            f"dc-data cifar10 --root DOWNLOADED -o {folder}."
        )
    return found
