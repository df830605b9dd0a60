"""The activations a network can be built with, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..runtime.errors import DynamicConfidenceError
from .lsq import LSQ
from .qcfs import QCFS


@dataclass(frozen=True)
class Activation:
    """One kind of activation layer, and the argument of `build` that is its own."""

    make: Callable[..., nn.Module]
    option: str | None = None
    default: int | None = None


ACTIVATIONS = {
    "lsq": Activation(LSQ, "bits", 2),
    "qcfs": Activation(QCFS, "levels", 4),
    "relu": Activation(nn.ReLU),
}


def activation_arguments(name: str, bits: int | None = None, levels: int | None = None) -> dict[str, Any]:
    """Return the arguments of `build` that say which activation: its name and its own option, set or by default.

    To exchange a network's activation: drop `activation`, `bits` and `levels` from its arguments and add these.
    Raises: DynamicConfidenceError for an unknown name, and for an option or a value that the activation does not take.
    """
    if name not in ACTIVATIONS:
        raise DynamicConfidenceError(f"activation '{name}' is unknown, known: {', '.join(sorted(ACTIVATIONS))}.")
    activation, given = ACTIVATIONS[name], {"bits": bits, "levels": levels}
    for option, value in given.items():
        if value is not None and option != activation.option:
            owners = [other for other, kind in ACTIVATIONS.items() if kind.option == option]
            raise DynamicConfidenceError(
                f"{option} {value}: activation '{name}' takes {activation.option or 'neither bits nor levels'}, "
                f"{option} is for {', '.join(owners)}. Leave it out, or choose the other activation."
            )
    if activation.option is None:
        return {"activation": name}
    value = given[activation.option]
    chosen = activation.default if value is None else value
    activation.make(chosen)  # refuses a value out of range
    return {"activation": name, activation.option: chosen}


def activation_factory(name: str, bits: int | None = None, levels: int | None = None) -> Callable[[], nn.Module]:
    """Return a function that makes one fresh activation layer per call.

    Raises: as `activation_arguments`, but a ReLU may have bits: a model.pt of the first release says them.
    """
    arguments = activation_arguments(name, None if name == "relu" else bits, levels)
    activation = ACTIVATIONS[name]
    option = () if activation.option is None else (arguments[activation.option],)
    return lambda: activation.make(*option)
