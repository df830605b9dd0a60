"""Write a spiking network as one ONNX graph of K time steps with explicit state (docs/contract.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from ..runtime.manifest import Dim, GraphForm, Output, State
from .onnx_conv_form import ConvForm
from .onnx_currents import Call, Form, currents, injection_gates, sums
from .onnx_graph import GraphBuilder
from .onnx_matmul_form import MatmulForm
from .snn import INPUT, Pool, Snn

SCALE_INPUT = "alpha"


FORMS: dict[GraphForm, Callable[[GraphBuilder, Snn], Form]] = {"conv": ConvForm, "matmul": MatmulForm}


@dataclass(frozen=True)
class StepGraph:
    """The exported graph, and the parts of the manifest that follow from it."""

    model: onnx.ModelProto
    input_shape: tuple[Dim, ...]
    states: tuple[State, ...]
    outputs: tuple[Output, ...]


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
    for every engine; "matmul", faster on ONNX Runtime's CPU in int8, and for wide networks in fp32. `probe` adds every
    spike train as `spikes.<layer>` `[K * N, channel, y, x]`, for the self-check only.
    """
    graph = GraphBuilder()
    input_shape: tuple[Dim, ...] = (steps_per_call, "N", *snn.input_shape) if frames else ("N", *snn.input_shape)
    graph.input(INPUT, "uint8", input_shape)
    graph.input(SCALE_INPUT, "float32", ())
    laid = FORMS[form](graph, snn)
    call = Call(graph, laid, snn, steps_per_call, frames, injection_gates(graph, snn, steps_per_call))
    laid.trains[INPUT] = _pixels(call)
    signed = snn.method.name == "qffs"
    counted = ("spikes",) * (count_spikes or signed) + ("net_spikes",) * (count_spikes and signed)
    counts: dict[str, list[str]] = {name: [] for name in counted}
    for node in snn.nodes:
        if isinstance(node, Pool):
            laid.pool(node)
            continue
        laid.neurons(node, sums(call, node) if laid.cumulative else currents(call, node))
        for name in counted:  # here, not at the end, where the spikes are no longer in the cache
            counts[name].append(laid.count(f"{node.name}/{name}", node.name, net=name == "net_spikes"))
    _answers(call, _accumulated(call))
    for name in counted:
        _spike_counts(call, name, counts[name])
    if probe:
        for layer in snn.layers:
            laid.probe(f"spikes.{layer.name}", layer.name)
            graph.debug_output(f"spikes.{layer.name}", "float32", ("K*N", *layer.shape))
    return StepGraph(graph.model("step"), input_shape, tuple(graph.states), tuple(graph.outputs))


def _pixels(call: Call) -> str:
    """The image `[N, channel, y, x]`, or the frames of the call `[K * N, …]`, in float32."""
    pixels = call.graph.add("Cast", "pixels", INPUT, to=onnx.TensorProto.FLOAT)
    if not call.frames:
        return pixels
    pixels = call.graph.add("Reshape", "pixels/batched", pixels, call.graph.integers(-1, *call.snn.input_shape))
    if call.gates is not None:
        gates = call.graph.batched("injection/gates", list(call.gates))
        pixels = call.graph.add("Mul", "pixels/gated", pixels, gates)
    return pixels


def _accumulated(call: Call) -> list[str]:
    """acc' = acc + read-out, one `[N, class]` per step; a sum of currents needs no state."""
    graph, readout = call.graph, call.snn.readout
    brought = sums(call, readout, 0.0) if call.form.cumulative else currents(call, readout)
    flat = [graph.add("Flatten", f"readout/flat.{step}", current, axis=1) for step, current in enumerate(brought)]
    if call.form.cumulative:
        return flat
    acc, acc_out = graph.state("acc", "", (readout.shape[0],), 0.0)
    totals = []
    for step, current in enumerate(flat):
        acc = graph.add("Add", acc_out if step == call.steps - 1 else f"readout/acc.{step}", acc, current)
        totals.append(acc)
    return totals


def _answers(call: Call, totals: list[str]) -> None:
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


def _spike_counts(call: Call, name: str, counts: list[str]) -> None:
    """spikes, net_spikes `[K, N, layer]`: sum of |z| or of z of each layer in each step, from `[K * N]` per layer."""
    graph = call.graph
    columns = [graph.add("Unsqueeze", f"{count}/column", count, graph.integers(1)) for count in counts]
    table = columns[0] if len(columns) == 1 else graph.add("Concat", f"{name}/table", *columns, axis=1)
    graph.add("Reshape", name, table, graph.integers(call.steps, -1, len(columns)))
    graph.output(name, "float32", (call.steps, "N", len(columns)))
