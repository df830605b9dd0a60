"""The `model.pt` format: architecture name, arguments, weights, preprocessing and class names; never a pickled module.

{"format": "dynamic-confidence/model", "version": 1,
 "architecture": "resnet20", "arguments": {"width": 16, …}, "state_dict": {…},
 "preprocessing": {"color": "RGB", "height": 32, …}, "class_names": […], "notes": {"recipe": …}}
"""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import warnings
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from ..runtime.errors import DynamicConfidenceError
from ..runtime.files import write_atomically
from ..runtime.manifest import Preprocessing
from .quantiser import positive_scales
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
        with torch.random.fork_rng(devices=[]):  # the random weights it starts with are overwritten
            network = build(self.architecture, **self.arguments)
        unfit = _misfits(network.state_dict(), self.state_dict)
        if unfit:
            raise DynamicConfidenceError(
                f"the weights do not fit {self.architecture} {self.arguments}: {'; '.join(unfit[:3])}"
                f"{f'; and {len(unfit) - 3} more' if len(unfit) > 3 else ''}. "
                "Foreign checkpoints are converted with `dc-import`."
            )
        network.load_state_dict(self.state_dict)
        positive_scales(network)
        return network.eval()


def _misfits(expected: dict[str, Tensor], got: dict[str, Tensor]) -> list[str]:
    missing = [f"'{name}' is missing" for name in expected if name not in got]
    surplus = [f"'{name}' is unexpected" for name in got if name not in expected]
    shapes = [
        f"'{name}' has shape {list(got[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in got and got[name].shape != tensor.shape
    ]
    return missing + surplus + shapes


def sha256_of(path: Path) -> str:
    """Hash a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def safe_load(path: Path) -> Any:
    """torch.load that never runs code from the file.

    Raises: DynamicConfidenceError when the file is missing, is no checkpoint, or is a pickle that would run code.
    """
    if not path.is_file():
        raise DynamicConfidenceError(
            f"{path}: no such file. Train one with `dc-train` or convert one with `dc-import`."
        )
    if path.suffix == ".onnx":
        raise DynamicConfidenceError(f"{path}: an ONNX file, expected a checkpoint (.pt) as `dc-train` writes it.")
    _check_whole(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the pickle protocol of junk: the error says enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DynamicConfidenceError(
            f"{path}: not loaded, because it holds more than weights or is no checkpoint at all, and unpickling such a "
            "file can run code. Save `model.state_dict()` with torch and convert it with `dc-import`."
        ) from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "TorchScript" in reason:
            raise DynamicConfidenceError(
                f"{path}: a TorchScript program, expected weights. Save the network's `state_dict()` with torch and "
                "convert it with `dc-import`."
            ) from error
        raise DynamicConfidenceError(
            f"{path}: not a checkpoint (torch.load: {reason}). Expected a file written by `dc-train` or `dc-import`."
        ) from error


def _check_whole(path: Path) -> None:
    """torch.load does not look at the checksums of the zip that a checkpoint is: a flipped bit would be a weight."""
    if not zipfile.is_zipfile(path):
        return  # of before torch 1.6, or no checkpoint
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, struct.error) as error:
        damaged = str(error)
    if damaged is not None:
        raise DynamicConfidenceError(
            f"{path}: is damaged (checksum of {damaged}). Copy it again from where it came, or train it again."
        )


class _Plain(msgspec.Struct):
    """The part of the file that is no tensor, with its types."""

    architecture: str
    arguments: dict[str, Any]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    notes: dict[str, Any]


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a `model.pt`.

    Raises: DynamicConfidenceError for anything that is not one, with the command that makes one.
    """
    content = safe_load(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DynamicConfidenceError(
            f"{path}: a torch file, but not a `model.pt` of this toolchain. If it holds the weights of a known "
            f"network, convert it: `dc-import {path.name} -o model.pt`."
        )
    if content.get("version") != VERSION or set(content) != _KEYS:
        odd = ", ".join(sorted(set(content) ^ _KEYS)) or "none"
        raise DynamicConfidenceError(
            f"{path}: version {content.get('version')} of the format (unknown or missing keys: {odd}), expected "
            f"version {VERSION}. Write it again with this release's `dc-train` or `dc-import`."
        )
    try:
        plain = msgspec.convert({name: content[name] for name in _Plain.__struct_fields__}, _Plain)
        return Checkpoint(**msgspec.structs.asdict(plain), state_dict=_tensors(content["state_dict"]))
    except msgspec.ValidationError as error:
        raise DynamicConfidenceError(f"{path}: {error}. Write it again with `dc-train` or `dc-import`.") from error


def _tensors(state_dict: Any) -> dict[str, Tensor]:
    if not isinstance(state_dict, dict) or not all(isinstance(tensor, Tensor) for tensor in state_dict.values()):
        raise msgspec.ValidationError("Expected tensors by name - at `$.state_dict`")
    return state_dict


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
    write_torch_file(path, content)


def write_torch_file(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values as a torch file, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())
