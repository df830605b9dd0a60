"""The record of a study: what was measured, with which code, on which machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from .. import __version__
from ..runtime.errors import DynamicConfidenceError
from ..runtime.files import write_atomically
from .processor import processor

LIBRARIES = ("numpy", "onnx", "onnxruntime", "torch", "torchvision")


class RecordPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every part of a typed record: an unknown or a missing key is an error."""


def machine() -> dict[str, Any]:
    """Processor, cores, system and the versions of the libraries that compute."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "dynamic-confidence": __version__,
        "commit": commit(),
        **versions(LIBRARIES),
    }


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """Of each library its version, or that it is not installed."""
    from importlib import metadata

    found = {}
    for library in libraries:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = "not installed"
    return found


def commit() -> str:
    """Of the code that runs."""
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def write_study(path: Path, study: str, results: dict[str, Any]) -> None:
    """Write a record of plain values as JSON, whole or not at all."""
    record = {"study": study, "machine": machine(), "results": results}
    _write(path, json.dumps(record, indent=1, ensure_ascii=False).encode())


def write_record(path: Path, record: RecordPart) -> None:
    """Write a typed record as JSON, whole, or leave what was there."""
    _write(path, msgspec.json.format(msgspec.json.encode(record), indent=1))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content + b"\n")


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ, or which only one of the two has."""
    return [key for key in {**before, **now} if before.get(key) != now.get(key)]


def require_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise a DynamicConfidenceError, saying what differs, unless a record was measured as it would be now."""
    odd = next(iter(differing(before, now)), None)
    if odd is not None:
        raise DynamicConfidenceError(
            f"{path}: was measured with {odd} {before.get(odd)}, now it is {now.get(odd)}: the two do not belong into "
            "one table. Name another file with -o, or remove this one."
        )
