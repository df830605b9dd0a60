"""The record of a study: what was measured, with which code, on which machine."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from typing import Any

import msgspec

from .. import __version__
from ..runtime.errors import DynamicConfidenceError
from ..runtime.files import write_atomically
from ..runtime.manifest_json import decode_whole
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


def require(holds: bool, message: str) -> None:
    """For the checks of a record's parts. Raises: ValueError, to which msgspec adds where in the file it is."""
    if not holds:
        raise ValueError(message)


def require_alike(**lists: Sized) -> None:
    """Raise a ValueError unless they have equally many entries, at least one."""
    found = {name: len(values) for name, values in lists.items()}
    alike = len(set(found.values())) == 1 and min(found.values()) > 0
    require(alike, f"{found} entries, expected equally many, at least one")


def require_times(ms: Iterable[float]) -> None:
    """Raise a ValueError unless these are times."""
    require(all(0 < value < math.inf for value in ms), "milliseconds must be positive and finite")


def read_record(path: Path, kind: Any, title: str, again: str) -> Any:
    """Read a typed record, or one of a union of them; `title` is what it is called, `again` how to get another.

    Raises: DynamicConfidenceError for what is no such record, with the key at fault.
    """
    try:
        content = path.read_bytes()
        if not content.strip():
            raise DynamicConfidenceError(f"{path}: is empty, expected {title}. {again}")
        return decode_whole(content, kind)
    except OSError as error:
        raise DynamicConfidenceError(f"{path}: cannot be read ({error.strerror}). {again}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DynamicConfidenceError(f"{path}: not {title} ({error}). {again}") from error


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
