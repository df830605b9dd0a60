"""The activations a network can be built with, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..runtime.errors import DynamicConfidenceError
from .lsq import LSQ

ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "lsq": lambda bits: LSQ(bits),
    "relu": lambda bits: nn.ReLU(),
}


def activation_factory(name: str, bits: int) -> Callable[[], nn.Module]:
    """Return a function that makes one fresh activation layer per call."""
    if name not in ACTIVATIONS:
        raise DynamicConfidenceError(f"activation '{name}' is unknown, known: {', '.join(sorted(ACTIVATIONS))}.")
    return lambda: ACTIVATIONS[name](bits)
