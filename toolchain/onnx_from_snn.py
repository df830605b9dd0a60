"""Write a spiking network as one ONNX graph of K time steps with explicit state (docs/contract.md)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from ..runtime.manifest import Dim, Output, State
from .onnx_graph import GraphBuilder
from .onnx_neurons import if_neurons, signed_if_neurons
from .onnx_synapses import synapse_current
from .snn import INPUT, Layer, Pool, Shape, Snn, Synapse

SCALE_INPUT = "alpha"


@dataclass(frozen=True)
class StepGraph:
    """The exported graph, and the parts of the manifest that follow from it."""

    model: onnx.ModelProto
    input_shape: tuple[Dim, ...]
    states: tuple[State, ...]
    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class _Train:
    """What a source emits during the call: `[K * N, channel, y, x]` step by step, or one `[N, …]` for every step."""

    tensor: str
    constant: bool


@dataclass(frozen=True)
class _Call:
    """What every part of the graph needs to know."""

    graph: GraphBuilder
    snn: Snn
    steps: int
    gates: tuple[str, ...] | None
    """Per step `[N, 1, 1, 1]`: 1 while image and biases are injected, 0 afterwards. None: injected in every step."""

    def per_step(self, name: str, tensor: str) -> list[str]:
        """Cut `[K * N, …]` into K tensors `[N, …]`."""
        return [tensor] if self.steps == 1 else self.graph.split(name, tensor, self.steps)

    def batched(self, name: str, tensors: list[str], axis: int = 0) -> str:
        return tensors[0] if len(tensors) == 1 else self.graph.add("Concat", name, *tensors, axis=axis)


def onnx_from_snn(
    snn: Snn, *, steps_per_call: int = 1, frames: bool = False, count_spikes: bool = False, probe: bool = False
) -> StepGraph:
    """Write `steps_per_call` (K) time steps of a spiking network as one ONNX graph.

        (input, alpha, *states in) -> (logits, confidence, label, spikes, net_spikes, *states out)

    Convolutions run once, batched over the K steps; only the neurons' recurrence is unrolled. `frames` makes the input
    `[K, N, …]`, one image per step, instead of one `[N, …]` for all. `count_spikes` adds the output `spikes`
    `[K, N, layer]` (always there for QFFS, whose quiescence exit reads it), and for QFFS `net_spikes`. `probe` adds
    every spike train as `spikes.<layer>` `[K * N, channel, y, x]`, for the self-check only.
    """
    graph = GraphBuilder()
    input_shape: tuple[Dim, ...] = (steps_per_call, "N", *snn.input_shape) if frames else ("N", *snn.input_shape)
    graph.input(INPUT, "uint8", input_shape)
    graph.input(SCALE_INPUT, "float32", ())
    call = _Call(graph, snn, steps_per_call, _injection_gates(graph, snn, steps_per_call))
    trains = {INPUT: _pixels(call, frames)}
    shapes = {INPUT: snn.input_shape, **{node.name: node.shape for node in snn.nodes}}
    for node in snn.nodes:
        if isinstance(node, Pool):
            pooled = _sum_pool(graph, node, trains[node.source].tensor, shapes[node.source])
            trains[node.name] = _Train(pooled, constant=False)
            continue
        currents = _currents(call, node, trains)
        if snn.method.name == "qcfs":
            spikes = if_neurons(graph, node, currents)
        else:
            spikes = signed_if_neurons(graph, node, currents, snn.method.levels)
        trains[node.name] = _Train(call.batched(f"{node.name}/z", spikes), constant=False)
    _answers(call, _accumulate(call, _currents(call, snn.readout, trains)))
    if count_spikes or snn.method.name == "qffs":
        _spike_counts(call, trains, net=count_spikes and snn.method.name == "qffs")
    if probe:
        for layer in snn.layers:
            graph.add("Identity", f"spikes.{layer.name}", trains[layer.name].tensor)
            graph.debug_output(f"spikes.{layer.name}", "float32", ("K*N", *layer.shape))
    return StepGraph(graph.model("step"), input_shape, tuple(graph.states), tuple(graph.outputs))


def _injection_gates(graph: GraphBuilder, snn: Snn, steps: int) -> tuple[str, ...] | None:
    """QFFS: count the steps done per input, in a state, and open the gate for the first `injection_steps` of them."""
    if snn.method.injection_steps is None:
        return None
    before, after = graph.state("t", "", (1, 1, 1), 0.0)
    graph.add("Add", after, before, graph.scalar(steps))
    gates = []
    for step in range(steps):
        left = graph.add("Sub", f"injection/left.{step}", graph.scalar(snn.method.injection_steps - step), before)
        gates.append(graph.add("Clip", f"injection/gate.{step}", left, graph.scalar(0), graph.scalar(1)))
    return tuple(gates)


def _pixels(call: _Call, frames: bool) -> _Train:
    pixels = call.graph.add("Cast", "pixels", INPUT, to=onnx.TensorProto.FLOAT)
    if not frames:
        return _Train(pixels, constant=True)
    pixels = call.graph.add("Reshape", "pixels/batched", pixels, call.graph.integers(-1, *call.snn.input_shape))
    if call.gates is not None:
        pixels = call.graph.add("Mul", "pixels/gated", pixels, call.batched("injection/gates", list(call.gates)))
    return _Train(pixels, constant=False)


def _currents(call: _Call, layer: Layer, trains: dict[str, _Train]) -> list[str]:
    """The current into a layer, one `[N, channel, y, x]` per step: spikes batched over the steps, injection added."""
    graph, name = call.graph, layer.name
    moving = [(i, s) for i, s in enumerate(layer.synapses) if not trains[s.source].constant]
    steady = [(i, s) for i, s in enumerate(layer.synapses) if trains[s.source].constant]
    # A bias that differs from channel to channel only, and enters in every step, rides in a convolution for free; not
    # in half precision, where it would be rounded.
    carriers = [i for i, s in steady or moving if not s.is_identity and s.precision != "fp16"]
    rides = call.gates is None and layer.bias.shape[1:] == (1, 1) and carriers
    free = {carriers[0]: layer.bias} if rides else {}

    def current(synapses: list[tuple[int, Synapse]]) -> list[str]:
        return [synapse_current(graph, f"{name}/i{i}", s, trains[s.source].tensor, free.get(i)) for i, s in synapses]

    injected = current(steady)
    if not rides and np.any(layer.bias):
        injected.append(graph.constant(f"{name}/bias", layer.bias[None].astype(np.float32)))
    total = _sum(graph, f"{name}/injected", injected)
    batched = _sum(graph, f"{name}/i", current(moving))
    per_step = call.per_step(f"{name}/i.split", batched) if batched else []
    result = []
    for step in range(call.steps):
        parts = per_step[step : step + 1]
        if total:
            gated = total if call.gates is None else graph.add("Mul", f"{name}/gated.{step}", total, call.gates[step])
            parts = [*parts, gated]
        current_name = f"{name}/current.{step}"
        result.append(
            _sum(graph, current_name, parts) or graph.constant(current_name, np.zeros((1, 1, 1, 1), np.float32))
        )
    return result


def _sum(graph: GraphBuilder, name: str, terms: list[str]) -> str | None:
    if not terms:
        return None
    total = terms[0]
    for index, term in enumerate(terms[1:], start=1):
        total = graph.add("Add", name if index == len(terms) - 1 else f"{name}.{index}", total, term)
    return total


def _sum_pool(graph: GraphBuilder, pool: Pool, source: str, source_shape: Shape) -> str:
    """Sum over windows, in a form whose every intermediate value is exact."""
    area = math.prod(pool.kernel)
    if area == 1 and pool.stride == (1, 1):
        return source
    if pool.kernel == source_shape[1:] and pool.padding == (0, 0):
        return graph.add("ReduceSum", f"{pool.name}/sum", source, graph.integers(2, 3), keepdims=1)
    windows = {"kernel_shape": list(pool.kernel), "strides": list(pool.stride), "pads": [*pool.padding, *pool.padding]}
    if area & (area - 1) == 0:  # dividing by a power of two is exact
        mean = graph.add("AveragePool", f"{pool.name}/mean", source, count_include_pad=1, **windows)
        return graph.add("Mul", f"{pool.name}/sum", mean, graph.scalar(area))
    ones = graph.constant(f"{pool.name}/ones", np.ones((pool.shape[0], 1, *pool.kernel), np.float32))
    return graph.add("Conv", f"{pool.name}/sum", source, ones, group=pool.shape[0], **windows)


def _accumulate(call: _Call, currents: list[str]) -> list[str]:
    """acc' = acc + read-out, one `[N, class]` per step."""
    graph, classes = call.graph, call.snn.readout.shape[0]
    acc, acc_out = graph.state("acc", "", (classes,), 0.0)
    totals = []
    for step, current in enumerate(currents):
        flat = graph.add("Flatten", f"readout/flat.{step}", current, axis=1)
        acc = graph.add("Add", acc_out if step == call.steps - 1 else f"readout/acc.{step}", acc, flat)
        totals.append(acc)
    return totals


def _answers(call: _Call, totals: list[str]) -> None:
    """logits `[K, N, class]`; confidence = max softmax(logits / alpha) and label = argmax, `[K, N]`."""
    graph, steps, classes = call.graph, call.steps, call.snn.readout.shape[0]
    if steps == 1:
        graph.add("Unsqueeze", "logits", totals[0], graph.integers(0))
    else:
        rows = [graph.add("Unsqueeze", f"logits.{i}", t, graph.integers(0)) for i, t in enumerate(totals)]
        graph.add("Concat", "logits", *rows, axis=0)
    scaled = graph.add("Div", "confidence/scaled", "logits", SCALE_INPUT)
    graph.add("ReduceMax", "confidence", graph.add("Softmax", "confidence/p", scaled, axis=-1), axes=[-1], keepdims=0)
    graph.add("ArgMax", "label", "logits", axis=-1, keepdims=0)
    graph.output("logits", "float32", (steps, "N", classes))
    graph.output("confidence", "float32", (steps, "N"))
    graph.output("label", "int64", (steps, "N"))


def _spike_counts(call: _Call, trains: dict[str, _Train], *, net: bool) -> None:
    """spikes, net_spikes `[K, N, layer]`: sum of |z| and, where `net`, of z, of each layer in each step."""
    graph, layers = call.graph, call.snn.layers

    def output(name: str, count: Callable[[str, str], str]) -> None:
        columns = []
        for layer in layers:
            counted = count(f"{layer.name}/{name}", trains[layer.name].tensor)
            columns.append(graph.add("Unsqueeze", f"{layer.name}/{name}/column", counted, graph.integers(1)))
        table = call.batched(f"{name}/table", columns, axis=1)
        graph.add("Reshape", name, table, graph.integers(call.steps, -1, len(layers)))
        graph.output(name, "float32", (call.steps, "N", len(layers)))

    output("spikes", lambda name, train: graph.add("ReduceL1", name, train, axes=[1, 2, 3], keepdims=0))
    if net:
        axes = graph.integers(1, 2, 3)
        output("net_spikes", lambda name, train: graph.add("ReduceSum", name, train, axes, keepdims=0))
