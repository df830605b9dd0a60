"""An exported graph as an OpenVINO model that keeps its states itself, in the form that is exact and fastest there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..int8 import LARGEST_BYTE
from ..manifest import Manifest, State
from ..signature import shape_at

if TYPE_CHECKING:
    import onnx
    import openvino as ov

    from .openvino_operators import Value

KEEP = "dynamic_confidence/keep"
"""Input of the model, float32 `[N, 1, 1, 1]`: 1 where an input goes on, 0 where one starts from the initial states."""


def model_from_onnx(network: onnx.ModelProto, manifest: Manifest, batch: int) -> ov.Model:
    """Write a graph of the form conv for OpenVINO, operator by operator.

        (input, alpha, keep) -> (logits, confidence, label, [spikes], [net_spikes])
        state <- keep * state + (1 - keep) * initial,   before every call

    What differs from the graph, and why (measured in docs/adr/0009-openvino.md):
    - states are variables of the model, started anew by `keep`: to reset or to write them costs as much as a call;
    - neurons are `[batch, y * x, channel]`. So convolutions write and read them in place, steps are parts of a batch
      that need no copy, and one kernel does all of a neuron's operations;
    - spikes are unsigned bytes. OpenVINO shifts int8 by 128, and sums of such spikes overflow on x86 without VNNI.

    Sums are exact in any order (contract.md, Exactness), so no bit depends on any of this.
    Raises: RuntimeError, OpenVINO's own or ours, for a graph that it cannot read.
    """
    import openvino as ov  # what opens an engine has imported it, by `load_openvino`
    from openvino import opset13 as ops

    from .openvino_operators import Value, plain

    parameters = {
        name: ops.parameter(list(shape), dtype, name)
        for name, shape, dtype in (
            (manifest.input.name, shape_at(manifest.input.shape, batch), np.uint8),
            (manifest.scale_input, (), np.float32),
            (KEEP, (batch, 1, 1, 1), np.float32),
        )
    }
    values = {name: Value(parameter.output(0)) for name, parameter in parameters.items()}
    keep = values.pop(KEEP).end
    variables = {state.output: _variable(state, batch) for state in manifest.states}
    for state in manifest.states:
        values[state.input] = _read(variables[state.output], state, keep)
    translate(network, values, signed=manifest.method.name == "qffs")
    results = {output.name: ops.result(plain(values[output.name])) for output in manifest.outputs}
    for name, end in (parameters | results).items():
        end.output(0).set_names({name})
    sinks = [_assign(values[name].end, variable) for name, variable in variables.items()]
    ends = list(results.values()), sinks, list(parameters.values()), list(variables.values())
    return ov.Model(*ends, "step")  # pyright: ignore[reportGeneralTypeIssues] -- its own stubs disagree on the class


def translate(network: onnx.ModelProto, values: dict[str, Value], *, signed: bool) -> None:
    """Add to `values`, which are given by the names of inputs and states, what every node makes.

    `signed`: whether spikes may be negative.
    """
    from onnx import numpy_helper
    from openvino import opset13 as ops

    from .openvino_operators import OPERATORS, Value, call_of, reshaped

    for tensor in network.graph.initializer:
        values[tensor.name] = Value(ops.constant(numpy_helper.to_array(tensor)).output(0))
    whole: set[str] = set()
    """What is made of bytes."""
    for node in network.graph.node:
        if missing := [name for name in node.input if name not in values]:
            raise RuntimeError(f"node '{node.name}' reads '{missing[0]}', which nothing makes")
        inputs = [values[name] for name in node.input]
        of_spikes = inputs[0].end.get_node().get_type_name() != "Constant"
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and of_spikes:
            _check_whole(node, inputs)
        if node.op_type == "QuantizeLinear":
            made = [_quantised(inputs[0], signed=signed)]
            whole |= set(node.output if made != inputs[:1] else ())
        elif node.op_type == "DequantizeLinear" and of_spikes:
            made = inputs[:1]
            whole |= set(node.output if node.input[0] in whole else ())
        elif node.op_type == "DequantizeLinear":
            integers, unit = ops.convert(inputs[0].end, "f32"), reshaped(inputs[1].end, [-1, 1, 1, 1])
            made = [Value(ops.multiply(integers, unit).output(0))]
        elif node.op_type in OPERATORS:
            if node.op_type == "Conv" and node.input[0] not in whole:
                inputs[1] = _in_float(inputs[1])
            made = OPERATORS[node.op_type](call_of(node, inputs))
        else:
            raise RuntimeError(f"node '{node.name}' is a {node.op_type}, expected {', '.join(OPERATORS)}")
        values.update(zip(node.output, made, strict=True))


def _check_whole(node: onnx.NodeProto, inputs: list[Value]) -> None:
    """Raise RuntimeError unless spikes are quantised as the whole numbers that they are."""
    scale, *zero = (np.asarray(getattr(value.end.get_node(), "data", None)) for value in inputs[1:])
    if scale.tolist() != 1 or [(point.tolist(), point.dtype.name) for point in zero] != [(0, "int8")]:
        found = ", ".join(f"{point.tolist()} ({point.dtype})" for point in zero) or "none"
        raise RuntimeError(f"node '{node.name}' has scale {scale.tolist()}, zero point {found}; expected 1, 0 (int8)")


def _in_float(weight: Value) -> Value:
    """Weights as one constant, though they be integers times a unit.

    Of those, OpenVINO 2026.4 would make a matrix product where the kernel is 1 x 1, and forget the strides.
    """
    from openvino import opset13 as ops

    node = weight.end.get_node()
    if node.get_type_name() == "Constant":
        return weight
    integers, unit = (end.get_node() for end in node.input_values())
    unit = unit.input_value(0).get_node().data.reshape(-1, 1, 1, 1)
    return weight._replace(end=ops.constant(integers.input_value(0).get_node().data * unit).output(0))


def _quantised(source: Value, *, signed: bool) -> Value:
    """Quantise a source as z + shift in 0 … 255, and back; leave it in float32 where bytes would be too large.

    QCFS: shift 0, and a sum of spikes is at most 127 (contract.md). QFFS: as much as the source can be negative.
    """
    from openvino import opset13 as ops

    shift = _largest(source.end) if signed else 0
    if 2 * shift > LARGEST_BYTE:
        return source
    ends = (np.float32(value) for value in (-shift, 255 - shift, 0, 255))
    quantised = ops.convert(ops.fake_quantize(source.end, *ends, 256), "u8")
    zero = ops.convert(ops.constant(np.uint8(shift)), "f32")
    values = ops.subtract(ops.convert(quantised, "f32"), zero)
    # Without a scale it is no dequantisation.
    return source._replace(end=ops.multiply(values, np.float32(1)).output(0))


def _largest(source: ov.Output) -> float:
    """A bound of the magnitude of what a QFFS source emits in one time step; infinite where it cannot be told."""
    node = source.get_node()
    kind, inputs = node.get_type_name(), node.input_values()
    if kind == "Subtract":  # a layer's own spikes: what n becomes, less what it was
        return 1
    if kind in ("Concat", "AvgPool"):
        return max(map(_largest, inputs))
    if kind in ("Reshape", "Transpose"):
        return _largest(inputs[0])
    constant = inputs[1].get_node() if len(inputs) == 2 else None
    if constant is None or constant.get_type_name() != "Constant":
        return math.inf
    if kind == "ReduceSum":
        return _largest(inputs[0]) * math.prod(inputs[0].get_shape()) / math.prod(source.get_shape())
    weights = np.abs(constant.data)
    if kind == "Multiply":
        return _largest(inputs[0]) * float(weights.max())
    if kind in ("Convolution", "GroupConvolution"):
        return _largest(inputs[0]) * float(weights.reshape(-1, *weights.shape[-3:]).sum(axis=(1, 2, 3)).max())
    return math.inf


def _variable(state: State, batch: int) -> ov.op.util.Variable:
    """What keeps a state, `[N, y * x, channel]` where it is `[N, channel, y, x]`."""
    import openvino as ov
    from openvino.op.util import Variable, VariableInfo

    _, *sizes = shape_at(state.shape, batch)
    if len(sizes) == 3:
        sizes = [sizes[1] * sizes[2], sizes[0]]
    info = VariableInfo()
    info.data_shape, info.data_type, info.variable_id = ov.PartialShape([batch, *sizes]), ov.Type.f32, state.input
    return Variable(info)


def _read(variable: ov.op.util.Variable, state: State, keep: ov.Output) -> Value:
    """keep * state + (1 - keep) * initial"""
    from openvino import op
    from openvino import opset13 as ops

    from .openvino_operators import Value, reshaped

    read = op.read_value(variable)
    shape = list(read.output(0).get_shape())
    going_on = reshaped(keep, [shape[0]] + [1] * (len(shape) - 1))
    value = ops.multiply(read, going_on)
    if state.initial:
        value = ops.add(value, ops.multiply(ops.subtract(np.float32(1), going_on), np.float32(state.initial)))
    plane = tuple(int(size) for size in state.shape[1:])
    return Value(value.output(0), plane if len(plane) == 3 else None)  # type: ignore[arg-type]


def _assign(end: ov.Output, variable: ov.op.util.Variable) -> ov.Node:
    from openvino import op
    from openvino import opset13 as ops

    node = end.get_node()
    return op.assign(
        node if node.get_output_size() == 1 else ops.reshape(end, np.array(end.get_shape()), False), variable
    )
