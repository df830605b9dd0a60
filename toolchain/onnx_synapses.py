"""Synapses as ONNX nodes: a convolution in float32, in half precision or in int8, or an identity times a gain."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from .onnx_graph import GraphBuilder
from .snn import Synapse


def synapse_current(graph: GraphBuilder, name: str, synapse: Synapse, source: str, bias: np.ndarray | None) -> str:
    """Add the current, float32 `[batch, out, y, x]`, that a synapse makes of its source; `bias` rides in a convolution.

    int8: DequantizeLinear on the weights, and QuantizeLinear with scale 1 and DequantizeLinear around the spikes, which
    are integers already: so TensorRT takes its int8 kernels, nothing is rounded, and sums of weights times spikes are
    exact integers times the unit of their channel.
    """
    if synapse.is_identity:
        gain = synapse.weight.astype(np.float32)
        return source if gain == 1.0 else graph.add("Mul", name, source, graph.constant(f"{name}/gain", gain))
    if synapse.precision == "fp16":
        half = graph.once("Cast", f"{source}/half", source, to=TensorProto.FLOAT16)
        weight = graph.constant(f"{name}/w", synapse.weight.astype(np.float16))
        return graph.add("Cast", name, _convolution(graph, f"{name}/conv", synapse, half, weight), to=TensorProto.FLOAT)
    extra = [] if bias is None else [graph.constant(f"{name}/b", bias.reshape(-1).astype(np.float32))]
    if synapse.unit is None:
        weight = graph.constant(f"{name}/w", synapse.weight.astype(np.float32))
        return _convolution(graph, name, synapse, source, weight, *extra)
    zero, one = graph.constant("const/0_int8", np.array(0, np.int8)), graph.scalar(1)
    quantised = graph.once("QuantizeLinear", f"{source}/int8", source, one, zero)
    spikes = graph.once("DequantizeLinear", f"{source}/spikes", quantised, one, zero)
    integers = np.round(synapse.weight / synapse.unit.reshape(-1, 1, 1, 1)).astype(np.int8)
    unit = graph.constant(f"{name}/unit", synapse.unit.astype(np.float32))
    weight = graph.add("DequantizeLinear", f"{name}/w", graph.constant(f"{name}/w.int8", integers), unit, axis=0)
    return _convolution(graph, name, synapse, spikes, weight, *extra)


def _convolution(graph: GraphBuilder, name: str, synapse: Synapse, *inputs: str) -> str:
    return graph.add(
        "Conv",
        name,
        *inputs,
        kernel_shape=list(synapse.weight.shape[2:]),
        strides=list(synapse.stride),
        pads=[*synapse.padding, *synapse.padding],
        group=synapse.groups,
    )
