"""The `model.pt` format: architecture name, arguments, weights, preprocessing and class names; never a pickled module.

    {"format": "dynamic-confidence/model", "version": 1,
     "architecture": "resnet20", "arguments": {"width": 16, …}, "state_dict": {…},
     "preprocessing": {"color": "RGB", "height": 32, …}, "class_names": […], "notes": {"recipe": …}}
"""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from ..runtime.errors import DynamicConfidenceError
from ..runtime.files import atomic_path
from ..runtime.manifest import Preprocessing
from .lsq import positive_scales
from .registry import build

FORMAT = "dynamic-confidence/model"
VERSION = 1
_KEYS = {"format", "version", "architecture", "arguments", "state_dict", "preprocessing", "class_names", "notes"}


@dataclass(frozen=True)
class Checkpoint:
    """A trained network with all that is needed to use it."""

    architecture: str
    arguments: dict[str, Any]
    state_dict: dict[str, Tensor]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    notes: dict[str, Any] = field(default_factory=dict)
    """How it was made: recipe, data, accuracies. Plain values only."""

    def network(self) -> nn.Module:
        """Build the network and load the weights, in evaluation mode.

        Raises: DynamicConfidenceError when the weights do not fit the architecture or a quantiser's scale is not
        positive.
        """
        network = build(self.architecture, **self.arguments)
        try:
            network.load_state_dict(self.state_dict)
        except RuntimeError as error:
            raise DynamicConfidenceError(
                f"the weights do not fit {self.architecture} {self.arguments}: {error}. "
                "Foreign checkpoints are converted with `dc-import`."
            ) from error
        positive_scales(network)
        return network.eval()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file.read())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def safe_load(path: Path) -> Any:
    """torch.load that never runs code from the file.

    Raises: DynamicConfidenceError when the file is missing, is no checkpoint, or is a pickle that would run code.
    """
    if not path.is_file():
        raise DynamicConfidenceError(f"{path}: no such file. Train one with `dc-train` or convert one with `dc-import`.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DynamicConfidenceError(
            f"{path}: not loaded, because it holds more than weights or is no checkpoint at all, and unpickling such a "
            "file can run code. Save `model.state_dict()` with torch and convert it with `dc-import`."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise DynamicConfidenceError(
            f"{path}: not a checkpoint (torch.load: {str(error).splitlines()[0] if str(error) else type(error).__name__}). "
            "Expected a file written by `dc-train` or `dc-import`."
        ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a `model.pt`.

    Raises: DynamicConfidenceError for anything that is not one, with the command that makes one.
    """
    content = safe_load(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DynamicConfidenceError(
            f"{path}: a torch file, but not a `model.pt` of this toolchain. If it holds the weights of a known network, "
            f"convert it: `dc-import {path.name} -o model.pt`."
        )
    if content.get("version") != VERSION or set(content) != _KEYS:
        odd = ", ".join(sorted(set(content) ^ _KEYS)) or "none"
        raise DynamicConfidenceError(
            f"{path}: version {content.get('version')} of the format (unknown or missing keys: {odd}), expected version "
            f"{VERSION}. Write it again with this release's `dc-train` or `dc-import`."
        )
    try:
        preprocessing = msgspec.convert(content["preprocessing"], Preprocessing)
        class_names = msgspec.convert(content["class_names"], tuple[str, ...])
    except msgspec.ValidationError as error:
        raise DynamicConfidenceError(f"{path}: {error}. Write it again with `dc-train` or `dc-import`.") from error
    return Checkpoint(
        architecture=content["architecture"],
        arguments=content["arguments"],
        state_dict=content["state_dict"],
        preprocessing=preprocessing,
        class_names=class_names,
        notes=content["notes"],
    )


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a `model.pt`, whole or not at all."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": checkpoint.architecture,
        "arguments": dict(checkpoint.arguments),
        "state_dict": {name: tensor.detach().cpu().clone() for name, tensor in checkpoint.state_dict.items()},
        "preprocessing": msgspec.to_builtins(checkpoint.preprocessing),
        "class_names": list(checkpoint.class_names),
        "notes": dict(checkpoint.notes),
    }
    with atomic_path(path) as part:
        torch.save(content, part)
