"""The neurons of models/neurons.py as ONNX nodes: the recurrence over the steps of a call, unrolled."""

from __future__ import annotations

from .onnx_graph import GraphBuilder
from .snn import Layer

INITIAL_MEMBRANE = 0.5


def if_neurons(graph: GraphBuilder, layer: Layer, currents: list[str]) -> list[str]:
    """p = v + I;  z = clip(floor(p), 0, 1);  v' = p - z  (`if_step`).

    Currents and spikes: one `[N, channel, y, x]` per step. Floor and Clip are exact and, unlike a comparison and a
    cast, stay in the layout of the convolutions.
    """
    v, v_out = graph.state("v", layer.name, layer.shape, INITIAL_MEMBRANE)
    spikes = []
    for name, last, current in steps_of(layer, currents):
        p = graph.add("Add", f"{name}/p", v, current)
        floor = graph.add("Floor", f"{name}/floor", p)
        z = graph.add("Clip", f"{name}/z", floor, graph.scalar(0), graph.scalar(1))
        v = graph.add("Sub", v_out if last else f"{name}/v", p, z)
        spikes.append(z)
    return spikes


def signed_if_neurons(graph: GraphBuilder, layer: Layer, currents: list[str], levels: int) -> list[str]:
    """p = v + I;  n' = clip(n + clip(floor(p), -1, 1), 0, levels);  z = n' - n;  v' = p - z  (`signed_if_step`).

    Currents and spikes: one `[N, channel, y, x]` per step.
    """
    v, v_out = graph.state("v", layer.name, layer.shape, INITIAL_MEMBRANE)
    n, n_out = graph.state("n", layer.name, layer.shape, 0.0)
    spikes = []
    for name, last, current in steps_of(layer, currents):
        p = graph.add("Add", f"{name}/p", v, current)
        floor = graph.add("Floor", f"{name}/floor", p)
        change = graph.add("Clip", f"{name}/change", floor, graph.scalar(-1), graph.scalar(1))
        wanted = graph.add("Add", f"{name}/wanted", n, change)
        after = graph.add("Clip", n_out if last else f"{name}/n", wanted, graph.scalar(0), graph.scalar(levels))
        z = graph.add("Sub", f"{name}/z", after, n)
        v = graph.add("Sub", v_out if last else f"{name}/v", p, z)
        n = after
        spikes.append(z)
    return spikes


def steps_of(layer: Layer, currents: list[str]) -> list[tuple[str, bool, str]]:
    """Name, whether it is the last of the call, and current of every step."""
    return [(f"{layer.name}/step{i}", i == len(currents) - 1, current) for i, current in enumerate(currents)]
