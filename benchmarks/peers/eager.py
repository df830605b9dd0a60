"""The paper demo's way, the reference of all ratios: eager PyTorch, normalisation not folded, a loop over the steps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ...models.quantiser import Quantiser
from .candidate import Candidate
from .setting import Setting
from .spiking_modules import Window, spiking, stepped, window_of

NAME = "demo's way"


class DemoNeuron(nn.Module):
    """Neurons with the state of the demo: the membrane before the reset, and the spikes of the step before.

        m = m - o + x;   QCFS: o = [m >= th] th;   QFFS: o = [m >= th][s < levels] th - [m < 0][s > 0] th;   s = s + o

    `s` is in units of th and half a spike away from either comparison. Source: Dynamic Confidence, eq. 3-4 and 20-26;
    the demo also counts spikes for its statistics, which no other candidate does and this one leaves out.
    """

    def __init__(self, quantiser: Quantiser, method: str) -> None:
        super().__init__()
        self.threshold = torch.tensor(quantiser.largest(), dtype=quantiser.learned.dtype)
        self.levels = quantiser.levels if method == "qffs" else None
        self.reset()

    def reset(self) -> None:
        self.membrane: Tensor = self.threshold / 2
        self.spikes = self.emitted = torch.zeros_like(self.threshold)

    def forward(self, x: Tensor) -> Tensor:
        self.membrane = self.membrane - self.spikes + x
        if self.levels is None:
            self.spikes = (self.membrane >= self.threshold) * self.threshold
            return self.spikes
        below = self.emitted < (self.levels - 0.5) * self.threshold
        up = (self.membrane >= self.threshold) * below * self.threshold
        down = (self.membrane < 0) * (self.emitted > 0.5 * self.threshold) * self.threshold
        self.spikes = up - down
        self.emitted = self.emitted + self.spikes
        return self.spikes


def demo_network(network: nn.Module, method: str) -> tuple[nn.Module, Window]:
    """The quantised network's modules with the demo's neurons, and the window that they are stepped with."""
    window = window_of(network, method)
    return spiking(network, lambda quantiser: DemoNeuron(quantiser, method), window), window


def run_demo(network: nn.Module, window: Window, image: Tensor, steps: int, scale: float) -> Tensor:
    """Reset the neurons and step: accumulated logits `[step, batch, class]`."""
    for module in network.modules():
        if isinstance(module, DemoNeuron):
            module.reset()
    return stepped(network, window, image, steps, scale)


def demo(setting: Setting) -> Candidate:
    """See the first line of this file."""
    network, window = demo_network(setting.network, setting.method)

    def run(pixels: np.ndarray, steps: int) -> np.ndarray:
        return run_demo(network, window, setting.image(pixels), steps, setting.scale)[:, 0].numpy()

    return Candidate(NAME, run, run)
