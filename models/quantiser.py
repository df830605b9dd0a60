"""What every quantised activation has in common: its levels, its one learned number, and how training begins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..runtime.errors import DynamicConfidenceError

FRESH = 1.0
"""The learned number before it was ever set."""


class Quantiser(nn.Module):
    """An activation whose output is one of the values 0, step, …, levels * step.

    Subclasses name their learned parameter, of shape (1,), and say how many steps it spans.
    """

    learned_name: ClassVar[str]

    def __init__(self, levels: int, span: int) -> None:
        super().__init__()
        self.levels, self.span = levels, span

    @property
    def learned(self) -> nn.Parameter:
        """The one number that is trained; weight decay would pull it towards 0, where the quantiser ends."""
        return self.get_parameter(self.learned_name)

    @property
    def step(self) -> Tensor:
        """The distance of two neighbouring output values, shape (1,)."""
        return self.learned / self.span

    def largest(self) -> float:
        """Return the largest output, levels * step: the threshold of the neurons that this becomes."""
        return self.levels // self.span * float(self.learned.detach())

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


def quantisers(model: nn.Module) -> Iterator[tuple[str, Quantiser]]:
    """Yield every quantiser of a network once, with its name."""
    for name, module in model.named_modules():
        if isinstance(module, Quantiser):
            yield name, module


def positive_scales(model: nn.Module) -> None:
    """Raise a DynamicConfidenceError that names the first quantiser whose learned number is not a positive one."""
    for name, quantiser in quantisers(model):
        value = float(quantiser.learned.detach())
        if not _is_positive(value):
            raise DynamicConfidenceError(
                f"layer '{name}': the {_what(quantiser)} is {value:g}, expected a positive number. "
                "Train with a smaller learning rate (`dc-train --lr`)."
            )


def scales_are_fresh(model: nn.Module) -> bool:
    """Say whether no quantiser was ever set: neither initialised from data nor trained nor loaded."""
    return all(float(quantiser.learned.detach()) == FRESH for _, quantiser in quantisers(model))


@torch.no_grad()
def initialise_scales(model: nn.Module, batch: Tensor) -> None:
    """Set every quantiser from one batch `[batch, channel, height, width]`.

        step = 2 mean|v| / sqrt(levels)

    Layer by layer in one forward pass, so each layer sees the quantised output of the ones before it. QCFS begins by
    the same rule, not at its published constant (8): fine-tuning must begin near the network it comes from.
    Raises: DynamicConfidenceError when a layer gets nothing but zeros.
    Source: Esser et al., "Learned Step Size Quantization", section 2.1.
    """
    hooks = [_initialise_on_input(name, quantiser) for name, quantiser in quantisers(model)]
    if not hooks:  # a pass would still move the statistics of its normalisations
        return
    try:
        model(batch)
    finally:
        for hook in hooks:
            hook.remove()


def _initialise_on_input(name: str, quantiser: Quantiser) -> RemovableHandle:
    def set_learned(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        step = 2.0 * float(arguments[0].abs().mean()) / math.sqrt(quantiser.levels)
        if not _is_positive(step):
            raise DynamicConfidenceError(
                f"layer '{name}': the first batch gives the {_what(quantiser)} {step * quantiser.span:g}, expected a "
                "positive number. Check that the images are not all one colour and that the weights are finite."
            )
        quantiser.learned.fill_(step * quantiser.span)

    return quantiser.register_forward_pre_hook(set_learned)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum the products of two tensors of one shape: what both learned numbers' gradients are made of."""
    return torch.dot(a.flatten(), b.flatten())


def _is_positive(value: float) -> bool:
    return value > 0 and math.isfinite(value)


def _what(quantiser: Quantiser) -> str:
    return f"{type(quantiser).__name__} {quantiser.learned_name}"
