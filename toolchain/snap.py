"""Snap a spiking network to dyadic grids, as fine as the float32 head-room of each layer allows.

On its grid every sum of a layer is an integer number of grid units below 2^24, so float32 adds it exactly in any
order: every engine, batch, thread count and number of steps per call gives the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..runtime.manifest import Grid
from .simulate import simulate, simulation_from_snn
from .snn import Layer, Pool, Snn

FLOAT32_BITS = 24
FINE_ENOUGH = 14
"""The worst case is affordable when it leaves a grid of 2^-14 of the threshold: accuracy does not move there."""
MARGIN = 2.0
"""A measured membrane may be exceeded by this factor before a sum leaves the exact range."""


@dataclass(frozen=True)
class Range:
    """The largest magnitude of any partial sum of a layer, in its units, and how it is known."""

    bound: float
    source: str


def snap(snn: Snn, steps: int, pixels: np.ndarray | None = None) -> tuple[Snn, tuple[Grid, ...]]:
    """Round every layer to its grid; returns the exact network and the grids, layer by layer, the read-out last.

        exponent = 24 - ceil(log2 bound),  weight -> round(weight * 2^exponent) / 2^exponent

    `steps` is the largest number of time steps the network will run; `pixels` `[image, channel, y, x]` are calibration
    images for the layers whose worst case would cost too much precision (a QCFS membrane can drift with every step).
    """
    worst = worst_case(snn, steps)
    measured = measure(snn, steps, pixels) if pixels is not None else {}
    grids = {}
    for name, bound in worst.items():
        choice = Range(bound, "worst case")
        if _exponent(bound) < FINE_ENOUGH and measured.get(name, math.inf) < bound:
            choice = Range(measured[name], "measured")
        exponent = _exponent(choice.bound)
        grids[name] = Grid(
            layer=name,
            exponent=exponent,
            head_room=2.0 ** (FLOAT32_BITS - exponent),
            bound=choice.bound,
            source="measured" if choice.source == "measured" else "worst case",
        )
    nodes = tuple(n if isinstance(n, Pool) else _snap_layer(n, grids[n.name].exponent) for n in snn.nodes)
    readout = _snap_layer(snn.readout, grids[snn.readout.name].exponent)
    return replace(snn, nodes=nodes, readout=readout), tuple(grids.values())


def _exponent(bound: float) -> int:
    return FLOAT32_BITS - math.ceil(math.log2(bound))


def _snap_layer(layer: Layer, exponent: int) -> Layer:
    unit = 2.0**exponent

    def on_grid(array: np.ndarray) -> np.ndarray:
        return np.round(array * unit) / unit

    synapses = tuple(replace(s, weight=on_grid(s.weight)) for s in layer.synapses)
    return replace(layer, synapses=synapses, bias=on_grid(layer.bias))


def worst_case(snn: Snn, steps: int) -> dict[str, float]:
    """The largest partial sum that any input can cause, per layer (the read-out last).

    A partial sum is a sum of some of the terms, so it lies between the sum of all negative and of all positive ones.
    QCFS: spikes are 0 or 1 and the membrane can gain one such sum per step. QFFS: the spikes sent so far add up to
    0..levels whatever the number of steps, and one more step's sum, of either sign, is on its way.
    """
    largest, method = snn.largest_values(), snn.method
    bounds = {}
    for layer in (*snn.layers, snn.readout):
        positive, negative = _one_step(layer, largest)
        peak = float(np.maximum(positive, negative).max())
        if method.name == "qcfs":
            bounds[layer.name] = 1.0 + steps * peak
        else:
            bounds[layer.name] = 1.0 + method.levels * (1.0 + peak) + float((positive + negative).max())
    return bounds


def measure(snn: Snn, steps: int, pixels: np.ndarray, batch: int = 50) -> dict[str, float]:
    """The largest partial sum seen on these images: the membrane with a margin, plus one step's worst case."""
    simulation, largest = simulation_from_snn(snn), snn.largest_values()
    seen = {layer.name: 0.0 for layer in (*snn.layers, snn.readout)}
    for start in range(0, len(pixels), batch):
        for _, state in simulate(simulation, pixels[start : start + batch], steps):
            potentials = {name: neuron.v for name, neuron in state.neurons.items()} | {snn.readout.name: state.logits}
            for name, potential in potentials.items():
                seen[name] = max(seen[name], float(torch.abs(potential).max()))
    return {
        layer.name: 1.0 + MARGIN * seen[layer.name] + float(np.maximum(*_one_step(layer, largest)).max())
        for layer in (*snn.layers, snn.readout)
    }


def _one_step(layer: Layer, largest: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """The sums of all positive and of all negative terms of one step's current, per output channel."""
    positive = np.maximum(layer.bias, 0.0).max(axis=(1, 2))
    negative = np.maximum(-layer.bias, 0.0).max(axis=(1, 2))
    for synapse in layer.synapses:
        axes = None if synapse.is_identity else (1, 2, 3)
        peak = largest[synapse.source]
        positive = positive + peak * np.maximum(synapse.weight, 0.0).sum(axis=axes)
        negative = negative + peak * np.maximum(-synapse.weight, 0.0).sum(axis=axes)
    return positive, negative
