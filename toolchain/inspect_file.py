"""What a network file says about itself: a checkpoint, an exported network or a plan, as plain values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from ..runtime.errors import DynamicConfidenceError
from ..runtime.manifest import Manifest
from ..runtime.network_file import FORMATS, read_manifest
from ..runtime.plan_file import read_plan

CHECKPOINTS = (".pt", ".pth")


def inspect_file(path: Path) -> dict[str, Any]:
    """Read a `.pt`, `.onnx` or `.plan` and return its facts; only a `.pt` needs torch, and none of them a GPU.

    Raises: DynamicConfidenceError for a file that is none of these, or a broken one.
    """
    known = ", ".join((*CHECKPOINTS, *FORMATS))
    if path.is_dir() or path.suffix not in (*CHECKPOINTS, *FORMATS):
        if not path.exists():
            raise DynamicConfidenceError(f"{path}: no such file. Give one of {known}.")
        found = "is a folder" if path.is_dir() else f"is named '{path.suffix}'"
        raise DynamicConfidenceError(
            f"{path}: {found}, expected {known}. Of checkpoints that others trained, `dc-import --dry-run` shows what "
            "they hold."
        )
    if path.suffix in CHECKPOINTS:
        return _checkpoint(path)
    if path.suffix == ".plan":
        plan = read_plan(path)
        return _network(path, plan.manifest) | {"engine": msgspec.to_builtins(plan.engine)}
    return _network(path, read_manifest(path))


def _network(path: Path, manifest: Manifest) -> dict[str, Any]:
    values = [math.prod(int(dim) for dim in state.shape if dim != "N") for state in manifest.states]
    return {
        "kind": "plan" if path.suffix == ".plan" else "exported network",
        "bytes": path.stat().st_size,
        "state_bytes_per_input": 4 * sum(values),
        "manifest": msgspec.to_builtins(manifest),
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    from ..models.checkpoint import load_checkpoint, sha256_of

    checkpoint = load_checkpoint(path)
    return {
        "kind": "checkpoint",
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "architecture": checkpoint.architecture,
        "arguments": checkpoint.arguments,
        "parameters": sum(tensor.numel() for tensor in checkpoint.state_dict.values()),
        "preprocessing": msgspec.to_builtins(checkpoint.preprocessing),
        "class_names": list(checkpoint.class_names),
        "notes": checkpoint.notes,
    }
