"""SpikingJelly, step by step and with all steps in one call: its own neurons, normalisation folded as it does it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...models.quantiser import Quantiser
from .candidate import Candidate, Missing
from .setting import Setting
from .spiking_modules import Window, folded, layer_by_layer, spiking, stepped, window_of

MODES = {"s": "SpikingJelly, single-step", "m": "SpikingJelly, multi-step"}
NEURONS = {"qcfs": "HalfThresholdIFNode", "qffs": "STBIFNode"}
"""Which of its neurons is a method's: both are of version 2.0."""


class JellyNeuron(nn.Module):
    """One of SpikingJelly's neurons between modules that know nothing of time."""

    def __init__(self, node: nn.Module, output: float, sequence: bool, batch: int = 1) -> None:
        super().__init__()
        self.node, self.output, self.sequence, self.batch = node, output, sequence, batch

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.node(x.unflatten(0, (-1, self.batch))).flatten(0, 1) if self.sequence else self.node(x)
        return spikes if self.output == 1.0 else spikes * self.output


def jelly_network(network: nn.Module, method: str, mode: str, batch: int = 1) -> tuple[nn.Module, Window]:
    """The quantised network's modules, folded, with SpikingJelly's neurons. Raises: ImportError, AttributeError."""
    from spikingjelly.activation_based import neuron as nodes  # type: ignore[import-not-found]

    make: Any = getattr(nodes, NEURONS[method])

    def neuron(quantiser: Quantiser) -> nn.Module:
        threshold = quantiser.largest()
        if method == "qcfs":
            return JellyNeuron(make(threshold, step_mode=mode), threshold, mode == "m", batch)
        levels = quantiser.levels
        node = make(threshold, level=levels + 1, pos_max=levels, neg_min=0, step_mode=mode)
        return JellyNeuron(node, 1.0, mode == "m", batch)  # its spikes are of the threshold's size already

    window = window_of(network, method)
    return spiking(folded(network), neuron, window).eval(), window


def run_jelly(network: nn.Module, window: Window, mode: str, image: Tensor, steps: int, scale: float) -> Tensor:
    """Reset the neurons and run: accumulated logits `[step, batch, class]`."""
    from spikingjelly.activation_based import functional  # type: ignore[import-not-found]

    functional.reset_net(network)
    return (stepped if mode == "s" else layer_by_layer)(network, window, image, steps, scale)


def spikingjelly(setting: Setting) -> Iterator[Candidate | Missing]:
    """Both modes, or why there is none."""
    for mode, name in MODES.items():
        try:
            network, window = jelly_network(setting.network, setting.method, mode)
        except ImportError as error:
            yield Missing(name, "not installed", f"{error}: pip install 'dynamic-confidence[peers]'")
            continue
        except AttributeError:
            wanted = NEURONS[setting.method]
            yield Missing(name, "not possible", f"this version has no {wanted}: pip install 'spikingjelly>=2.0'")
            continue

        def run(
            pixels: np.ndarray, steps: int, network: nn.Module = network, window: Window = window, mode: str = mode
        ) -> np.ndarray:
            return run_jelly(network, window, mode, setting.image(pixels), steps, setting.scale)[:, 0].numpy()

        yield Candidate(name, run, run, steps_per_call=1 if mode == "s" else None)
