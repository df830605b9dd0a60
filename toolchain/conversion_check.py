"""The check of a conversion: the spiking network, left to settle, computes what the quantised network computes.

The self-check of an export compares three readings of one spiking network; this one asks whether it is the right one.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from ..models.neurons import SignedIFState
from ..models.quantiser import Quantiser, quantisers
from ..runtime.errors import CheckFailed
from ..runtime.manifest import Preprocessing
from .simulate import SnnState, initial_state, simulate_step, simulation_from_snn
from .snn import Snn
from .snn_from_ann import READOUT, snn_from_ann

SHIFT = 1e-4 * 2.0**0.5
"""Added to what every quantiser and every neuron rounds, in quantisation steps.

LSQ rounds half to even, QCFS and the neuron half up, so a correct conversion differs at an exact tie; and where weights
are round numbers there are many. Moved by the same irrational amount, both sides round the same numbers, none of which
is a tie, and the check may demand that all agree.
"""
TOLERANCE = 1e-6
"""Of the standard deviation of what is compared. Float64 leaves 1e-13; one wrong spike leaves 1e-2."""
FLOOR = 1e-9
"""Of the largest magnitude, but at least of 1: rounding where values hardly vary."""


def check_conversion(network: nn.Module, preprocessing: Preprocessing, pixels: np.ndarray) -> int:
    """Compare a network with its conversion, layer by layer, and return the time steps that the conversion settled in.

        v + n - 1/2 = levels * current = v_ann / step   per neuron, at rest;   accumulated logits / levels = logits

    Both run in float64, the conversion unsnapped and as QFFS, whose neurons come to rest: `levels` steps after
    all their inputs have, so after levels * layers steps at the latest. QCFS shares the conversion (synapses, folding,
    units). The network itself is left as it is. A step costs what the network costs, so pass two to four images: uint8
    `[image, channel, y, x]`.
    Raises: CheckFailed that names the first layer that differs, and by how much; DynamicConfidenceError for a network
    that has no conversion.
    Source: Dynamic Confidence, eq. 20-26.
    """
    snn = snn_from_ann(network, preprocessing, "qffs")
    names = [*(layer.name for layer in snn.layers), READOUT]
    quantised = _quantised(network, preprocessing, pixels)
    steps, spiking = _settled(snn, pixels)
    for name, expected, found in zip(names, quantised, spiking, strict=True):
        _close(name, expected, found)
    return steps


@torch.no_grad()
def _quantised(network: nn.Module, preprocessing: Preprocessing, pixels: np.ndarray) -> list[np.ndarray]:
    """What every quantiser of the network rounds, in steps, call by call, and the logits; `[image, value]` each."""
    reference = copy.deepcopy(network).double().eval()
    seen: list[Tensor] = []
    for _, quantiser in quantisers(reference):
        _shift_input(quantiser, seen)
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (preprocessing.mean, preprocessing.std)
    )
    logits = reference((torch.from_numpy(pixels).double() / 255.0 - mean) / std)
    return [value.reshape(len(pixels), -1).numpy() for value in (*seen, logits)]


def _shift_input(quantiser: Quantiser, seen: list[Tensor]) -> None:
    def shift(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        seen.append(arguments[0] / quantiser.step)
        return (arguments[0] + SHIFT * quantiser.step,)

    quantiser.register_forward_pre_hook(shift)


@torch.no_grad()
def _settled(snn: Snn, pixels: np.ndarray) -> tuple[int, list[np.ndarray]]:
    """Run until no neuron fires; return the steps it took, and per layer what `_quantised` returns."""
    levels, simulation, frames = snn.method.levels, simulation_from_snn(snn, torch.float64), torch.from_numpy(pixels)
    state = initial_state(simulation, len(pixels))
    state = state._replace(neurons={name: n._replace(v=n.v + SHIFT) for name, n in state.neurons.items()})
    bound = levels * len(snn.layers)
    while state.step <= bound:
        spikes, state = simulate_step(simulation, frames, state)
        # Without injection and without a spike there is no current: nothing changes any more.
        if state.step > levels and not any(bool(z.any()) for z in spikes.values()):
            return state.step - 1, _totals(state, levels)
    raise CheckFailed(
        f"conversion check: neurons still fire after {bound} steps ({levels} levels, {len(snn.layers)} layers), when "
        "all must have come to rest. Nothing was written. Check that the weights are finite numbers."
    )


def _totals(state: SnnState, levels: int) -> list[np.ndarray]:
    neurons = [n for n in state.neurons.values() if isinstance(n, SignedIFState)]
    totals = [*(n.v + n.n - 0.5 - SHIFT for n in neurons), state.logits / levels]
    return [total.flatten(1).numpy() for total in totals]


def _close(name: str, expected: np.ndarray, found: np.ndarray) -> None:
    what = "the logits" if name == READOUT else f"layer '{name}'"
    if expected.shape != found.shape:
        raise CheckFailed(
            f"conversion check: {what}: {found.shape[1]} values per image in the spiking network, expected "
            f"{expected.shape[1]} as in the quantised one. Nothing was written. Please report it with the network."
        )
    largest, spread = float(np.abs(found - expected).max()), float(expected.std())
    if not largest <= TOLERANCE * spread + FLOOR * max(1.0, float(np.abs(expected).max())):
        raise CheckFailed(
            f"conversion check: {what}: the settled spiking network differs from the quantised one by {largest:.3g} at "
            f"most (standard deviation {spread:.3g}), expected rounding only. Nothing was written. This is a bug of "
            "the conversion: please report it with the network."
        )
