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


RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...], int]] = {
    "resnet8": (BasicBlock, (1, 1, 1), 16),
    "resnet18": (BasicBlock, (2, 2, 2, 2), 64),
    "resnet20": (BasicBlock, (3, 3, 3), 16),
    "resnet32": (BasicBlock, (5, 5, 5), 16),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 64),
    "resnet44": (BasicBlock, (7, 7, 7), 16),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 64),
    "resnet56": (BasicBlock, (9, 9, 9), 16),
    "resnet110": (BasicBlock, (18, 18, 18), 16),
}
"""Block, blocks per stage, and channels of the first stage."""


def _resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, ...],
    default_width: int,
    *,
    activation: str = "lsq",
    bits: int | None = None,
    levels: int | None = None,
    form: str = "cifar",
    width: int | None = None,
    classes: int = 10,
    in_channels: int = 3,
    shortcut: str = "conv",
) -> nn.Module:
    return ResNet(
        block,
        depths,
        activation=activation_factory(activation, bits, levels),
        form=_known("form", form, FORMS),
        width=default_width if width is None else _whole("width", width),
        classes=_whole("classes", classes),
        in_channels=_whole("in_channels", in_channels),
        shortcut=_known("shortcut", shortcut, SHORTCUTS),
    )


def _vgg16(
    *,
    activation: str = "lsq",
    bits: int | None = None,
    levels: int | None = None,
    form: str = "cifar",
    width: int = 64,
    hidden: int | None = None,
    classes: int = 10,
    in_channels: int = 3,
) -> nn.Module:
    width = _whole("width", width)
    if hidden is None:
        hidden = 64 * width if form == "imagenet" else 0
    return VGG16(
        activation=activation_factory(activation, bits, levels),
        form=_known("form", form, FORMS),
        width=width,
        hidden=_whole("hidden", hidden, least=0),
        classes=_whole("classes", classes),
        in_channels=_whole("in_channels", in_channels),
    )


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(_resnet, *shape) for name, shape in RESNETS.items()},
    "vgg16": _vgg16,
}


def build(architecture: str, **arguments: Any) -> nn.Module:
    """Build a network from its name and arguments.

    `activation` lsq (with `bits`), qcfs (with `levels`) or relu; `form`, `width`, `classes`, `in_channels`; `shortcut`
    of residual networks; `hidden`, the size of the two hidden linear layers of a VGG (0: none).
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


def _whole(what: str, value: int, least: int = 1) -> int:
    if not (isinstance(value, int) and value >= least):
        raise DynamicConfidenceError(f"{what} {value}: expected a whole number, {least} or more.")
    return value
