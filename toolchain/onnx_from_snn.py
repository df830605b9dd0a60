"""Write a spiking network as one ONNX graph of K time steps with explicit state (docs/contract.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx

from ..runtime.manifest import Dim, GraphForm, Output, State
from .onnx_conv_form import ConvForm
from .onnx_graph import GraphBuilder
from .onnx_matmul_form import MatmulForm
from .snn import INPUT, Layer, Pool, Snn, Synapse

SCALE_INPUT = "alpha"


class Form(Protocol):
    """How tensors lie, and what a synapse and a neuron are made of; it keeps what every source emits in the call."""

    trains: dict[str, str]

    def neurons(self, layer: Layer, currents: list[str]) -> None:
        """Add neurons that take one current per step."""
        ...

    def pool(self, pool: Pool) -> None:
        """Add the sum of a source over windows."""
        ...

    def current(self, name: str, synapse: Synapse, bias: np.ndarray | None) -> str:
        """Add the current, float32, that a synapse makes of its source; `bias` rides in a convolution."""
        ...

    def bias(self, bias: np.ndarray) -> np.ndarray:
        """Lay out a bias `[channel, y, x]` like a current of one input."""
        ...

    def spikes(self, source: str) -> str:
        """Return what a source emits, float32, `[K * N, …]` with the other axes in any order."""
        ...

    def probe(self, name: str, source: str) -> None:
        """Add a tensor of this name, `[K * N, channel, y, x]`, with the spikes of a layer."""
        ...


FORMS: dict[GraphForm, Callable[[GraphBuilder, Snn], Form]] = {"conv": ConvForm, "matmul": MatmulForm}


@dataclass(frozen=True)
class StepGraph:
    """The exported graph, and the parts of the manifest that follow from it."""

    model: onnx.ModelProto
    input_shape: tuple[Dim, ...]
    states: tuple[State, ...]
    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class _Call:
    """What every part of the graph needs to know."""

    graph: GraphBuilder
    form: Form
    snn: Snn
    steps: int
    frames: bool
    gates: tuple[str, ...] | None
    """Per step `[N, 1, 1, 1]`: 1 while image and biases are injected, 0 afterwards. None: injected in every step."""

    def is_still(self, source: str) -> bool:
        """Whether the source is one `[N, …]` for all steps of the call."""
        return source == INPUT and not self.frames

    def per_step(self, name: str, tensor: str) -> list[str]:
        """Cut `[K * N, …]` into K tensors `[N, …]`."""
        return [tensor] if self.steps == 1 else self.graph.split(name, tensor, self.steps)


def onnx_from_snn(
    snn: Snn,
    *,
    steps_per_call: int = 1,
    frames: bool = False,
    count_spikes: bool = False,
    form: GraphForm = "conv",
    probe: bool = False,
) -> StepGraph:
    """Write `steps_per_call` (K) time steps of a spiking network as one ONNX graph.

        (input, alpha, *states in) -> (logits, confidence, label, spikes, net_spikes, *states out)

    Synapses run once, batched over the K steps; only the neurons' recurrence is unrolled. `frames` makes the input
    `[K, N, …]`, one image per step, instead of one `[N, …]` for all. `count_spikes` adds the output `spikes`
    `[K, N, layer]` (always there for QFFS, whose quiescence exit reads it), and for QFFS `net_spikes`. `form`: "conv"
    for every engine; "matmul", faster on ONNX Runtime's CPU for a network in int8. `probe` adds every spike train as
    `spikes.<layer>` `[K * N, channel, y, x]`, for the self-check only.
    """
    graph = GraphBuilder()
    input_shape: tuple[Dim, ...] = (steps_per_call, "N", *snn.input_shape) if frames else ("N", *snn.input_shape)
    graph.input(INPUT, "uint8", input_shape)
    graph.input(SCALE_INPUT, "float32", ())
    laid = FORMS[form](graph, snn)
    call = _Call(graph, laid, snn, steps_per_call, frames, _injection_gates(graph, snn, steps_per_call))
    laid.trains[INPUT] = _pixels(call)
    for node in snn.nodes:
        if isinstance(node, Pool):
            laid.pool(node)
        else:
            laid.neurons(node, _currents(call, node))
    _answers(call, _accumulate(call, _currents(call, snn.readout)))
    if count_spikes or snn.method.name == "qffs":
        _spike_counts(call, net=count_spikes and snn.method.name == "qffs")
    if probe:
        for layer in snn.layers:
            laid.probe(f"spikes.{layer.name}", layer.name)
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


def _pixels(call: _Call) -> str:
    """The image `[N, channel, y, x]`, or the frames of the call `[K * N, …]`, in float32."""
    pixels = call.graph.add("Cast", "pixels", INPUT, to=onnx.TensorProto.FLOAT)
    if not call.frames:
        return pixels
    pixels = call.graph.add("Reshape", "pixels/batched", pixels, call.graph.integers(-1, *call.snn.input_shape))
    if call.gates is not None:
        gates = call.graph.batched("injection/gates", list(call.gates))
        pixels = call.graph.add("Mul", "pixels/gated", pixels, gates)
    return pixels


def _currents(call: _Call, layer: Layer) -> list[str]:
    """The current into a layer, one `[N, …]` per step: spikes batched over the steps, injection added."""
    graph, name = call.graph, layer.name
    moving = [(i, s) for i, s in enumerate(layer.synapses) if not call.is_still(s.source)]
    steady = [(i, s) for i, s in enumerate(layer.synapses) if call.is_still(s.source)]
    # A bias that differs from channel to channel only, and enters in every step, rides in a convolution for free; not
    # in half precision, where it would be rounded.
    carriers = [i for i, s in steady or moving if not s.is_identity and s.precision != "fp16"]
    rides = call.gates is None and layer.bias.shape[1:] == (1, 1) and carriers
    free = {carriers[0]: layer.bias} if rides else {}

    def current(synapses: list[tuple[int, Synapse]]) -> list[str]:
        return [call.form.current(f"{name}/i{i}", s, free.get(i)) for i, s in synapses]

    injected = current(steady)
    if not rides and np.any(layer.bias):
        injected.append(graph.constant(f"{name}/bias", call.form.bias(layer.bias).astype(np.float32)))
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


def _spike_counts(call: _Call, *, net: bool) -> None:
    """spikes, net_spikes `[K, N, layer]`: sum of |z| and, where `net`, of z, of each layer in each step."""
    graph, layers = call.graph, call.snn.layers

    def output(name: str, count: Callable[[str, str], str]) -> None:
        columns = []
        for layer in layers:
            counted = count(f"{layer.name}/{name}", call.form.spikes(layer.name))
            columns.append(graph.add("Unsqueeze", f"{layer.name}/{name}/column", counted, graph.integers(1)))
        table = columns[0] if len(columns) == 1 else graph.add("Concat", f"{name}/table", *columns, axis=1)
        graph.add("Reshape", name, table, graph.integers(call.steps, -1, len(layers)))
        graph.output(name, "float32", (call.steps, "N", len(layers)))

    output("spikes", lambda name, train: graph.add("ReduceL1", name, train, axes=[1, 2, 3], keepdims=0))
    if net:
        axes = graph.integers(1, 2, 3)
        output("net_spikes", lambda name, train: graph.add("ReduceSum", name, train, axes, keepdims=0))
