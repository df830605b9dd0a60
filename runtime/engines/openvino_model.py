"""An exported graph as an OpenVINO model that keeps its states itself, in the form that is exact and fastest there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..manifest import Manifest
from ..signature import shape_at

if TYPE_CHECKING:
    import onnx
    import openvino as ov

KEEP = "dynamic_confidence/keep"
"""Input of the model, float32 `[N, 1, 1, 1]`: 1 where an input goes on, 0 where one starts from the initial states."""
LARGEST_BYTE = 128
"""Two products of such bytes with int8 weights fit into int16, where x86 processors without VNNI add them."""


def model_from_onnx(network: onnx.ModelProto, manifest: Manifest, batch: int) -> ov.Model:
    """Rewrite a graph of the form conv for OpenVINO; `network` is changed on the way.

        (input, alpha, keep) -> (logits, confidence, label, [spikes], [net_spikes])
        state <- keep * state + (1 - keep) * initial,   before every call

    What is rewritten, and why (measured in docs/adr/0009-openvino.md):
    - states are variables of the model, started anew by `keep`: to reset or to write them costs as much as a call;
    - spikes are unsigned bytes. OpenVINO shifts int8 by 128, and sums of such spikes overflow on x86 without VNNI;
    - what is one number per input and channel comes out of a convolution. An element-wise operation gets the layout
      that most of its inputs have there, and would else transpose membranes in every call;
    - ReduceL1 is read as ReduceL2 and turned back, because OpenVINO loses its axes (its issue 38238).

    Sums are exact in any order (contract.md, Exactness), so no bit depends on any of this.
    Raises: RuntimeError, OpenVINO's own, for a graph that it cannot read.
    """
    import openvino as ov  # what opens an engine has imported it, by `load_openvino`

    norms = _l1_as_l2(network)
    model = ov.Core().read_model(network.SerializeToString())
    model.reshape({end.get_any_name(): _static(end.get_partial_shape(), batch) for end in model.inputs})
    tensors = {name: end for node in model.get_ops() for end in node.outputs() for name in end.get_names()}
    for name in norms:
        _l1_again(tensors[name])
    _unsigned_bytes(network, tensors, signed=manifest.method.name == "qffs")
    _gates_by_convolution(model, batch)
    _states_inside(model, manifest, batch)
    model.validate_nodes_and_infer_types()
    return model


def _static(shape: ov.PartialShape, batch: int) -> list[int]:
    return [batch if dim.is_dynamic else dim.get_length() for dim in shape]


def _l1_as_l2(network: onnx.ModelProto) -> list[str]:
    """Make a ReduceL2 of every ReduceL1; return the names of their results."""
    nodes = [node for node in network.graph.node if node.op_type == "ReduceL1"]
    for node in nodes:
        node.op_type = "ReduceL2"
    return [node.output[0] for node in nodes]


def _l1_again(norm: ov.Output) -> None:
    from openvino import opset13 as ops

    node = norm.get_node()
    norm.replace(ops.reduce_l1(*node.input_values(), node.get_attributes()["keep_dims"]).output(0))


def _unsigned_bytes(network: onnx.ModelProto, tensors: dict[str, ov.Output], *, signed: bool) -> None:
    """Quantise every source as z + shift in 0 … 255; leave one in float32 whose bytes would be too large.

    QCFS: shift 0, and a sum of spikes is at most 127 (contract.md). QFFS: as much as the source can be negative.
    """
    from openvino import opset13 as ops

    spikes: dict[str, ov.Output] = {}
    for node in network.graph.node:
        if node.op_type == "QuantizeLinear":
            source = tensors[node.input[0]]
            shift = _largest(source) if signed else 0
            if 2 * shift <= LARGEST_BYTE:
                ends = (np.float32(value) for value in (-shift, 255 - shift, 0, 255))
                quantised = ops.convert(ops.fake_quantize(source, *ends, 256), "u8")
                zero = ops.convert(ops.constant(np.uint8(shift)), "f32")
                values = ops.subtract(ops.convert(quantised, "f32"), zero)
                source = ops.multiply(values, np.float32(1)).output(0)  # without a scale it is no dequantisation
            spikes[node.output[0]] = source
        elif node.op_type == "DequantizeLinear" and node.input[0] in spikes:
            tensors[node.output[0]].replace(spikes[node.input[0]])


def _largest(source: ov.Output) -> float:
    """A bound of the magnitude of what a QFFS source emits in one time step; infinite where it cannot be told."""
    node = source.get_node()
    kind, inputs = node.get_type_name(), node.input_values()
    if kind == "Subtract":  # a layer's own spikes: what n becomes, less what it was
        return 1
    if kind in ("Concat", "AvgPool"):
        return max(map(_largest, inputs))
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


def _gates_by_convolution(model: ov.Model, batch: int) -> None:
    """gate `[N, 1, 1, 1]` * bias `[1, C, 1, 1]`, of QFFS, as a 1 x 1 convolution of the gate."""
    for node in model.get_ops():
        if node.get_type_name() == "Multiply":
            bias, gate = node.input_values()
            if bias.get_node().get_type_name() == "Constant" and list(gate.get_shape()) == [batch, 1, 1, 1]:
                shape = list(bias.get_shape())
                if len(shape) == 4 and shape[1] > 1 and shape[2:] == [1, 1]:
                    node.output(0).replace(_per_channel(gate, bias.get_node().data.reshape(-1)))


def _per_channel(values: ov.Output, weights: np.ndarray) -> ov.Output:
    """values `[N, 1, 1, 1]` times weights `[C]`, as a convolution: `[N, C, 1, 1]`, channels last."""
    from openvino import opset13 as ops

    kernel = ops.constant(weights.reshape(-1, 1, 1, 1).astype(np.float32))
    return ops.convolution(values, kernel, [1, 1], [0, 0], [0, 0], [1, 1]).output(0)


def _states_inside(model: ov.Model, manifest: Manifest, batch: int) -> None:
    """Replace the inputs and outputs of the states by variables, and give the model the input `keep`."""
    import openvino as ov
    from openvino import op
    from openvino import opset13 as ops
    from openvino.op.util import Variable, VariableInfo

    keep = ops.parameter([batch, 1, 1, 1], np.float32, KEEP)
    keep.output(0).set_names({KEEP})
    model.add_parameters([keep])
    gates = {"keep": keep.output(0), "start": ops.subtract(np.float32(1), keep).output(0)}
    made: dict[tuple[Any, ...], ov.Output] = {}

    def spread(gate: str, factor: float, shape: list[int]) -> ov.Output:
        """The gate times factor, in a shape that broadcasts to a state's; once for all that need the same."""
        channels, axes = (shape[1] if len(shape) == 4 else 1), len(shape)
        key = gate, factor, channels, axes
        if key not in made:
            made[key] = _per_channel(gates[gate], np.full(channels, factor))
            if axes != 4:
                made[key] = ops.reshape(made[key], np.array([batch] + [1] * (axes - 1)), special_zero=False).output(0)
        return made[key]

    parameters = {parameter.output(0).get_any_name(): parameter for parameter in model.get_parameters()}
    results = {name: result for result in model.get_results() for name in result.input_value(0).get_names()}
    for state in manifest.states:
        shape = list(shape_at(state.shape, batch))
        info = VariableInfo()
        info.data_shape, info.data_type, info.variable_id = ov.PartialShape(shape), ov.Type.f32, state.input
        variable = Variable(info)
        model.add_variables([variable])
        parameter, result = parameters[state.input], results[state.output]
        kept = ops.multiply(op.read_value(variable), spread("keep", 1.0, shape)).output(0)
        after = result.input_value(0).get_node()
        if state.initial:
            start = spread("start", state.initial, shape)
            _read_membrane(parameter, kept, start, alone=manifest.steps_per_call == 1)
        else:
            parameter.output(0).replace(kept)
        model.add_sinks([op.assign(after, variable)])
        model.remove_result(result)
        model.remove_parameter(parameter)


def _read_membrane(parameter: ov.Node, kept: ov.Output, start: ov.Output, *, alone: bool) -> None:
    """Let what reads the membrane v read kept + start; `alone`: in the only step of a call.

        v + I  ->  (I + start) + kept,   alone: v + (I + b)  ->  ((I + start) + kept) + b,   start and b: per channel

    In these orders, because a convolution takes an addition of equal shapes to its result upon itself before layouts
    are chosen: kept + start would get another one than the convolution's.
    """
    from openvino import opset13 as ops

    readers = [end.get_node() for end in parameter.output(0).get_target_inputs()]
    if len(readers) != 1 or readers[0].get_type_name() != "Add":
        parameter.output(0).replace(ops.add(kept, start).output(0))
        return
    current = next(end for end in readers[0].input_values() if end.get_node().name != parameter.name)
    biases: list[ov.Output] = []
    if alone and current.get_node().get_type_name() == "Add":
        terms = current.get_node().input_values()
        wide = [end for end in terms if list(end.get_shape())[2:] != [1, 1]]
        if len(wide) == 1:
            current, biases = wide[0], [end for end in terms if end is not wide[0]]
    for term in (start, kept, *biases):
        current = ops.add(current, term).output(0)
    readers[0].output(0).replace(current)
