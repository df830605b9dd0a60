"""Every architecture by name: one line per network."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
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
        width=width or default_width,
        classes=classes,
        in_channels=in_channels,
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
        width=width,
        classes=classes,
        in_channels=in_channels,
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

    Raises: DynamicConfidenceError for an unknown name (the nearest is suggested) or an argument it does not take.
    """
    if architecture not in ARCHITECTURES:
        near = difflib.get_close_matches(architecture, ARCHITECTURES, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise DynamicConfidenceError(
            f"architecture '{architecture}' is unknown, known: {', '.join(ARCHITECTURES)}.{hint}"
        )
    make = ARCHITECTURES[architecture]
    known = [p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in arguments:
        if name not in known:
            raise DynamicConfidenceError(f"{architecture} takes no argument '{name}', it takes: {', '.join(known)}.")
    return make(**arguments)


def _known(what: str, value: str, options: tuple[str, ...]) -> str:
    if value not in options:
        raise DynamicConfidenceError(f"{what} '{value}' is unknown, known: {', '.join(options)}.")
    return value
