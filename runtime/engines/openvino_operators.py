"""The operators of an exported graph (docs/contract.md) as OpenVINO's, with the channel last where neurons are.

OpenVINO is imported here: import this module only where an engine is opened.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from onnx.helper import get_attribute_value

from ..onnx_file import OPSET, attributes_of
from .openvino import load_openvino

if TYPE_CHECKING:
    import openvino as ov
    from openvino import opset13 as ops
else:
    ov = load_openvino()
    ops = ov.opset13

Plane = tuple[int, int, int]
"""Channel, y, x."""
DEFAULTS: dict[str, Any] = {"pads": [0, 0, 0, 0], "strides": [1, 1], "dilations": [1, 1]}
"""Of attributes whose default no schema holds."""
TYPES = {1: "f32", 2: "u8", 7: "i64"}
"""OpenVINO's names of ONNX's types."""


class Value(NamedTuple):
    """A tensor: as the graph has it or, where `plane` is given, as `[batch, y * x, channel]`."""

    end: ov.Output
    plane: Plane | None = None


class Call(NamedTuple):
    """What a node is given."""

    name: str
    inputs: list[Value]
    attributes: dict[str, Any]
    outputs: int

    def integers(self, name: str) -> list[int]:
        """A list that some operators take as their second input, and others as an attribute."""
        return (
            [int(number) for number in self.inputs[1].end.get_node().data] if self.inputs[1:] else self.attributes[name]
        )


def call_of(node: onnx.NodeProto, inputs: list[Value]) -> Call:
    """A node's attributes, with ONNX's defaults."""
    schema = onnx.defs.get_schema(node.op_type, OPSET).attributes
    defaults = {name: get_attribute_value(a.default_value) for name, a in schema.items() if a.default_value.name}
    return Call(node.name, inputs, DEFAULTS | defaults | attributes_of(node), len(node.output))


def flat(value: Value) -> Value:
    """Lay out `[batch, channel, y, x]` as `[batch, y * x, channel]`.

    OpenVINO's convolutions write the channel last, so there nothing is moved.
    """
    if value.plane is not None:
        return value
    batch, channels, height, width = value.end.get_shape()
    plane, shape = (channels, height, width), [batch, height * width, channels]
    node = value.end.get_node()
    if node.get_type_name() == "Constant":
        return Value(ops.constant(node.data.transpose(0, 2, 3, 1).reshape(shape)).output(0), plane)
    end = value.end if 1 in shape[1:] else ops.transpose(value.end, np.array([0, 2, 3, 1])).output(0)
    return Value(reshaped(end, shape), plane)


def plain(value: Value) -> ov.Output:
    """The inverse of `flat`."""
    if value.plane is None:
        return value.end
    batch, (channels, height, width) = value.end.get_shape()[0], value.plane
    if height * width == 1:
        return reshaped(value.end, [batch, channels, 1, 1])
    return ops.transpose(reshaped(value.end, [batch, height, width, channels]), np.array([0, 3, 1, 2])).output(0)


def reshaped(end: ov.Output, shape: list[int]) -> ov.Output:
    return ops.reshape(end, np.array(shape), special_zero=True).output(0)


def _elementwise(operator: Callable[..., ov.Node]) -> Callable[[Call], list[Value]]:
    def build(call: Call) -> list[Value]:
        laid = _alike(call.inputs)
        if laid is None:
            return [Value(operator(*map(plain, call.inputs)).output(0))]
        plane = tuple(map(max, zip(*(value.plane for value in laid if value.plane is not None), strict=True)))
        return [Value(operator(*(value.end for value in laid)).output(0), plane)]  # type: ignore[arg-type]

    return build


def _alike(values: list[Value]) -> list[Value] | None:
    """All of them flat, but for scalars; None where none is flat yet, or where they would not broadcast like that."""
    ranks = {len(value.end.get_shape()) for value in values if value.plane is None}
    if not ranks <= {0, 4} or all(value.plane is None for value in values):
        return None
    laid = [flat(value) if len(value.end.get_shape()) else value for value in values]
    planes = {value.plane[1:] for value in laid if value.plane is not None}
    return laid if len(planes - {(1, 1)}) <= 1 else None


def _unary(build: Callable[[ov.Output, Call], ov.Node]) -> Callable[[Call], list[Value]]:
    return lambda call: [Value(build(call.inputs[0].end, call).output(0), call.inputs[0].plane)]


def _clip(end: ov.Output, call: Call) -> ov.Node:
    low, high = (float(bound.end.get_node().data) for bound in call.inputs[1:])
    return ops.clamp(end, low, high)


def _convolution(call: Call) -> list[Value]:
    source, weight, *bias = call.inputs
    weights, groups = weight.end, call.attributes["group"]
    settings = *_window(call), call.attributes["dilations"]
    if groups == 1:
        current = ops.convolution(plain(source), weights, *settings)
    else:
        out, *others = weights.get_shape()
        current = ops.group_convolution(plain(source), reshaped(weights, [groups, out // groups, *others]), *settings)
    current.set_friendly_name(call.name)
    if bias:
        current = ops.add(current, reshaped(bias[0].end, [1, -1, 1, 1]))
    return [flat(Value(current.output(0)))]


def _window(call: Call) -> list[list[int]]:
    """Strides, and padding before and behind."""
    pads = call.attributes["pads"]
    return [call.attributes["strides"], pads[:2], pads[2:]]


def _average(call: Call) -> list[Value]:
    kernel, without = call.attributes["kernel_shape"], not call.attributes["count_include_pad"]
    return [flat(Value(ops.avg_pool(plain(call.inputs[0]), *_window(call), kernel, without).output(0)))]


def _reduction(operator: Callable[..., ov.Node]) -> Callable[[Call], list[Value]]:
    def build(call: Call) -> list[Value]:
        value, axes, keep = call.inputs[0], call.integers("axes"), bool(call.attributes["keepdims"])
        if value.plane is not None and axes == [2, 3] and keep:
            return [Value(operator(value.end, np.array([1]), True).output(0), (value.plane[0], 1, 1))]
        if value.plane is not None and axes == [1, 2, 3] and not keep:
            return [Value(operator(value.end, np.array([1, 2]), False).output(0))]
        return [Value(operator(plain(value), np.array(axes), keep).output(0))]

    return build


def _concatenation(call: Call) -> list[Value]:
    axis, planes = call.attributes["axis"], {value.plane for value in call.inputs}
    if axis == 0 and len(planes) == 1:
        return [Value(ops.concat([value.end for value in call.inputs], 0).output(0), planes.pop())]
    return [Value(ops.concat([plain(value) for value in call.inputs], axis).output(0))]


def _split(call: Call) -> list[Value]:
    axis = call.attributes["axis"]
    whole = call.inputs[0] if axis == 0 else Value(plain(call.inputs[0]))
    return [Value(part, whole.plane) for part in ops.split(whole.end, np.int64(axis), call.outputs).outputs()]


def _arg_max(call: Call) -> list[Value]:
    axis, keep = call.attributes["axis"], call.attributes["keepdims"]
    index = ops.topk(plain(call.inputs[0]), np.int64(1), axis, "max", "none", "i64").output(1)
    return [Value(index if keep else ops.squeeze(index, np.array([axis])).output(0))]


def _as_it_is(build: Callable[[ov.Output, Call], ov.Output]) -> Callable[[Call], list[Value]]:
    return lambda call: [Value(build(plain(call.inputs[0]), call))]


OPERATORS: dict[str, Callable[[Call], list[Value]]] = {
    "Add": _elementwise(ops.add),
    "ArgMax": _arg_max,
    "AveragePool": _average,
    "Cast": _unary(lambda end, call: ops.convert(end, TYPES[call.attributes["to"]])),
    "Clip": _unary(_clip),
    "Concat": _concatenation,
    "Conv": _convolution,
    "Div": _elementwise(ops.divide),
    "Flatten": _as_it_is(lambda end, call: reshaped(end, [math.prod(end.get_shape()[: call.attributes["axis"]]), -1])),
    "Floor": _unary(lambda end, _: ops.floor(end)),
    "Identity": lambda call: call.inputs,
    "Mul": _elementwise(ops.multiply),
    "ReduceL1": _reduction(ops.reduce_l1),
    "ReduceMax": _reduction(ops.reduce_max),
    "ReduceSum": _reduction(ops.reduce_sum),
    "Reshape": _as_it_is(lambda end, call: reshaped(end, call.integers("shape"))),
    "Softmax": _as_it_is(lambda end, call: ops.softmax(end, call.attributes["axis"]).output(0)),
    "Split": _split,
    "Sub": _elementwise(ops.subtract),
    "Unsqueeze": _as_it_is(lambda end, call: ops.unsqueeze(end, np.array(call.integers("axes"))).output(0)),
}
"""All of the form `conv`, but for QuantizeLinear and DequantizeLinear."""
