"""Convert a quantised network to a spiking one: trace it, fold what is linear, put everything in threshold units."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from itertools import count
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.fx.node import map_arg

from ..models.quantiser import Quantiser, quantisers
from ..models.resnet import PadShortcut
from ..runtime.errors import DynamicConfidenceError
from ..runtime.manifest import Method, Preprocessing
from .currents import Current, NewNode, Source, Value, pixel_source
from .layer_conversions import convert_call, convert_module
from .snn import INPUT, Layer, Pool, Snn

READOUT = "readout"


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Quantiser | PadShortcut) or super().is_leaf_module(m, module_qualified_name)


def snn_from_ann(network: nn.Module, preprocessing: Preprocessing, method: str = "qcfs") -> Snn:
    """Convert a network with LSQ or QCFS activations to a spiking network that takes uint8 pixels.

        threshold = levels * step;  W~ = W * unit(source) / threshold;  b~ = b / threshold;  v(0) = 1/2

    Batch normalisation and the image normalisation are folded in; zero padding of the normalised image becomes a bias
    map, because a zero there is not a zero pixel. `method` is "qcfs" (integrate-and-fire, injection in every step) or
    "qffs" (negative spikes and a cap, injection in the first `levels` steps only). A quantiser that the network calls
    twice becomes two layers of neurons, `name` and `name.1`.

    Raises: DynamicConfidenceError for a network without quantised activations, and for whatever has no conversion, by
    its name.
    Source: Dynamic Confidence, eq. 17-26; the initial membrane and the injection window are docs/contract.md's.
    """
    if method not in ("qcfs", "qffs"):
        raise DynamicConfidenceError(f"method '{method}' is unknown, known: qcfs, qffs.")
    levels = _levels(network)
    values: dict[torch.fx.Node, Value] = {}
    nodes: list[Layer | Pool] = []
    for node in _Tracer().trace(network).nodes:
        arguments, keywords = map_arg((node.args, node.kwargs), lambda argument: cast(Any, values[argument]))
        if node.op == "placeholder":
            if values:
                raise DynamicConfidenceError(f"the network has a second input, '{node.name}', expected the image only.")
            values[node] = pixel_source(preprocessing)
        elif node.op == "output":
            steps = levels if method == "qffs" else None
            return Snn(
                Method(name=method, levels=levels, injection_steps=steps),
                preprocessing.shape,
                tuple(nodes),
                _readout(arguments[0]),
            )
        elif node.op == "call_module":
            name = str(node.target)
            values[node] = _named(convert_module(network.get_submodule(name), name, arguments, keywords), nodes)
        elif node.op in ("call_function", "call_method"):
            values[node] = _named(convert_call(node.target, node.name, arguments, keywords), nodes)
        else:
            raise DynamicConfidenceError(f"'{node.name}' ({node.op} {node.target}) has no spiking form.")
    raise DynamicConfidenceError("the network returns nothing.")


def free_name(wanted: str, taken: Collection[str]) -> str:
    """Return the wanted name, or the first of `wanted.1`, `wanted.2`, … that is not taken.

    Names come from modules, and one module may be called many times.
    """
    names = (wanted if index == 0 else f"{wanted}.{index}" for index in count())
    return next(name for name in names if name not in taken)


def _named(result: Value | NewNode, nodes: list[Layer | Pool]) -> Value:
    """Append a new node under a name of its own; its output is a source."""
    if not isinstance(result, NewNode):
        return result
    name = free_name(result.node.name, {INPUT, READOUT, *(node.name for node in nodes)})
    nodes.append(replace(result.node, name=name))
    return Source(name, result.node.shape, result.unit, np.zeros(()))


def _levels(network: nn.Module) -> int:
    """The number of levels that all quantisers share: one spike cap and one injection window need one number."""
    found = list(quantisers(network))
    if not found:
        raise DynamicConfidenceError(
            "the network has no quantised activation: a ReLU network must be fine-tuned first, with "
            "`dc-train --from model.pt --activation lsq --bits 2 --data … -o quantised.pt`."
        )
    first_name, first = found[0]
    for name, other in found[1:]:
        if (type(other), other.levels) != (type(first), first.levels):
            raise DynamicConfidenceError(
                f"layer '{name}' is {_kind(other)}, but layer '{first_name}' is {_kind(first)}: expected one kind of "
                "quantiser with one number of levels in the whole network. Build it so and train it again."
            )
    return first.levels


def _kind(quantiser: Quantiser) -> str:
    return f"{type(quantiser).__name__} with {quantiser.levels} levels"


def _readout(value: Any) -> Layer:
    if not isinstance(value, Current):
        raise DynamicConfidenceError("the network's output is not a linear read-out; end it with nn.Linear.")
    if value.shape[1:] != (1, 1):
        raise DynamicConfidenceError(
            f"the network's output has the shape {list(value.shape)} (channel, y, x), expected one number per class: "
            "pool to 1 x 1 or flatten, then end it with nn.Linear."
        )
    return Layer(READOUT, value.synapses, value.bias, value.shape, 1.0)
