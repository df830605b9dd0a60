"""What each layer and function of a quantised network becomes: one converter each, and the two tables of them."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..models.quantiser import Quantiser
from ..models.resnet import PadShortcut
from ..runtime.errors import DynamicConfidenceError
from .currents import Current, NewNode, Source, Value, added, not_the_image, require_source, scaled, weighted
from .snn import Layer, Pool, Shape, Synapse, out_size

Result = Value | NewNode
Pair = tuple[int, int]


def convert_module(module: nn.Module, name: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Result:
    """Convert one call of a layer.

    Raises: DynamicConfidenceError for a layer without a conversion and for a call with anything but one value.
    """
    if keywords or len(arguments) != 1:
        raise DynamicConfidenceError(
            f"layer '{name}' is called with {_listed(arguments, keywords)}, expected one positional argument."
        )
    value = _value(arguments[0], name)
    for kind, convert in MODULES:
        if isinstance(module, kind):
            return convert(module, name, value)
    raise DynamicConfidenceError(
        f"layer '{name}' is a {type(module).__name__}, which has no spiking form. Known: "
        f"{', '.join(kind.__name__ for kind, _ in MODULES)}."
    )


def convert_call(target: Any, name: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Result:
    """Convert a call of a function, or of a tensor's method when `target` is its name.

    Raises: DynamicConfidenceError for a target without a conversion and for arguments that its converter does not take.
    """
    if target not in CALLS:
        raise DynamicConfidenceError(f"'{name}' ({getattr(target, '__name__', target)}) has no spiking form.")
    convert = CALLS[target]
    try:
        inspect.signature(convert).bind(name, *arguments, **keywords)
    except TypeError as error:
        raise DynamicConfidenceError(
            f"'{name}' with {_listed(arguments, keywords)} has no spiking form: {error}."
        ) from error
    return convert(name, *arguments, **keywords)


def _listed(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> str:
    def text(argument: Any) -> str:
        return "a value" if isinstance(argument, Value) else repr(argument)

    return f"({', '.join([*map(text, arguments), *(f'{k}={text(v)}' for k, v in keywords.items())])})"


def _value(argument: Any, name: str) -> Value:
    if isinstance(argument, Value):
        return argument
    raise DynamicConfidenceError(
        f"'{name}': {argument!r} has no spiking form here, expected what a layer computes from the image."
    )


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(np.float64)


def _pair(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _windowed(channels: int, source: Source, name: str, kernel: Pair, stride: Pair, padding: Pair) -> Shape:
    height, width = (out_size(source.shape[i + 1], kernel[i], stride[i], padding[i]) for i in range(2))
    if min(height, width) < 1:
        raise DynamicConfidenceError(
            f"layer '{name}': a window of {list(kernel)} does not fit into {list(source.shape)}. "
            "Check the checkpoint's preprocessing."
        )
    return channels, height, width


def _conv(module: nn.Conv2d, name: str, value: Value) -> Current:
    source = require_source(value, name, "a convolution")
    if module.padding_mode != "zeros" or isinstance(module.padding, str) or set(module.dilation) != {1}:
        raise DynamicConfidenceError(
            f"layer '{name}': only undilated convolutions with zero padding have a spiking form."
        )
    if module.in_channels != source.shape[0]:
        raise DynamicConfidenceError(
            f"layer '{name}' takes {module.in_channels} channels, but {list(source.shape)} reaches it. "
            "Check the checkpoint's preprocessing."
        )
    kernel, stride, padding = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
    shape = _windowed(module.out_channels, source, name, kernel, stride, padding)
    bias = np.zeros(module.out_channels) if module.bias is None else _array(module.bias)
    geometry = Synapse(source.name, np.zeros(()), stride, padding, module.groups)
    return weighted(source, _array(module.weight), bias, geometry, shape)


def _linear(module: nn.Linear, name: str, value: Value) -> Current:
    source = require_source(value, name, "a linear layer")
    if module.in_features != int(np.prod(source.shape)):
        raise DynamicConfidenceError(
            f"layer '{name}' takes {module.in_features} features, but images of {list(source.shape)} reach it: "
            "expected another image size. Check the checkpoint's preprocessing."
        )
    weight = _array(module.weight).reshape(module.out_features, *source.shape)
    bias = np.zeros(module.out_features) if module.bias is None else _array(module.bias)
    return weighted(source, weight, bias, Synapse(source.name, np.zeros(())), (module.out_features, 1, 1))


def _batch_norm(module: nn.BatchNorm2d, name: str, value: Value) -> Current:
    if not isinstance(value, Current) or any(s.is_identity for s in value.synapses):
        raise DynamicConfidenceError(f"layer '{name}': batch normalisation must follow a convolution.")
    if module.running_mean is None or module.running_var is None:
        raise DynamicConfidenceError(
            f"layer '{name}': batch normalisation without running statistics cannot be folded."
        )
    factor = (_array(module.weight) if module.affine else 1.0) / np.sqrt(_array(module.running_var) + module.eps)
    shift = _array(module.bias) if module.affine else np.zeros_like(factor)
    centred = Current(value.synapses, value.bias - _array(module.running_mean).reshape(-1, 1, 1), value.shape)
    result = scaled(centred, factor)
    return Current(result.synapses, result.bias + shift.reshape(-1, 1, 1), result.shape)


def _quantiser(module: Quantiser, name: str, value: Value) -> NewNode:
    if not isinstance(value, Current):
        raise DynamicConfidenceError(f"layer '{name}': a quantiser must follow a linear layer.")
    threshold = module.largest()
    current = scaled(value, np.array(1.0 / threshold))
    return NewNode(Layer(name, current.synapses, current.bias, current.shape, threshold), np.array(threshold))


def _average_pool(module: nn.AvgPool2d, name: str, value: Value) -> NewNode:
    kernel, stride, padding = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
    if module.ceil_mode or module.divisor_override or (any(padding) and not module.count_include_pad):
        raise DynamicConfidenceError(f"layer '{name}': average pooling must divide by its kernel's size.")
    return _pool(name, value, kernel, stride, padding)


def _global_pool(module: nn.AdaptiveAvgPool2d, name: str, value: Value) -> NewNode:
    if module.output_size not in (1, (1, 1)):
        raise DynamicConfidenceError(
            f"layer '{name}': adaptive pooling to {module.output_size} has no spiking form, only to 1."
        )
    size = require_source(value, name, "pooling").shape[1:]
    return _pool(name, value, size, size, (0, 0))


def _pool(name: str, value: Value, kernel: Pair, stride: Pair, padding: Pair) -> NewNode:
    source = not_the_image(value, name, "pooling")
    shape = _windowed(source.shape[0], source, name, kernel, stride, padding)
    return NewNode(Pool(name, source.name, kernel, stride, padding, shape), source.unit / (kernel[0] * kernel[1]))


def _pad_shortcut(module: PadShortcut, name: str, value: Value) -> Current:
    source = not_the_image(value, name, "a shortcut")
    channels = np.arange(module.in_channels)
    weight = np.zeros((module.out_channels, module.in_channels, 1, 1))
    weight[channels + (module.out_channels - module.in_channels) // 2, channels] = 1.0
    stride = _pair(module.stride)
    shape = _windowed(module.out_channels, source, name, (1, 1), stride, (0, 0))
    return weighted(source, weight, np.zeros(module.out_channels), Synapse(source.name, np.zeros(()), stride), shape)


def _pass(module: nn.Module, name: str, value: Value) -> Value:
    return value


def _refuse_relu(name: str) -> Value:
    raise DynamicConfidenceError(
        f"layer '{name}' is a ReLU among quantised activations: fine-tune the whole network with "
        "`dc-train --from model.pt --activation lsq --bits 2 --data … -o quantised.pt`."
    )


# Converters of calls have the parameters of what they convert, by torch's names, so that any other argument is refused.


def _add(name: str, input: Any, other: Any, *, alpha: float = 1) -> Current:
    if alpha != 1:
        raise DynamicConfidenceError(f"'{name}': an addition with alpha={alpha!r} has no spiking form, only with 1.")
    return added(_value(input, name), _value(other, name), name)


def _flatten(name: str, input: Any, start_dim: int = 0, end_dim: int = -1) -> Value:
    if (start_dim, end_dim) != (1, -1):
        raise DynamicConfidenceError(
            f"'{name}': flattening with start_dim={start_dim!r}, end_dim={end_dim!r} has no spiking form, "
            "only with start_dim=1, end_dim=-1 (one row per image)."
        )
    return _value(input, name)


def _average_pool_call(
    name: str,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> NewNode:
    layer = nn.AvgPool2d(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return _average_pool(layer, name, _value(input, name))


MODULES: tuple[tuple[type[nn.Module], Callable[[Any, str, Value], Result]], ...] = (
    (nn.Conv2d, _conv),
    (nn.Linear, _linear),
    (nn.BatchNorm2d, _batch_norm),
    (Quantiser, _quantiser),
    (nn.AvgPool2d, _average_pool),
    (nn.AdaptiveAvgPool2d, _global_pool),
    (PadShortcut, _pad_shortcut),
    (nn.Identity, _pass),
    (nn.Dropout, _pass),
    (nn.Flatten, lambda module, name, value: _flatten(name, value, module.start_dim, module.end_dim)),
    (nn.ReLU, lambda module, name, value: _refuse_relu(name)),
)
CALLS: dict[Any, Callable[..., Result]] = {
    # torch.fx traces `a += b` as `a + b`. Where that differs (a is read again), check_conversion finds it.
    **dict.fromkeys((operator.add, torch.add, "add"), _add),
    **dict.fromkeys((torch.flatten, "flatten"), _flatten),
    **dict.fromkeys((functional.relu, torch.relu, "relu"), lambda name, *_, **__: _refuse_relu(name)),
    functional.avg_pool2d: _average_pool_call,
}
