"""Where a training stands after an epoch: its numbers, and the resume file it can go on from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from ..models.checkpoint import Checkpoint, safe_load, write_torch_file
from ..runtime.errors import DynamicConfidenceError
from .data import ImageSet

FORMAT = "dynamic-confidence/training"


@dataclass(frozen=True)
class EpochReport:
    """What one epoch gave."""

    epoch: int
    epochs: int
    loss: float
    """Mean cross-entropy over the training images."""
    accuracy: float
    """Share of the validation images, 0..1."""
    best_accuracy: float


@dataclass(frozen=True)
class Progress:
    """How far a training is, and its best network so far."""

    epoch: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def origin_of(
    checkpoint: Checkpoint, train_set: ImageSet, validation_set: ImageSet, options: dict[str, Any]
) -> dict[str, Any]:
    """Return what a resume file must agree on to be of this training, as plain values."""
    return {
        **options,
        "architecture": checkpoint.architecture,
        "arguments": dict(checkpoint.arguments),
        "preprocessing": msgspec.to_builtins(train_set.preprocessing),
        "class names": list(train_set.class_names),
        "starting weights": _digest(*checkpoint.state_dict.values()),
        "training data": _digest_of(train_set),
        "validation data": _digest_of(validation_set),
    }


def copied_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights as they are now, on the CPU: training goes on changing the network's own."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _digest_of(image_set: ImageSet) -> str:
    if isinstance(image_set.pixels, Tensor):
        return _digest(image_set.pixels, image_set.labels)
    return image_set.pixels.digest() + _digest(image_set.labels)


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_state(
    path: Path, origin: dict[str, Any], network: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write the resume file, whole or not at all."""
    content = {
        "format": FORMAT,
        "origin": origin,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": {entry.name: getattr(progress, entry.name) for entry in fields(progress)},
    }
    write_torch_file(path, content)


def resumed(path: Path, origin: dict[str, Any], network: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Load a resume file into the network and the optimiser.

    Raises: DynamicConfidenceError when it is broken or belongs to another training.
    """
    remedy = "Delete it or use `--fresh` to begin anew."
    try:
        content = safe_load(path)
    except DynamicConfidenceError as error:
        raise DynamicConfidenceError(f"{path}: not a readable resume file. {remedy}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DynamicConfidenceError(f"{path}: not a resume file of `dc-train`. {remedy}")
    try:
        saved = content["origin"]
        other = [_difference(key, saved.get(key), value) for key, value in origin.items() if saved.get(key) != value]
        if other:
            raise DynamicConfidenceError(f"{path}: the resume file of another training ({', '.join(other)}). {remedy}")
        network.load_state_dict(content["network"])
        optimizer.load_state_dict(content["optimizer"])
        progress = Progress(**content["progress"])
        if not 0 <= progress.epoch <= origin["epochs"]:
            raise ValueError(f"epoch {progress.epoch} of {origin['epochs']}")
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise DynamicConfidenceError(f"{path}: not a whole resume file ({reason}). {remedy}") from error
    return progress


def _difference(key: str, saved: Any, wanted: Any) -> str:
    return f"{key} {saved}, now {wanted}" if isinstance(wanted, int | float) else f"another {key}"
