"""The networks and methods that are measured, and what every candidate of one of them is made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from ...calib.alpha import default_alpha
from ...models.checkpoint import Checkpoint, load_checkpoint
from ...runtime.errors import DynamicConfidenceError
from ...toolchain.data import normalised
from ...toolchain.export import macs_per_step
from ...toolchain.self_check import synthetic_pixels
from ...toolchain.simulate import simulate, simulation_from_snn
from ...toolchain.snap import snap
from ...toolchain.snn import Snn
from ...toolchain.snn_from_ann import snn_from_ann
from ..networks import random_checkpoint
from ..preprocessings import CIFAR, IMAGENET

METHODS = ("qcfs", "qffs")
STEPS = {"qcfs": 16, "qffs": 8}
"""T: multiples of every K that is measured, so that no step is wasted."""
PRETRAINED = Path(__file__).resolve().parents[2] / "models" / "pretrained"
NETWORKS: dict[str, Callable[[], Checkpoint]] = {
    "resnet20": partial(random_checkpoint, "resnet20", CIFAR),
    "resnet18": partial(random_checkpoint, "resnet18", CIFAR),
    "vgg16": partial(random_checkpoint, "vgg16", CIFAR),
    "resnet50": partial(random_checkpoint, "resnet50", IMAGENET, form="imagenet", classes=1000),
    "resnet20_cifar10": lambda: load_checkpoint(PRETRAINED / "resnet20_cifar10.pt"),
}
CHOICES = tuple(f"{network}/{method}" for network in NETWORKS for method in METHODS)
IMAGES = 4
LIKELY_RATES = (0.05, 0.20)
"""Of the neurons, so many spike per step in trained networks."""


@dataclass(frozen=True)
class Setting:
    """One network by one method, at batch 1."""

    name: str
    checkpoint: Checkpoint
    network: nn.Module
    """The quantised network; who changes it, copies it first."""
    method: str
    steps: int
    snn: Snn
    """The spiking network, snapped for float32 as an export does it."""
    pixels: np.ndarray
    """Noise images, uint8 `[image, channel, y, x]`."""
    threads: int

    @property
    def scale(self) -> float:
        """What the logits are divided by before the softmax."""
        return float(default_alpha(self.snn.method, self.steps))

    def image(self, pixels: np.ndarray) -> Tensor:
        """What the quantised network sees."""
        import torch

        return normalised(torch.from_numpy(pixels), self.checkpoint.preprocessing)


def setting(name: str, checkpoint: Checkpoint, method: str, *, steps: int | None = None, threads: int = 1) -> Setting:
    """Convert and snap a network once for all candidates."""
    network, steps = checkpoint.network(), steps or STEPS[method]
    snn, _ = snap(snn_from_ann(network, checkpoint.preprocessing, method), steps)
    pixels = synthetic_pixels(snn.input_shape, IMAGES)
    return Setting(name, checkpoint, network, method, steps, snn, pixels, threads)


def chosen(only: Iterable[str], choices: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the `network/method` that are asked for, `network` alone being both; nothing asked for: all.

    `choices`: what there is; None: `CHOICES`.
    Raises: DynamicConfidenceError for one that there is not, with those that there are.
    """
    choices = CHOICES if choices is None else choices
    networks, wanted = dict.fromkeys(choice.split("/")[0] for choice in choices), set()
    for text in only:
        found = {choice for choice in choices if text in (choice, choice.split("/")[0])}
        if not found:
            raise DynamicConfidenceError(
                f"--only {text}: expected a network ({', '.join(networks)}), or one with a method, as "
                f"{choices[0]} ({', '.join(METHODS)})."
            )
        wanted |= found
    return tuple(choice for choice in choices if choice in wanted or not wanted)


def size_of(snn: Snn) -> dict[str, int]:
    """Multiply-accumulates of a dense step, and how many weights, neurons and state values there are."""
    layers = (*snn.layers, snn.readout)
    neurons = sum(int(np.prod(layer.shape)) for layer in snn.layers)
    return {
        "macs_per_step": macs_per_step(snn),
        "weights": sum(synapse.weight.size for layer in layers for synapse in layer.synapses),
        "neurons": neurons,
        "states": neurons * (1 if snn.method.name == "qcfs" else 2),
    }


def spike_rate(snn: Snn, pixels: np.ndarray, steps: int) -> float:
    """The share of the neurons that emit a spike, of either sign, in a mean time step."""
    emitted = 0.0
    for spikes, _ in simulate(simulation_from_snn(snn), pixels, steps):
        emitted += sum(float(z.abs().sum()) for z in spikes.values())
    return emitted / (steps * len(pixels) * size_of(snn)["neurons"])
