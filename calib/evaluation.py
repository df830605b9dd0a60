"""What a trace says about a network: sums of whole numbers, shard by shard in any order, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import numpy as np

from ..runtime.manifest import Calibration
from .exits import capped_sums, replay, saving
from .trace_folder import Shard
from .trace_header import TraceHeader
from .upper_bound import upper_bound_sums


class Sums(NamedTuple):
    """Sums over samples, int64: those of two parts of a data set add up to those of the whole, exactly."""

    samples: np.ndarray
    """`[]`"""
    right: np.ndarray
    """`[step]`: right answers."""
    last: np.ndarray
    """`[step]`: samples that stop there for another reason than confidence."""
    exits: np.ndarray
    """`[step]`: samples that the calibrated policy stops there."""
    capped_steps: np.ndarray
    """`[cap]`: steps until the exit, or the cap."""
    capped_right: np.ndarray
    """`[cap]`: right answers there."""
    bound_steps: np.ndarray
    """`[cap]`, of the upper bound."""
    bound_right: np.ndarray
    spikes: np.ndarray
    """`[step, layer]`: spikes of either sign in the steps 1 … t; no layer where they are not counted."""
    spikes_at_exit: np.ndarray
    """`[layer]`: up to the exit."""
    net_spikes: np.ndarray
    """Positive less negative spikes, likewise."""
    net_spikes_at_exit: np.ndarray


def sums_of(shard: Shard, calibration: Calibration) -> Sums:
    """Add up one shard under a calibrated exit policy. Raises: DynamicConfidenceError as `exits.replay`."""
    trace = shard.trace
    steps, rows, correct = trace.steps, np.arange(trace.samples), trace.correct
    exits = replay(trace, calibration)
    capped_steps, capped_right = capped_sums(correct, exits)
    bound_steps, bound_right = upper_bound_sums(correct, trace.last_step)

    def counted(spikes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        found = np.zeros((trace.samples, steps, 0), np.int64) if spikes is None else spikes
        return found.sum(axis=0), found[rows, exits - 1].sum(axis=0)

    return Sums(
        np.array(trace.samples),
        correct.sum(axis=0),
        _histogram(trace.last_step, steps),
        _histogram(exits, steps),
        capped_steps,
        capped_right,
        bound_steps,
        bound_right,
        *counted(shard.spikes),
        *counted(shard.net_spikes),
    )


def added(one: Sums, other: Sums) -> Sums:
    return Sums(*(a + b for a, b in zip(one, other, strict=True)))


class Curve(msgspec.Struct, frozen=True):
    """Mean steps and accuracy (a fraction) when every sample is also stopped at step j = 1 … T: each `[cap]`."""

    mean_steps: list[float]
    accuracy: list[float]


class SpikesPerNeuron(msgspec.Struct, frozen=True):
    """Spikes per neuron and inference: the mean over samples of (spikes of all layers / number of neurons).

    Neither the image nor the read-out counts. Source: Dynamic Confidence, Table 3.
    """

    at_step: list[float]
    """`[step]`: in the steps 1 … t, all layers together."""
    per_layer: list[float]
    """`[layer]`: after T steps, over the layer's own neurons."""
    at_exit: float
    """Up to the exit of the calibrated policy, all layers together."""
    per_layer_at_exit: list[float]


class Evaluation(msgspec.Struct, frozen=True):
    """What a network does on a data set; accuracies and shares are fractions, steps are time steps."""

    network: str
    graph_sha256: str
    data: str
    samples: int
    steps: int
    """T"""
    method: str
    calibration: Calibration
    accuracy_at_step: list[float]
    """`[step]`: when every sample stops there."""
    fixed_steps: float
    """Mean steps without early exit: T, or fewer where a QFFS network falls silent."""
    accuracy: float
    """With the calibrated policy, …"""
    mean_steps: float
    saved: float
    """… the share of T that it saves, …"""
    exit_histogram: list[float]
    """… and the share of samples `[step]` that it stops at each step."""
    capped: Curve
    upper_bound: Curve
    layers: list[str]
    neurons: list[int]
    """`[layer]`; empty when the network does not count spikes."""
    net_spikes: SpikesPerNeuron | None
    """Table 3 counts these; null when the network does not."""
    gross_spikes: SpikesPerNeuron | None
    """Spikes of either sign; null when the network does not count them."""


def evaluation_of(header: TraceHeader, shards: Iterable[Shard], calibration: Calibration) -> Evaluation:
    """Evaluate a whole trace under a calibrated exit policy; one shard at a time is in memory.

    Raises: DynamicConfidenceError for a shard that cannot be read, or a calibration that does not fit the trace.
    """
    total: Sums | None = None
    for shard in shards:
        part = sums_of(shard, calibration)
        total = part if total is None else added(total, part)
    if total is None:
        raise ValueError("a trace has at least one shard")
    samples = int(total.samples)

    def mean(sums: np.ndarray) -> list[float]:
        return [value / samples for value in sums.tolist()]

    capped = Curve(mean(total.capped_steps), mean(total.capped_right))
    neurons = [layer.neurons for layer in header.layers]
    gross = _per_neuron(total.spikes, total.spikes_at_exit, neurons, samples) if neurons else None
    net = gross if header.method.name == "qcfs" else None  # without negative spikes they are the same
    if header.net_spikes:
        net = _per_neuron(total.net_spikes, total.net_spikes_at_exit, neurons, samples)
    return Evaluation(
        network=header.network,
        graph_sha256=header.graph_sha256,
        data=header.data,
        samples=samples,
        steps=header.steps,
        method=header.method.name,
        calibration=calibration,
        accuracy_at_step=mean(total.right),
        fixed_steps=int((total.last * np.arange(1, header.steps + 1)).sum()) / samples,
        accuracy=capped.accuracy[-1],
        mean_steps=capped.mean_steps[-1],
        saved=saving(capped.mean_steps[-1], header.steps),
        exit_histogram=mean(total.exits),
        capped=capped,
        upper_bound=Curve(mean(total.bound_steps), mean(total.bound_right)),
        layers=[layer.name for layer in header.layers],
        neurons=neurons,
        net_spikes=net,
        gross_spikes=gross,
    )


def _per_neuron(sums: np.ndarray, at_exit: np.ndarray, neurons: list[int], samples: int) -> SpikesPerNeuron:
    """Divide sums `[step, layer]` and `[layer]` by samples and neurons."""
    everything = sum(neurons) * samples

    def layers(counts: np.ndarray) -> list[float]:
        return [count / (size * samples) for count, size in zip(counts.tolist(), neurons, strict=True)]

    return SpikesPerNeuron(
        at_step=[count / everything for count in sums.sum(axis=1).tolist()],
        per_layer=layers(sums[-1]),
        at_exit=int(at_exit.sum()) / everything,
        per_layer_at_exit=layers(at_exit),
    )


def _histogram(steps_taken: np.ndarray, steps: int) -> np.ndarray:
    return np.bincount(steps_taken, minlength=steps + 1)[1:].astype(np.int64)
