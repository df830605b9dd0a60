"""Snap a spiking network to dyadic grids, as fine as the float32 head-room of each layer allows.

On its grid every sum of a layer is an integer number of grid units below 2^24, so float32 adds it exactly in any
order: every engine, batch, thread count and number of steps per call gives the same bits.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from ..runtime.errors import DynamicConfidenceError
from ..runtime.manifest import FLOAT32_BITS, Grid, Precision
from .precision import reduced
from .simulate import simulate, simulation_from_snn
from .snn import Layer, Pool, Snn

FINE_ENOUGH = 14
"""The worst case is affordable when it leaves a grid of 2^-14 of the threshold: accuracy does not move there."""
TOO_COARSE = 8
"""A grid coarser than 2^-8 of the threshold makes another network."""
COARSEST = 1
"""The read-out's unit is that of the logits, so any grid that the manifest can hold will do."""
FINEST = 40
"""A finer grid than this changes no float32; it keeps the exponent finite for a read-out of zeros."""
MARGIN = 2.0
"""A measured membrane may be exceeded by this factor before a sum leaves the exact range."""
MEASURED_IMAGES = 256


def snap(
    snn: Snn, steps: int, pixels: np.ndarray | None = None, precision: Precision = "fp32"
) -> tuple[Snn, tuple[Grid, ...]]:
    """Round every layer to its grid; returns the exact network and the grids, layer by layer, the read-out last.

        exponent = 24 - ceil(log2 bound),  weight -> round(weight * 2^exponent) / 2^exponent

    `steps` is the largest number of time steps the network will run; `pixels` `[image, channel, y, x]` are calibration
    images for the layers whose worst case would cost too much precision (a QCFS membrane can drift with every step).
    `precision` rounds the weights between spikes further, to int8 or half (`precision.reduced`).
    Raises: DynamicConfidenceError for a layer with weights that are no numbers or so large that no grid is left.
    """
    largest = snn.largest_values()
    coarse = [layer.name for layer in snn.layers if _exponent(worst_case(snn, layer, steps, largest)) < FINE_ENOUGH]
    membranes = {} if pixels is None or not coarse else largest_membranes(snn, steps, pixels[:MEASURED_IMAGES])
    grids: list[Grid] = []

    def rounded(layer: Layer, exponent: int) -> Layer:
        return reduced(snn, _round(layer, exponent), exponent, precision, largest)

    def snapped(layer: Layer) -> Layer:
        def bound(candidate: Layer) -> float:
            if layer.name in coarse and layer.name in membranes:
                return measured_case(snn, candidate, membranes[layer.name], largest)
            return worst_case(snn, candidate, steps, largest)

        exponent, coarsest = _exponent(bound(layer)), COARSEST if layer is snn.readout else TOO_COARSE
        while exponent >= coarsest:
            result = rounded(layer, exponent)
            if bound(result) <= 2.0 ** (FLOAT32_BITS - exponent):
                break
            exponent -= 1  # rounding has enlarged the weights
        else:
            raise DynamicConfidenceError(
                f"layer '{layer.name}': its sums reach {bound(layer):g} thresholds, which leaves float32 no grid fine "
                "enough for exact spikes. Its weights are broken or a quantiser's scale is far too small: train again "
                "with `dc-train`."
            )
        grids.append(
            Grid(
                layer=layer.name,
                exponent=exponent,
                head_room=2.0 ** (FLOAT32_BITS - exponent),
                bound=bound(result),
                source="measured" if layer.name in coarse and layer.name in membranes else "worst case",
            )
        )
        return result

    nodes = tuple(node if isinstance(node, Pool) else snapped(node) for node in snn.nodes)
    return replace(snn, nodes=nodes, readout=snapped(snn.readout)), tuple(grids)


def worst_case(snn: Snn, layer: Layer, steps: int, largest: dict[str, int]) -> float:
    """The largest partial sum that any uint8 input can cause in a layer, in its units.

    A partial sum adds some of the terms, so it lies between the sum of all negative and of all positive ones.
    QCFS: spikes are 0 or 1 and the membrane can gain one such sum per step. QFFS: the spikes sent so far add up to
    0..levels whatever the number of steps, and one more step's terms, of either sign, are on their way.
    """
    positive, negative = _one_step(layer, largest)
    peak = float(np.maximum(positive, negative).max())
    if snn.method.name == "qcfs":
        return _neuron_units(snn, layer) + steps * peak
    levels = snn.method.levels
    return _neuron_units(snn, layer) + levels * peak + _step_peak(snn, layer, largest)


def measured_case(snn: Snn, layer: Layer, membrane: float, largest: dict[str, int]) -> float:
    """The largest partial sum when |v| stays within `MARGIN` times what was seen: that, plus one step's worst case.

    QFFS: and not less than what the spikes sent so far add up to, which some engines sum instead.
    """
    bound = _neuron_units(snn, layer) + MARGIN * membrane + _step_peak(snn, layer, largest)
    if snn.method.name == "qcfs":
        return bound
    positive, negative = _one_step(layer, largest)
    return max(bound, _neuron_units(snn, layer) + snn.method.levels * float(np.maximum(positive, negative).max()))


def largest_membranes(snn: Snn, steps: int, pixels: np.ndarray, batch: int = 50) -> dict[str, float]:
    """The largest |v| of each layer over these images, in thresholds."""
    simulation = simulation_from_snn(snn)
    seen = {layer.name: 0.0 for layer in snn.layers}
    for start in range(0, len(pixels), batch):
        for _, state in simulate(simulation, pixels[start : start + batch], steps):
            for name, neuron in state.neurons.items():
                seen[name] = max(seen[name], float(torch.abs(neuron.v).max()))
    return seen


def _neuron_units(snn: Snn, layer: Layer) -> float:
    """What the neurons add to the terms of the current: the initial membrane, and for QFFS the spikes sent so far."""
    if layer.name == snn.readout.name:
        return 0.0
    return 1.0 if snn.method.name == "qcfs" else 1.0 + snn.method.levels


def _step_peak(snn: Snn, layer: Layer, largest: dict[str, int]) -> float:
    """The largest partial sum of one step's terms: QFFS spikes may be negative, so any term may have either sign."""
    positive, negative = _one_step(layer, largest)
    return float((np.maximum(positive, negative) if snn.method.name == "qcfs" else positive + negative).max())


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


def _exponent(bound: float) -> int:
    """The finest grid whose sums up to `bound` stay within 2^24 units; hopeless for a bound that is no number."""
    if bound == 0.0 or not math.isfinite(bound):
        return FINEST if bound == 0.0 else -FINEST
    return min(FLOAT32_BITS - math.ceil(math.log2(bound)), FINEST)


def _round(layer: Layer, exponent: int) -> Layer:
    unit = 2.0**exponent

    def on_grid(array: np.ndarray) -> np.ndarray:
        return np.round(array * unit) / unit

    synapses = tuple(replace(s, weight=on_grid(s.weight)) for s in layer.synapses)
    return replace(layer, synapses=synapses, bias=on_grid(layer.bias))
