"""The graph's form for every engine: convolutions over `[batch, channel, y, x]`, in float32, half precision or int8."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from .onnx_graph import GraphBuilder
from .onnx_neurons import if_neurons, signed_if_neurons
from .snn import Layer, Pool, Snn, Synapse


@dataclass
class ConvForm:
    """See `onnx_currents.Form`."""

    graph: GraphBuilder
    snn: Snn
    cumulative = False
    trains: dict[str, str] = field(default_factory=dict)
    """What each source emits in the call: `[K * N, channel, y, x]` step by step, or one `[N, …]` for every step."""

    def probe(self, name: str, source: str) -> None:
        self.graph.add("Identity", name, self.trains[source])

    def bias(self, layer: Layer) -> np.ndarray:
        return layer.bias[None]

    def state(self, layer: Layer) -> tuple[int, ...]:
        return layer.shape

    def count(self, name: str, layer: str, *, net: bool) -> str:
        graph, train = self.graph, self.trains[layer]
        if net:
            return graph.add("ReduceSum", name, train, graph.integers(1, 2, 3), keepdims=0)
        return graph.add("ReduceL1", name, train, axes=[1, 2, 3], keepdims=0)

    def neurons(self, layer: Layer, currents: list[str]) -> None:
        if self.snn.method.name == "qcfs":
            spikes = if_neurons(self.graph, layer, currents)
        else:
            spikes = signed_if_neurons(self.graph, layer, currents, self.snn.method.levels)
        self.trains[layer.name] = self.graph.batched(f"{layer.name}/z", spikes)

    def pool(self, pool: Pool) -> None:
        """Sum over windows, in a form whose every intermediate value is exact."""
        graph, source = self.graph, self.trains[pool.source]
        area = math.prod(pool.kernel)
        windows = {
            "kernel_shape": list(pool.kernel),
            "strides": list(pool.stride),
            "pads": [*pool.padding, *pool.padding],
        }
        if area == 1 and pool.stride == (1, 1):
            total = source
        elif pool.kernel == self.snn.shape_of(pool.source)[1:] and pool.padding == (0, 0):
            total = graph.add("ReduceSum", f"{pool.name}/sum", source, graph.integers(2, 3), keepdims=1)
        elif area & (area - 1) == 0:  # dividing by a power of two is exact
            mean = graph.add("AveragePool", f"{pool.name}/mean", source, count_include_pad=1, **windows)
            total = graph.add("Mul", f"{pool.name}/sum", mean, graph.scalar(area))
        else:
            ones = graph.constant(f"{pool.name}/ones", np.ones((pool.shape[0], 1, *pool.kernel), np.float32))
            total = graph.add("Conv", f"{pool.name}/sum", source, ones, group=pool.shape[0], **windows)
        self.trains[pool.name] = total

    def by_step(self, layer: Layer) -> bool:
        """No: an engine that does better so finds the steps itself (docs/adr/0012-nchwc.md)."""
        return False

    def current(self, name: str, synapse: Synapse, bias: np.ndarray | None, step: int | None = None) -> str:
        """Add the current of a synapse in all steps.

        int8: DequantizeLinear on the weights, and QuantizeLinear with scale 1 and DequantizeLinear around the spikes,
        which are integers already: so TensorRT takes its int8 kernels, nothing is rounded, and sums of weights times
        spikes are exact integers times the unit of their channel.
        """
        graph, source = self.graph, self.trains[synapse.source]
        if synapse.is_identity:
            gain = synapse.weight.astype(np.float32)
            return source if gain == 1.0 else graph.add("Mul", name, source, graph.constant(f"{name}/gain", gain))
        if synapse.precision == "fp16":
            half = graph.once("Cast", f"{source}/half", source, to=TensorProto.FLOAT16)
            weight = graph.constant(f"{name}/w", synapse.weight.astype(np.float16))
            rounded = convolution(graph, f"{name}/conv", synapse, half, weight)
            return graph.add("Cast", name, rounded, to=TensorProto.FLOAT)
        extra = riding(graph, name, bias)
        if synapse.unit is None:
            return convolution(graph, name, synapse, source, float_weight(graph, name, synapse), *extra)
        zero, one = graph.constant("const/0_int8", np.array(0, np.int8)), graph.scalar(1)
        quantised = graph.once("QuantizeLinear", f"{source}/int8", source, one, zero)
        spikes = graph.once("DequantizeLinear", f"{source}/spikes", quantised, one, zero)
        integers = graph.constant(f"{name}/w.int8", synapse.in_units(synapse.unit).astype(np.int8))
        unit = graph.constant(f"{name}/unit", synapse.unit.astype(np.float32))
        weight = graph.add("DequantizeLinear", f"{name}/w", integers, unit, axis=0)
        return convolution(graph, name, synapse, spikes, weight, *extra)


def riding(graph: GraphBuilder, name: str, bias: np.ndarray | None) -> list[str]:
    """The bias `[out]` as one more operand, where there is one."""
    return [] if bias is None else [graph.constant(f"{name}/b", bias.reshape(-1).astype(np.float32))]


def float_weight(graph: GraphBuilder, name: str, synapse: Synapse) -> str:
    return graph.constant(f"{name}/w", synapse.weight.astype(np.float32))


def convolution(graph: GraphBuilder, name: str, synapse: Synapse, *inputs: str) -> str:
    """Add a convolution of source, weight and perhaps bias, all `[…, channel, y, x]`."""
    return graph.add(
        "Conv",
        name,
        *inputs,
        kernel_shape=list(synapse.weight.shape[2:]),
        strides=list(synapse.stride),
        pads=[*synapse.padding, *synapse.padding],
        group=synapse.groups,
    )
