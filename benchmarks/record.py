"""The record of a study: what was measured, with which code, on which machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import __version__
from ..runtime.files import write_atomically
from .processor import processor

LIBRARIES = ("numpy", "onnx", "onnxruntime", "torch", "torchvision")


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


def write_record(path: Path, study: str, results: dict[str, Any]) -> None:
    """Write a record as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"study": study, "machine": machine(), "results": results}
    write_atomically(path, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
