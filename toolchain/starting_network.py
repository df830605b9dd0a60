"""The network a training starts from: fresh weights, or a trained network whose ReLUs become quantisers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..models.activations import ACTIVATIONS, activation_arguments
from ..models.checkpoint import Checkpoint
from ..models.registry import build
from ..runtime.errors import DynamicConfidenceError
from ..runtime.manifest import Preprocessing


def untrained(
    architecture: str, arguments: dict[str, Any], preprocessing: Preprocessing, class_names: tuple[str, ...], seed: int
) -> Checkpoint:
    """Return a freshly initialised network for these classes and images; the same seed gives the same weights."""
    complete = {**arguments, "classes": len(class_names), "in_channels": preprocessing.channels}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(architecture, **complete)
    return Checkpoint(architecture, complete, network.state_dict(), preprocessing, class_names)


def continued(
    checkpoint: Checkpoint, activation: str | None = None, bits: int | None = None, levels: int | None = None
) -> Checkpoint:
    """Return a trained network to go on from, with every weight it has.

    The ReLUs of a float network become fresh quantisers (lsq, unless `activation` says qcfs, or relu to keep them); a
    quantised network stays as it is.
    Raises: DynamicConfidenceError when a quantised network is to become another one.
    """
    has = _activation_of(checkpoint)
    if has["activation"] != "relu":
        for name, value in (("activation", activation), ("bits", bits), ("levels", levels)):
            if value not in (None, has.get(name)):
                raise DynamicConfidenceError(
                    f"the checkpoint is quantised already ({', '.join(f'{key} {value}' for key, value in has.items())})"
                    f". Leave --{name} out to fine-tune it, or start from the float network."
                )
        return checkpoint
    kept = {key: value for key, value in checkpoint.arguments.items() if key not in ("activation", "bits", "levels")}
    arguments = {**kept, **activation_arguments(activation or "lsq", bits, levels)}
    with torch.random.fork_rng(devices=[]):
        fresh = build(checkpoint.architecture, **arguments).state_dict()
    return replace(checkpoint, arguments=arguments, state_dict={**fresh, **checkpoint.state_dict})


def _activation_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the network's activation as arguments of `build`: {"activation": "lsq", "bits": 2}."""
    arguments = checkpoint.arguments
    name = arguments.get("activation", "lsq")
    option = ACTIVATIONS[name].option if name in ACTIVATIONS else None
    return activation_arguments(name, **({option: arguments.get(option)} if option else {}))
