"""Which network a set of weights belongs to: every registered one is compared, key by key and shape by shape."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..models.registry import RESNETS, build

Shapes = Mapping[str, tuple[int, ...]]
LARGEST = 2**16
"""Width, classes or channels of a network; with 10^8 its layers have more numbers than can be counted."""


def shapes_of(weights: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def candidates(shapes: Shapes) -> list[tuple[str, dict[str, Any]]]:
    """Every architecture, with the arguments that can be read off the names and shapes of a set of weights.

    What cannot be read keeps its default: the comparison then says what is missing.
    """
    activation = {"activation": _activation(shapes)}
    return [(name, {**activation, **read(shapes)}) for name, read in READERS.items()]


def expected_shapes(architecture: str, arguments: Mapping[str, Any]) -> Shapes:
    """The names and shapes of a network's weights, without their memory."""
    return _built(architecture, tuple(sorted(arguments.items())))


@functools.lru_cache(maxsize=64)
def _built(architecture: str, arguments: tuple[tuple[str, Any], ...]) -> Shapes:
    with torch.device("meta"):
        return shapes_of(build(architecture, **dict(arguments)).state_dict())


def _activation(shapes: Shapes) -> str:
    if any(name.endswith(".scale") for name in shapes):
        return "lsq"
    return "qcfs" if any(name.endswith(".threshold") for name in shapes) else "relu"


def _resnet_arguments(shapes: Shapes) -> dict[str, Any]:
    return _known(
        width=_size(shapes, "conv1.weight", 0),
        classes=_size(shapes, "fc.weight", 0),
        in_channels=_size(shapes, "conv1.weight", 1),
        form="imagenet" if _size(shapes, "conv1.weight", 3) == 7 else "cifar",
        shortcut="conv" if any(".downsample." in name for name in shapes) else "pad",
    )


def _vgg_arguments(shapes: Shapes) -> dict[str, Any]:
    width, features = _size(shapes, "features.0.weight", 0), _size(shapes, "classifier.0.weight", 1)
    linear = [m[0] for name in shapes if (m := re.fullmatch(r"classifier\.\d+\.weight", name))]
    last = max(linear, key=lambda name: int(name.split(".")[1]), default="classifier.0.weight")
    return _known(
        width=width,
        classes=_size(shapes, last, 0),
        in_channels=_size(shapes, "features.0.weight", 1),
        form="imagenet" if width and features == 49 * 8 * width else "cifar",
        hidden=0 if last == "classifier.0.weight" else _size(shapes, "classifier.0.weight", 0),
    )


def _size(shapes: Shapes, name: str, axis: int) -> int | None:
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis and 0 < shape[axis] <= LARGEST else None


def _known(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


READERS = {**dict.fromkeys(RESNETS, _resnet_arguments), "vgg16": _vgg_arguments}
