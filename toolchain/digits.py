"""Scikit-learn's handwritten digits as image files: real data that needs no download."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from ..runtime.errors import BackendMissing, DynamicConfidenceError
from .data import stratified

DIGIT_PARTS = {"train": 0.6, "calibration": 0.2, "test": 0.2}


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
            rows_of_part = stratified(np.asarray(labels), tuple(DIGIT_PARTS.values()), seed)
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
