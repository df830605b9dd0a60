"""The torch simulation: the stepping network as a pure function on explicit state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..models.neurons import IFState, SignedIFState, if_step, signed_if_step
from .snn import INPUT, Layer, Pool, Snn

NeuronState = IFState | SignedIFState


class SnnState(NamedTuple):
    """State of the whole network between two time steps."""

    neurons: dict[str, NeuronState]
    logits: Tensor
    """`[batch, class]`, accumulated."""
    step: int
    """Time steps done."""


@dataclass(frozen=True)
class Simulation:
    """A spiking network with its weights as torch tensors."""

    snn: Snn
    weights: dict[tuple[str, int], Tensor]
    biases: dict[str, Tensor]
    dtype: torch.dtype
    device: torch.device


def simulation_from_snn(snn: Snn, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Simulation:
    """Move a network's weights to torch once, for many steps."""
    place = torch.device(device)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=dtype, device=place)

    layers = (*snn.layers, snn.readout)
    weights = {(layer.name, i): tensor(s.weight) for layer in layers for i, s in enumerate(layer.synapses)}
    return Simulation(snn, weights, {layer.name: tensor(layer.bias) for layer in layers}, dtype, place)


def initial_state(simulation: Simulation, batch: int) -> SnnState:
    """Membranes at half the threshold, everything else at zero."""

    def neuron(layer: Layer) -> NeuronState:
        v = torch.full((batch, *layer.shape), 0.5, dtype=simulation.dtype, device=simulation.device)
        return IFState(v) if simulation.snn.method.name == "qcfs" else SignedIFState(v, torch.zeros_like(v))

    classes = simulation.snn.readout.shape[0]
    logits = torch.zeros((batch, classes), dtype=simulation.dtype, device=simulation.device)
    return SnnState({layer.name: neuron(layer) for layer in simulation.snn.layers}, logits, 0)


def simulate_step(simulation: Simulation, pixels: Tensor, state: SnnState) -> tuple[dict[str, Tensor], SnnState]:
    """Advance one time step: `(pixels [batch, channel, y, x], state) -> (spikes per layer, state')`."""
    snn, method = simulation.snn, simulation.snn.method
    inject = method.injection_steps is None or state.step < method.injection_steps
    values: dict[str, Tensor] = {INPUT: pixels.to(simulation.dtype)}
    spikes: dict[str, Tensor] = {}
    neurons: dict[str, NeuronState] = {}
    for node in snn.nodes:
        if isinstance(node, Pool):
            source = values[node.source]
            values[node.name] = functional.avg_pool2d(
                source, node.kernel, node.stride, node.padding, divisor_override=1
            )
            continue
        current, before = _current(simulation, node, values, inject), state.neurons[node.name]
        if isinstance(before, SignedIFState):
            z, neurons[node.name] = signed_if_step(current, before, method.levels)
        else:
            z, neurons[node.name] = if_step(current, before)
        values[node.name] = spikes[node.name] = z
    logits = state.logits + _current(simulation, snn.readout, values, inject)[:, :, 0, 0]
    return spikes, SnnState(neurons, logits, state.step + 1)


@torch.no_grad()
def simulate(simulation: Simulation, pixels: np.ndarray, steps: int) -> Iterator[tuple[dict[str, Tensor], SnnState]]:
    """Yield spikes and state of every time step; pixels `[batch, …]`, or `[step, batch, …]` when they vary in time."""
    frames = torch.as_tensor(pixels[None] if pixels.ndim == 4 else pixels, device=simulation.device)
    state = initial_state(simulation, frames.shape[1])
    for step in range(steps):
        spikes, state = simulate_step(simulation, frames[min(step, len(frames) - 1)], state)
        yield spikes, state


def _current(simulation: Simulation, layer: Layer, values: dict[str, Tensor], inject: bool) -> Tensor:
    parts = [simulation.biases[layer.name][None]] if inject else []
    for index, synapse in enumerate(layer.synapses):
        if synapse.source == INPUT and not inject:
            continue
        weight, x = simulation.weights[layer.name, index], values[synapse.source]
        if synapse.is_identity:
            parts.append(weight * x)
        else:
            parts.append(functional.conv2d(x, weight, None, synapse.stride, synapse.padding, groups=synapse.groups))
    if not parts:  # the stem after the injection window
        batch = values[INPUT].shape[0]
        return torch.zeros((batch, *layer.shape), dtype=simulation.dtype, device=simulation.device)
    return sum(parts[1:], parts[0]).expand(values[INPUT].shape[0], *layer.shape)
