"""The QCFS authors' way: all time steps in the batch of one layer-by-layer pass, which cannot exit early."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ...models.quantiser import Quantiser
from .candidate import Candidate
from .setting import Setting
from .spiking_modules import Window, layer_by_layer, spiking, window_of

NAME = "QCFS authors' way (T in the batch)"


class SequenceNeuron(nn.Module):
    """Neurons that take the currents of all time steps at once, `[step * batch, …]`, and forget everything after.

    v = v + x;  o = [v >= th] th (QFFS: with cap and negative spikes);  v = v - o.
    Source: Bu et al., "Optimal ANN-SNN Conversion for High-accuracy and Ultra-low-latency SNNs", for QCFS; they have no
    QFFS, to which the same idea is applied here.
    """

    def __init__(self, threshold: float, levels: int | None, batch: int = 1) -> None:
        super().__init__()
        self.threshold, self.levels, self.batch = threshold, levels, batch

    def forward(self, x: Tensor) -> Tensor:
        currents = x.unflatten(0, (-1, self.batch))
        membrane, emitted = torch.full_like(currents[0], self.threshold / 2), torch.zeros_like(currents[0])
        spikes = []
        for current in currents:
            membrane = membrane + current
            if self.levels is None:
                z = (membrane >= self.threshold).to(x.dtype)
            else:
                up = (membrane >= self.threshold) & (emitted < self.levels)
                z = up.to(x.dtype) - ((membrane < 0) & (emitted > 0)).to(x.dtype)
                emitted = emitted + z
            o = z * self.threshold
            membrane = membrane - o
            spikes.append(o)
        return torch.cat(spikes)


def sequence_network(network: nn.Module, method: str, batch: int = 1) -> tuple[nn.Module, Window]:
    """The quantised network's modules with such neurons, and their window."""

    def neuron(quantiser: Quantiser) -> nn.Module:
        return SequenceNeuron(quantiser.largest(), quantiser.levels if method == "qffs" else None, batch)

    window = window_of(network, method)
    return spiking(network, neuron, window), window


def authors(setting: Setting) -> Candidate:
    """See the first line of this file."""
    network, window = sequence_network(setting.network, setting.method)

    def run(pixels: np.ndarray, steps: int) -> np.ndarray:
        return layer_by_layer(network, window, setting.image(pixels), steps, setting.scale)[:, 0].numpy()

    return Candidate(NAME, run, run, steps_per_call=None)
