"""The currents of a layer as ONNX nodes: what spikes bring, batched over the steps of a call, and what is injected."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from .onnx_graph import GraphBuilder, numbered
from .onnx_neurons import INITIAL_MEMBRANE
from .snn import INPUT, Layer, Pool, Snn, Synapse


class Form(Protocol):
    """How tensors lie, and what a synapse and a neuron are made of; it keeps what every source emits in the call."""

    trains: dict[str, str]

    @property
    def cumulative(self) -> bool:
        """Whether sources emit their net number of spikes so far, and neurons take the sum of their currents so far."""
        ...

    def neurons(self, layer: Layer, currents: list[str]) -> None:
        """Add neurons that take one current per step, or one sum of currents."""
        ...

    def pool(self, pool: Pool) -> None:
        """Add the sum of a source over windows."""
        ...

    def by_step(self, layer: Layer) -> bool:
        """Whether the currents of a layer are better made step by step than for all steps of a call at once."""
        ...

    def current(self, name: str, synapse: Synapse, bias: np.ndarray | None, step: int | None = None) -> str:
        """Add the current, float32, that a synapse makes of what its source emits in one step, or in all.

        `bias` rides in a convolution.
        """
        ...

    def bias(self, layer: Layer) -> np.ndarray:
        """Lay out the bias of a layer like a current of one input."""
        ...

    def state(self, layer: Layer) -> tuple[int, ...]:
        """Return the shape of a current of one input."""
        ...

    def count(self, name: str, layer: str, *, net: bool) -> str:
        """Add `[K * N]`: the spikes of either sign that a layer emits, or the positive ones less the negative."""
        ...

    def probe(self, name: str, source: str) -> None:
        """Add a tensor of this name, `[K * N, channel, y, x]`, with the spikes of a layer."""
        ...


@dataclass(frozen=True)
class Call:
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

    def parts(self, layer: Layer) -> list[int] | list[None]:
        """The steps of which a layer's currents are made one by one; None: of all at once."""
        return list(range(self.steps)) if self.steps > 1 and self.form.by_step(layer) else [None]

    def per_step(self, name: str, tensors: list[str]) -> list[str]:
        """Cut `[K * N, …]` into K tensors `[N, …]`, where they are not made one by one."""
        return tensors if len(tensors) == self.steps else self.graph.split(name, tensors[0], self.steps)


def injection_gates(graph: GraphBuilder, snn: Snn, steps: int) -> tuple[str, ...] | None:
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


def currents(call: Call, layer: Layer) -> list[str]:
    """The current into a layer, one `[N, …]` per step: spikes batched over the steps, injection added."""
    graph, name = call.graph, layer.name
    moving = [(i, s) for i, s in enumerate(layer.synapses) if not call.is_still(s.source)]
    steady = [(i, s) for i, s in enumerate(layer.synapses) if call.is_still(s.source)]
    # A bias that differs from channel to channel only, and enters in every step, rides in a convolution for free; not
    # in half precision, where it would be rounded.
    carriers = [i for i, s in steady or moving if not s.is_identity and s.precision != "fp16"]
    rides = call.gates is None and layer.bias.shape[1:] == (1, 1) and carriers
    free = {carriers[0]: layer.bias} if rides else {}

    injected = [call.form.current(f"{name}/i{i}", s, free.get(i)) for i, s in steady]
    if not rides and np.any(layer.bias):
        injected.append(graph.constant(f"{name}/bias", call.form.bias(layer).astype(np.float32)))
    total = _added(graph, f"{name}/injected", injected)
    per_step = _brought(call, layer, moving, free)
    result = []
    for step in range(call.steps):
        parts = per_step[step : step + 1]
        if total:
            gated = total if call.gates is None else graph.add("Mul", f"{name}/gated.{step}", total, call.gates[step])
            parts = [*parts, gated]
        current_name = f"{name}/current.{step}"
        result.append(
            _added(graph, current_name, parts) or graph.constant(current_name, np.zeros((1, 1, 1, 1), np.float32))
        )
    return result


def sums(call: Call, layer: Layer, initial: float = INITIAL_MEMBRANE) -> list[str]:
    """The initial membrane + the sum of a layer's currents so far, one `[N, …]` per step; for cumulative forms.

        s_t = 1/2 + sum of I_1 … I_t = 1/2 + W n_t + bias * min(t, injection_steps)

    Sources emit n_t, the sum of their spikes. What the image has brought is a state: another image may come.
    """
    graph, name = call.graph, layer.name
    image = tuple(synapse for synapse in layer.synapses if synapse.source == INPUT)
    spikes = [(i, synapse) for i, synapse in enumerate(layer.synapses) if synapse.source != INPUT]
    if not image:
        return call.per_step(
            f"{name}/s", [_with_bias(call, layer, spikes, initial, part) for part in call.parts(layer)]
        )
    s, s_out = graph.state("s", name, call.form.state(layer), initial)
    result = []
    others = _brought(call, layer, spikes, {})
    for step, current in enumerate(currents(call, replace(layer, name=f"{name}/image", synapses=image))):
        s = graph.add("Add", s_out if step == call.steps - 1 else f"{name}/s.{step}", s, current)
        result.append(graph.add("Add", f"{name}/sum.{step}", s, others[step]) if others else s)
    return result


def _brought(call: Call, layer: Layer, synapses: list[tuple[int, Synapse]], free: dict[int, np.ndarray]) -> list[str]:
    """What spikes bring, one `[N, …]` per step; nothing where there are no synapses."""
    totals = [
        _added(call.graph, numbered(f"{layer.name}/i", part), _currents(call, layer, synapses, free, part))
        for part in call.parts(layer)
    ]
    return call.per_step(f"{layer.name}/i.split", [total for total in totals if total]) if synapses else []


def _with_bias(call: Call, layer: Layer, synapses: list[tuple[int, Synapse]], initial: float, step: int | None) -> str:
    """What spikes have brought, the bias as often as it was injected, `initial`: of a step, or `[K * N, …]`."""
    graph, name, terms = call.graph, layer.name, _currents(call, layer, synapses, {}, step)
    if np.any(layer.bias):
        bias = graph.constant(f"{name}/bias", call.form.bias(layer).astype(np.float32))
        terms.append(graph.add("Mul", numbered(f"{name}/injected", step), bias, _injections(call, step)))
    if initial:  # to the last term: a bias is small
        terms[-1] = graph.add("Add", numbered(f"{name}/initial", step), terms[-1], graph.scalar(initial))
    total = _added(graph, numbered(f"{name}/i", step), terms)
    assert total is not None, "a layer has a synapse"
    return total


def _currents(
    call: Call, layer: Layer, synapses: list[tuple[int, Synapse]], free: dict[int, np.ndarray], step: int | None
) -> list[str]:
    return [call.form.current(f"{layer.name}/i{i}", synapse, free.get(i), step) for i, synapse in synapses]


def _injections(call: Call, step: int | None) -> str:
    """`[N, 1, 1, 1]` of a step, or `[K * N, …]`: in how many steps so far, its own included, the gate was open."""
    graph, name = call.graph, "injection/number"
    if not graph.has(f"{name}.0"):
        zero, most = graph.scalar(0), graph.scalar(call.snn.method.injection_steps or 0)
        for index in range(call.steps):
            done = graph.add("Add", f"injection/done.{index}", "t_in", graph.scalar(index + 1))
            graph.add("Clip", f"{name}.{index}", done, zero, most)
    numbers = [f"{name}.{index}" for index in range(call.steps)]
    return graph.batched(name, numbers) if step is None else numbers[step]


def _added(graph: GraphBuilder, name: str, terms: list[str]) -> str | None:
    if not terms:
        return None
    total = terms[0]
    for index, term in enumerate(terms[1:], start=1):
        total = graph.add("Add", name if index == len(terms) - 1 else f"{name}.{index}", total, term)
    return total
