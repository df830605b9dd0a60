"""Every architecture by name: one line per network."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from torch import nn

from ..runtime.errors import DynamicConfidenceError
from .activations import activation_factory
from .resnet import BasicBlock, Bottleneck, ResNet
from .vgg import VGG16

FORMS = ("cifar", "imagenet")
SHORTCUTS = ("conv", "pad")


def _resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, ...],
    default_width: int,
    *,
    activation: str = "lsq",
    bits: int = 2,
    form: str = "cifar",
    width: int | None = None,
    classes: int = 10,
    in_channels: int = 3,
    shortcut: str = "conv",
) -> nn.Module:
    return ResNet(
        block,
        depths,
        activation=activation_factory(activation, bits),
        form=_known("form", form, FORMS),
        width=default_width if width is None else _positive("width", width),
        classes=_positive("classes", classes),
        in_channels=_positive("in_channels", in_channels),
        shortcut=_known("shortcut", shortcut, SHORTCUTS),
    )


def _vgg16(
    *,
    activation: str = "lsq",
    bits: int = 2,
    form: str = "cifar",
    width: int = 64,
    classes: int = 10,
    in_channels: int = 3,
) -> nn.Module:
    return VGG16(
        activation=activation_factory(activation, bits),
        form=_known("form", form, FORMS),
        width=_positive("width", width),
        classes=_positive("classes", classes),
        in_channels=_positive("in_channels", in_channels),
    )


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "resnet8": partial(_resnet, BasicBlock, (1, 1, 1), 16),
    "resnet18": partial(_resnet, BasicBlock, (2, 2, 2, 2), 64),
    "resnet20": partial(_resnet, BasicBlock, (3, 3, 3), 16),
    "resnet34": partial(_resnet, BasicBlock, (3, 4, 6, 3), 64),
    "resnet50": partial(_resnet, Bottleneck, (3, 4, 6, 3), 64),
    "vgg16": _vgg16,
}


def build(architecture: str, **arguments: Any) -> nn.Module:
    """Build a network from its name and arguments (activation, bits, form, width, classes, in_channels, shortcut).

    Raises: DynamicConfidenceError for an unknown name or argument; the nearest known one is suggested.
    """
    make = ARCHITECTURES[_known("architecture", architecture, ARCHITECTURES)]
    known = [p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in arguments:
        _known(f"{architecture}'s argument", name, known)
    return make(**arguments)


def _known(what: str, value: str, options: Collection[str]) -> str:
    if value not in options:
        near = difflib.get_close_matches(str(value), options, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise DynamicConfidenceError(f"{what} '{value}' is unknown, known: {', '.join(options)}.{hint}")
    return value


def _positive(what: str, value: int) -> int:
    if not (isinstance(value, int) and value > 0):
        raise DynamicConfidenceError(f"{what} {value}: expected a whole number above 0.")
    return value
