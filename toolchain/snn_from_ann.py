"""Convert a quantised network to a spiking one: trace it, fold what is linear, put everything in threshold units."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..models.lsq import LSQ
from ..models.resnet import PadShortcut
from ..runtime.errors import DynamicConfidenceError
from ..runtime.manifest import Method, Preprocessing
from .oracle import convolve
from .snn import INPUT, PIXEL_MAX, Layer, Pool, Shape, Snn, Synapse, out_size


@dataclass(frozen=True)
class _Source:
    """What spikes, summed spikes or pixels carry: real value = unit * carried + offset, per channel."""

    name: str
    shape: Shape
    unit: np.ndarray  # [channel] or []
    offset: np.ndarray  # [channel] or []


@dataclass(frozen=True)
class _Current:
    """A linear function of sources, in the units of the quantised network."""

    synapses: tuple[Synapse, ...]
    bias: np.ndarray  # [out, 1, 1] or [out, y, x]
    shape: Shape


_Value = _Source | _Current


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LSQ | PadShortcut) or super().is_leaf_module(m, module_qualified_name)


def snn_from_ann(network: nn.Module, preprocessing: Preprocessing, method: str = "qcfs") -> Snn:
    """Convert a network with LSQ activations to a spiking network that takes uint8 pixels.

        threshold = levels * s;  W~ = W * unit(source) / threshold;  b~ = b / threshold;  v(0) = 1/2

    Batch normalisation and the image normalisation are folded in; zero padding of the normalised image becomes a bias
    map, because a zero there is not a zero pixel. `method` is "qcfs" (integrate-and-fire, injection in every step) or
    "qffs" (negative spikes and a cap, injection in the first `levels` steps only).

    Raises: DynamicConfidenceError for a network without quantised activations or with a layer that has no conversion.
    Source: Dynamic Confidence, eq. 17-26; the initial membrane and the injection window are docs/contract.md's.
    """
    if method not in ("qcfs", "qffs"):
        raise DynamicConfidenceError(f"method '{method}' is unknown, known: qcfs, qffs.")
    levels = _levels(network)
    values: dict[torch.fx.Node, _Value] = {}
    nodes: list[Layer | Pool] = []
    for node in _Tracer().trace(network).nodes:
        arguments = [values[a] if isinstance(a, torch.fx.Node) else a for a in node.args]
        if node.op == "placeholder":
            values[node] = _pixels(preprocessing)
        elif node.op == "output":
            (current,) = arguments
            if not isinstance(current, _Current):
                raise DynamicConfidenceError("the network's output is not a linear read-out; end it with nn.Linear.")
            readout = Layer("readout", current.synapses, current.bias, current.shape, 1.0)
            steps = levels if method == "qffs" else None
            return Snn(
                Method(name=method, levels=levels, injection_steps=steps), preprocessing.shape, tuple(nodes), readout
            )
        elif node.op == "call_module":
            module = network.get_submodule(str(node.target))
            values[node] = _convert_module(module, str(node.target), arguments[0], nodes)
        elif node.op == "call_function" and node.target in _FUNCTIONS:
            values[node] = _FUNCTIONS[node.target](arguments)
        else:
            raise DynamicConfidenceError(f"'{node.name}' ({node.op} {node.target}) has no spiking form.")
    raise DynamicConfidenceError("the network returns nothing.")


def _levels(network: nn.Module) -> int:
    found = {module.levels for module in network.modules() if isinstance(module, LSQ)}
    if not found:
        raise DynamicConfidenceError(
            "the network has no quantised activation: a ReLU network must be fine-tuned first, with "
            "`dc-train --from model.pt --activation lsq --bits 2 --data … -o quantised.pt`."
        )
    if len(found) > 1:
        raise DynamicConfidenceError(
            f"the quantisers have different numbers of levels ({sorted(found)}); one spike cap needs one number."
        )
    return found.pop()


def _pixels(preprocessing: Preprocessing) -> _Source:
    mean, std = np.array(preprocessing.mean, np.float64), np.array(preprocessing.std, np.float64)
    return _Source(INPUT, preprocessing.shape, 1.0 / (PIXEL_MAX * std), -mean / std)


def _convert_module(module: nn.Module, name: str, value: Any, nodes: list[Layer | Pool]) -> _Value:
    for kind, convert in _MODULES:
        if isinstance(module, kind):
            return convert(module, name, value, nodes)
    raise DynamicConfidenceError(
        f"layer '{name}' is a {type(module).__name__}, which has no spiking form. Known: "
        f"{', '.join(kind.__name__ for kind, _ in _MODULES)}."
    )


def _source(value: _Value, name: str, what: str) -> _Source:
    if isinstance(value, _Source):
        return value
    raise DynamicConfidenceError(f"layer '{name}': {what} needs a quantised activation before it, got a linear layer.")


def _zero_offset(value: _Source, name: str, what: str) -> _Source:
    if np.any(value.offset):
        raise DynamicConfidenceError(f"layer '{name}': {what} of the image itself has no spiking form.")
    return value


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(np.float64)


def _weighted(source: _Source, weight: np.ndarray, bias: np.ndarray, convolution: Synapse, shape: Shape) -> _Current:
    """A convolution of the source's real value, as a synapse from what the source carries plus a bias (map)."""
    synapse = replace(
        convolution, source=source.name, weight=weight * _per_input(source.unit, convolution.groups, weight)
    )
    total = bias.reshape(-1, 1, 1)
    if np.any(source.offset):
        offset = np.broadcast_to(source.offset.reshape(-1, 1, 1), source.shape)[None]
        total = total + convolve(offset, replace(convolution, weight=weight))[0]
    return _Current((synapse,), total, shape)


def _per_input(unit: np.ndarray, groups: int, weight: np.ndarray) -> np.ndarray:
    """Units per input channel, laid out for a weight `[out, in / groups, y, x]`."""
    if unit.ndim == 0:
        return unit
    per_group = unit.reshape(groups, -1)
    return np.repeat(per_group, weight.shape[0] // groups, axis=0)[:, :, None, None]


def _conv(module: nn.Conv2d, name: str, value: _Value, nodes: list[Layer | Pool]) -> _Current:
    source = _source(value, name, "a convolution")
    if module.padding_mode != "zeros" or isinstance(module.padding, str) or set(module.dilation) != {1}:
        raise DynamicConfidenceError(
            f"layer '{name}': only undilated convolutions with zero padding have a spiking form."
        )
    (ky, kx), (sy, sx), (py, px) = module.kernel_size, module.stride, module.padding
    shape = (module.out_channels, out_size(source.shape[1], ky, sy, py), out_size(source.shape[2], kx, sx, px))
    bias = np.zeros(module.out_channels) if module.bias is None else _array(module.bias)
    geometry = Synapse(source.name, np.zeros(()), (sy, sx), (py, px), module.groups)
    return _weighted(source, _array(module.weight), bias, geometry, shape)


def _linear(module: nn.Linear, name: str, value: _Value, nodes: list[Layer | Pool]) -> _Current:
    source = _source(value, name, "a linear layer")
    if module.in_features != int(np.prod(source.shape)):
        raise DynamicConfidenceError(
            f"layer '{name}' takes {module.in_features} features, but images of {list(source.shape)} reach it: "
            "expected another image size. Check the checkpoint's preprocessing."
        )
    weight = _array(module.weight).reshape(module.out_features, *source.shape)
    bias = np.zeros(module.out_features) if module.bias is None else _array(module.bias)
    return _weighted(source, weight, bias, Synapse(source.name, np.zeros(())), (module.out_features, 1, 1))


def _batch_norm(module: nn.BatchNorm2d, name: str, value: _Value, nodes: list[Layer | Pool]) -> _Current:
    if not isinstance(value, _Current) or any(s.is_identity for s in value.synapses):
        raise DynamicConfidenceError(f"layer '{name}': batch normalisation must follow a convolution.")
    if module.running_mean is None or module.running_var is None:
        raise DynamicConfidenceError(
            f"layer '{name}': batch normalisation without running statistics cannot be folded."
        )
    factor = (_array(module.weight) if module.affine else 1.0) / np.sqrt(_array(module.running_var) + module.eps)
    shift = _array(module.bias) if module.affine else np.zeros_like(factor)
    bias = (value.bias - _array(module.running_mean).reshape(-1, 1, 1)) * factor.reshape(-1, 1, 1)
    return _Current(tuple(s.times(factor) for s in value.synapses), bias + shift.reshape(-1, 1, 1), value.shape)


def _lsq(module: LSQ, name: str, value: _Value, nodes: list[Layer | Pool]) -> _Source:
    if not isinstance(value, _Current):
        raise DynamicConfidenceError(f"layer '{name}': a quantiser must follow a linear layer.")
    threshold = module.levels * float(module.scale.detach())
    synapses = tuple(s.times(np.array(1.0 / threshold)) for s in value.synapses)
    nodes.append(Layer(name, synapses, value.bias / threshold, value.shape, threshold))
    return _Source(name, value.shape, np.array(threshold), np.zeros(()))


def _average_pool(module: nn.AvgPool2d, name: str, value: _Value, nodes: list[Layer | Pool]) -> _Source:
    if (
        module.ceil_mode
        or module.divisor_override
        or (module.padding not in (0, (0, 0)) and not module.count_include_pad)
    ):
        raise DynamicConfidenceError(f"layer '{name}': average pooling must divide by its kernel's size.")
    return _pool(name, value, _pair(module.kernel_size), _pair(module.stride), _pair(module.padding), nodes)


def _global_pool(module: nn.AdaptiveAvgPool2d, name: str, value: _Value, nodes: list[Layer | Pool]) -> _Source:
    source = _source(value, name, "pooling")
    if module.output_size not in (1, (1, 1)):
        raise DynamicConfidenceError(
            f"layer '{name}': adaptive pooling to {module.output_size} has no spiking form, only to 1."
        )
    size = (source.shape[1], source.shape[2])
    return _pool(name, source, size, size, (0, 0), nodes)


def _pool(
    name: str,
    value: _Value,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    nodes: list[Layer | Pool],
) -> _Source:
    source = _zero_offset(_source(value, name, "pooling"), name, "pooling")
    height, width = (out_size(source.shape[i + 1], kernel[i], stride[i], padding[i]) for i in range(2))
    shape = (source.shape[0], height, width)
    nodes.append(Pool(name, source.name, kernel, stride, padding, shape))
    return _Source(name, shape, source.unit / (kernel[0] * kernel[1]), np.zeros(()))


def _pad_shortcut(module: PadShortcut, name: str, value: _Value, nodes: list[Layer | Pool]) -> _Current:
    source = _zero_offset(_source(value, name, "a shortcut"), name, "a shortcut")
    channels = np.arange(module.in_channels)
    weight = np.zeros((module.out_channels, module.in_channels, 1, 1))
    weight[channels + (module.out_channels - module.in_channels) // 2, channels] = 1.0
    height, width = (out_size(size, 1, module.stride, 0) for size in source.shape[1:])
    geometry = Synapse(source.name, np.zeros(()), (module.stride, module.stride))
    return _weighted(source, weight, np.zeros(module.out_channels), geometry, (module.out_channels, height, width))


def _pass(module: nn.Module, name: str, value: _Value, nodes: list[Layer | Pool]) -> _Value:
    return value


def _refuse_relu(module: nn.Module, name: str, value: _Value, nodes: list[Layer | Pool]) -> _Value:
    raise DynamicConfidenceError(
        f"layer '{name}' is a ReLU among quantised activations: fine-tune the whole network with "
        "`dc-train --from model.pt --activation lsq --bits 2 --data … -o quantised.pt`."
    )


def _add(arguments: list[Any]) -> _Current:
    left, right = (_as_current(value) for value in arguments)
    if left.shape != right.shape:
        raise DynamicConfidenceError(f"an addition of {list(left.shape)} and {list(right.shape)} has no spiking form.")
    return _Current(left.synapses + right.synapses, left.bias + right.bias, left.shape)


def _as_current(value: _Value) -> _Current:
    if isinstance(value, _Current):
        return value
    source = _zero_offset(value, value.name, "an addition")
    return _Current((Synapse(source.name, source.unit),), np.zeros((source.shape[0], 1, 1)), source.shape)


def _flatten(arguments: list[Any]) -> _Value:
    return arguments[0]


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


_MODULES: tuple[tuple[type[nn.Module], Callable[..., _Value]], ...] = (
    (nn.Conv2d, _conv),
    (nn.Linear, _linear),
    (nn.BatchNorm2d, _batch_norm),
    (LSQ, _lsq),
    (nn.AvgPool2d, _average_pool),
    (nn.AdaptiveAvgPool2d, _global_pool),
    (PadShortcut, _pad_shortcut),
    (nn.Identity, _pass),
    (nn.Dropout, _pass),
    (nn.Flatten, _pass),
    (nn.ReLU, _refuse_relu),
)
_FUNCTIONS: dict[Any, Callable[[list[Any]], _Value]] = {operator.add: _add, torch.add: _add, torch.flatten: _flatten}
