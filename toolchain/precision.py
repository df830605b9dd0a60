"""Reduce the precision of the convolutions between spikes: int8 weights with a unit per output channel, or half.

The image's convolution and the read-out keep float32, and so do membranes, biases and gains: those cost little, and
the image has eight bits already.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..runtime.manifest import Precision
from .snn import INPUT, Layer, Snn, Synapse

INT8_MAX = 127


def reduced(snn: Snn, layer: Layer, exponent: int, precision: Precision, largest: dict[str, int]) -> Layer:
    """Round the weights of a layer, which are on the grid 2^-exponent, to what `precision` can hold.

        int8: unit_o = ceil(max |w_o| 2^exponent / 127) / 2^exponent,   w_o -> round(w_o / unit_o) unit_o
        fp16: w -> the nearest half

    The unit of output channel o is itself on the grid, so an int8 layer is as exact as before: a sum of weights times
    spikes is an integer times the unit. `largest` is what each source can emit (`Snn.largest_values`): sums of spikes
    beyond int8 leave their synapse in float32.
    """
    if precision == "fp32" or layer.name == snn.readout.name:
        return layer

    def one(synapse: Synapse) -> Synapse:
        if synapse.is_identity or synapse.source == INPUT:
            return synapse
        if precision == "fp16":
            return replace(synapse, weight=synapse.weight.astype(np.float16).astype(np.float64), precision="fp16")
        return _int8(synapse, exponent) if largest[synapse.source] <= INT8_MAX else synapse

    return replace(layer, synapses=tuple(map(one, layer.synapses)))


def _int8(synapse: Synapse, exponent: int) -> Synapse:
    grid = 2.0**exponent
    peak = np.abs(synapse.weight).max(axis=(1, 2, 3)) * grid
    unit = np.maximum(np.ceil(peak / INT8_MAX), 1.0) / grid
    column = unit.reshape(-1, 1, 1, 1)
    return replace(synapse, weight=np.round(synapse.weight / column) * column, precision="int8", unit=unit)
