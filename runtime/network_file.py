"""The network file of any kind, chosen by its suffix: read its manifest and limits, write a new calibration into it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

from .errors import DynamicConfidenceError
from .manifest import Calibration, Manifest

FORMATS = {".onnx": "onnx_file", ".plan": "plan_file"}
"""Suffix -> module in `runtime/` with these three functions."""


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a network file. Raises: DynamicConfidenceError for an unknown kind or a broken file."""
    return _format(path).read_manifest(path)


def largest_batch(path: Path) -> int | None:
    """Return how many inputs the network takes at once: a plan was built for so many, None is no limit.

    Raises: DynamicConfidenceError for an unknown kind or a broken file.
    """
    return _format(path).largest_batch(path)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Replace the calibration of a network file, whole or not at all. Raises: as `read_manifest`."""
    _format(path).write_calibration(path, calibration)


def by_suffix(table: Mapping[str, str], path: Path) -> str:
    """Look up the kind of a network file; an unknown one is an error that lists the known ones."""
    if path.is_dir():
        raise DynamicConfidenceError(f"{path}: is a folder, expected a network file ({', '.join(table)}).")
    if path.suffix not in table:
        raise DynamicConfidenceError(
            f"{path}: no engine runs '{path.suffix}' files, known: {', '.join(table)}. "
            "Make one with `dc-export model.pt`."
        )
    return table[path.suffix]


def _format(path: Path) -> ModuleType:
    return import_module(f".{by_suffix(FORMATS, path)}", __package__)
