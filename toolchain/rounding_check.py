"""The self-check of a half-precision export: every membrane moves by what the spikes that the graph emitted add up to.

Half precision rounds, so a spike near its threshold may fall on the other side, and then the runs part ways: equality
cannot be asked for. What can be asked is that each call adds up, layer by layer, given the spikes that it had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from ..calib.exits import exit_steps
from ..runtime.confidence import max_softmax
from ..runtime.errors import CheckFailed
from ..runtime.manifest import Manifest
from .onnx_neurons import INITIAL_MEMBRANE
from .oracle import convolve, oracle_steps, sum_pool
from .self_check import THRESHOLDS, CheckReport, GraphRun
from .snn import INPUT, Pool, Snn, Synapse

CURRENT_ERROR = {"fp16": 2 * 2.0**-11, "fp32": 2.0**-22, "int8": 2.0**-22}
"""Error of a current over the sum of its terms' sizes: half rounds it once, and one more for the way it is summed."""
MEMBRANE_ERROR = 2.0**-18
"""Of a membrane, relative to its size: biases and residual currents are added to it one by one, in float32."""

PerLayer = dict[str, np.ndarray]


def rounding_check(
    snn: Snn,
    deployed: onnx.ModelProto,
    probed: onnx.ModelProto,
    manifest: Manifest,
    pixels: np.ndarray,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> CheckReport:
    """Step the graph and check every layer and call, in float64 and with the spikes z that the graph itself emitted:

        | v' + sum_k z_k - v - sum_k I_k | <= 2^-10 sum_k |W| |z_k| + 2^-18 (1 + |v|)

    and that the graph without the probes answers the same. Arguments as for `self_check`. The report says how many
    labels and exits are those of the same network without rounding.
    Raises: CheckFailed at the first membrane or sum of logits that does not add up.
    """
    k, steps = manifest.steps_per_call, manifest.max_steps
    calls = -(-steps // k)
    if manifest.input.frames:
        pixels = np.stack([np.roll(pixels, step, axis=0) for step in range(calls * k)])
    images = pixels.shape[-4]
    graph, probe = GraphRun(deployed, manifest, pixels), GraphRun(probed, manifest, pixels)
    states: PerLayer = {layer.name: np.full(1, INITIAL_MEMBRANE) for layer in snn.layers}
    states[snn.readout.name] = np.zeros(1)
    found, total = [], 0.0
    for call in track(range(calls)):
        results, trains = graph.call(), probe.call()
        moved = {name: np.zeros(1) for name in states}
        allowed = {name: MEMBRANE_ERROR * (1.0 + np.abs(value)) for name, value in states.items()}
        for step in range(k):
            emitted = {layer.name: trains[f"spikes.{layer.name}"] for layer in snn.layers}
            spikes = {name: train.reshape(k, images, *train.shape[1:])[step] for name, train in emitted.items()}
            total += sum(float(np.abs(train).sum()) for train in spikes.values())
            now = call * k + step
            _add_step(snn, pixels[now] if manifest.input.frames else pixels, spikes, now, moved, allowed)
        for layer in (*snn.layers, snn.readout):
            name = "acc_out" if layer is snn.readout else f"v_out.{layer.name}"
            after = trains[name].astype(np.float64).reshape(images, *layer.shape)
            excess = np.abs(after - states[layer.name] - moved[layer.name]) - allowed[layer.name]
            if not np.all(excess <= 0):  # a value that is no number does not hold either
                raise CheckFailed(
                    f"self-check: call {call + 1}, layer {layer.name}: the membranes do not add up, by "
                    f"{excess.max():.3g} more than half precision explains. Nothing was written. This is a bug or a "
                    "backend that computes in less than half precision: please report it."
                )
            if not np.array_equal(results[name], trains[name]):
                raise CheckFailed(
                    f"self-check: call {call + 1}, layer {layer.name}: the graph and its probe differ. Nothing was "
                    "written. This is a bug or a backend that rounds differently from run to run: please report it."
                )
            states[layer.name] = after
        found.extend(results["logits"])
    expected = [step.logits for step in oracle_steps(snn, pixels, steps)]
    labels, exits = _agreement(found[:steps], expected, manifest.calibration.scale)
    return CheckReport(images, steps, len(snn.layers), int(total), labels, exits)


def _add_step(snn: Snn, pixels: np.ndarray, spikes: PerLayer, step: int, moved: PerLayer, allowed: PerLayer) -> None:
    """Add to `moved` what one step does to every membrane and to the logits, and to `allowed` what rounding may."""
    window = snn.method.injection_steps
    inject = float(window is None or step < window)
    values = {INPUT: pixels * inject, **{name: train.astype(np.float64) for name, train in spikes.items()}}
    for node in (*snn.nodes, snn.readout):
        if isinstance(node, Pool):
            values[node.name] = sum_pool(values[node.source], node)
            continue
        moved[node.name] = moved[node.name] + node.bias * inject - spikes.get(node.name, 0.0)
        for synapse in node.synapses:
            source = values[synapse.source]
            moved[node.name] = moved[node.name] + convolve(source, synapse)
            size = CURRENT_ERROR[synapse.precision] * convolve(np.abs(source), _magnitude(synapse))
            allowed[node.name] = allowed[node.name] + size


def _magnitude(synapse: Synapse) -> Synapse:
    return replace(synapse, weight=np.abs(synapse.weight))


def _agreement(found: list[np.ndarray], expected: list[np.ndarray], scale: float) -> tuple[float, float]:
    """Shares of equal labels after the last step and of equal exit steps; logits `[image, class]`, one per step."""
    last = np.full(len(found[0]), len(found))
    confidences = [np.stack([max_softmax(logits, scale) for logits in run], axis=1) for run in (found, expected)]
    equal = [
        np.equal(*(exit_steps(confidence, threshold, last) for confidence in confidences)) for threshold in THRESHOLDS
    ]
    return float((found[-1].argmax(1) == expected[-1].argmax(1)).mean()), float(np.mean(equal))
