"""The self-check of a half-precision export: each step follows from the state and the spikes that the graph itself had.

Half precision rounds, so a spike near its threshold may fall on the other side, and then the runs part ways: equality
cannot be asked for. What can be asked is that each step is right, layer by layer, given what the graph did before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import onnx

from ..runtime.confidence import max_softmax
from ..runtime.errors import CheckFailed
from ..runtime.manifest import Manifest, Method
from .onnx_neurons import INITIAL_MEMBRANE
from .oracle import convolve, oracle_steps, sum_pool
from .self_check import CheckReport, GraphRun, exits_of, input_of_all_calls, spike_counts, step_of
from .snn import INPUT, Layer, Pool, Snn

CURRENT_ERROR = {"fp16": 2 * 2.0**-11, "fp32": 2.0**-22, "int8": 2.0**-22}
"""Error of a current over the sum of its terms' sizes: half rounds it once, and one more for the way it is summed."""
MEMBRANE_ERROR = 2.0**-18
"""Of a membrane, relative to its size: biases and residual currents are added to it one by one, in float32."""
CONFIDENCE_ERROR = 1e-5

PerLayer = dict[str, np.ndarray]


class State(NamedTuple):
    """What the graph's own spikes lead to, in float64; the read-out is a layer that never fires."""

    v: PerLayer
    error: PerLayer
    """By how much rounding may have moved `v`."""
    n: PerLayer
    """Net spikes so far."""


def rounding_check(
    snn: Snn,
    deployed: onnx.ModelProto,
    probed: onnx.ModelProto,
    manifest: Manifest,
    pixels: np.ndarray,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> CheckReport:
    """Step the graph and check in float64 what it does with the spikes that it emitted.

    In every step and layer the spike is the neuron's for some membrane within `State.error` of p = v + I; after every
    call the membranes are v' = p - z within that error; counts of spikes, labels and confidences follow from what was
    emitted and from the logits. The graph without the probes answers the same. Arguments as for `self_check`; the
    report says how many labels and exits are those of the same network without rounding.
    Raises: CheckFailed at the first thing that does not hold, naming call and layer.
    """
    k, steps = manifest.steps_per_call, manifest.max_steps
    calls = -(-steps // k)
    pixels = input_of_all_calls(pixels, manifest)
    images = pixels.shape[-4]
    graph, probe = GraphRun(deployed, manifest, pixels), GraphRun(probed, manifest, pixels)
    state, found, total = _initial(snn, images), [], 0.0
    for call in track(range(calls)):
        where = f"call {call + 1}"
        results, trains = graph.call(), probe.call()
        for name, values in results.items():
            same = np.array_equal(values, trains[name], equal_nan=True)
            _require(same, where, f"{name} of the graph and of its probe differ")
        state = _rounded_at_the_call(state)
        for step in range(k):
            now = call * k + step
            spikes = {layer.name: step_of(trains[f"spikes.{layer.name}"], step, k) for layer in snn.layers}
            frame = pixels[now] if manifest.input.frames else pixels
            state = _stepped(snn, state, frame, spikes, now, where)
            _check_answers(snn, manifest, results, step, state, spikes, where)
            total += sum(float(np.abs(train).sum()) for train in spikes.values()) * (now < steps)
        state = _settled(snn, state, results, calls_done=call + 1, k=k, where=where)
        found.extend(results["logits"])
    _require(total > 0, f"{calls} calls", "no neuron fired, so nothing was checked")
    expected = [step.logits for step in oracle_steps(snn, pixels, steps)]
    labels, exits = _agreement(found[:steps], expected, manifest.calibration.scale)
    return CheckReport(images, steps, len(snn.layers), int(total), labels, exits)


def _initial(snn: Snn, images: int) -> State:
    v = {layer.name: np.full((images, *layer.shape), INITIAL_MEMBRANE) for layer in snn.layers}
    v[snn.readout.name] = np.zeros((images, *snn.readout.shape))
    zeros = {name: np.zeros_like(value) for name, value in v.items()}
    return State(v, zeros, dict(zeros))


def _rounded_at_the_call(state: State) -> State:
    """A call starts from membranes in float32, which are known, and adds to them in float32."""
    return state._replace(error={name: MEMBRANE_ERROR * (1.0 + np.abs(v)) for name, v in state.v.items()})


def _stepped(snn: Snn, state: State, pixels: np.ndarray, spikes: PerLayer, step: int, where: str) -> State:
    """One time step with the spikes that were emitted. Raises: CheckFailed for a spike that no rounding explains."""
    window = snn.method.injection_steps
    inject = float(window is None or step < window)
    values = {INPUT: pixels * inject, **{name: train.astype(np.float64) for name, train in spikes.items()}}
    v, error, n = dict(state.v), dict(state.error), dict(state.n)
    for node in (*snn.nodes, snn.readout):
        name = node.name
        if isinstance(node, Pool):
            values[name] = sum_pool(values[node.source], node)
            continue
        current, slack = _current(node, values, inject)
        p, error[name] = v[name] + current, error[name] + slack
        if node is snn.readout:
            v[name] = p
            continue
        z = values[name]
        least, most = (_spike(snn.method, p + sign * error[name], n[name]) for sign in (-1.0, 1.0))
        fits = (least <= z) & (z <= most) & (z == np.round(z))
        _require(bool(fits.all()), f"{where}, layer {name}", "spikes that the membranes do not explain")
        v[name], n[name] = p - z, n[name] + z
    return State(v, error, n)


def _current(layer: Layer, values: PerLayer, inject: float) -> tuple[np.ndarray, np.ndarray]:
    """The current into a layer, and by how much rounding may change it."""
    current, slack = layer.bias * inject, np.zeros(1)
    for synapse in layer.synapses:
        source, size = values[synapse.source], replace(synapse, weight=np.abs(synapse.weight))
        current = current + convolve(source, synapse)
        slack = slack + CURRENT_ERROR[synapse.precision] * convolve(np.abs(source), size)
    return current, slack


def _spike(method: Method, p: np.ndarray, n: np.ndarray) -> np.ndarray:
    """z = [p >= 1];  QFFS: z = [p >= 1][n < levels] - [p < 0][n > 0]. Grows with p."""
    if method.name == "qcfs":
        return (p >= 1.0).astype(np.float64)
    return ((p >= 1.0) & (n < method.levels)).astype(np.float64) - ((p < 0.0) & (n > 0))


def _settled(snn: Snn, state: State, results: PerLayer, *, calls_done: int, k: int, where: str) -> State:
    """Compare the states that left the call, and go on from those."""
    v = dict(state.v)
    for layer in (*snn.layers, snn.readout):
        name = layer.name
        after = results["acc_out" if layer is snn.readout else f"v_out.{name}"].astype(np.float64)
        after = after.reshape(v[name].shape)
        excess = np.abs(after - v[name]) - state.error[name]
        _require(
            bool(np.all(excess <= 0)),  # a value that is no number does not hold either
            f"{where}, layer {name}",
            f"the membranes do not add up, by {excess.max():.3g} more than half precision explains",
        )
        v[name] = after
        if f"n_out.{name}" in results:
            same = np.array_equal(results[f"n_out.{name}"], state.n[name])
            _require(same, f"{where}, layer {name}", "the counts of spikes are not those of the spikes emitted")
    if "t_out" in results:
        _require(bool((results["t_out"] == calls_done * k).all()), where, "the steps done are counted wrongly")
    return state._replace(v=v)


def _check_answers(
    snn: Snn, manifest: Manifest, results: PerLayer, step: int, state: State, spikes: PerLayer, where: str
) -> None:
    """The outputs of one step: logits add up, label and confidence are theirs, and the counts those of the spikes."""
    logits, name = results["logits"][step], snn.readout.name
    excess = np.abs(logits - state.v[name].reshape(logits.shape)) - state.error[name].reshape(logits.shape)
    _require(bool(np.all(excess <= 0)), where, "the logits do not add up")
    _require(np.array_equal(results["label"][step], logits.argmax(1)), where, "labels that are not those of the logits")
    confidence = max_softmax(logits, manifest.calibration.scale)
    close = np.allclose(results["confidence"][step], confidence, rtol=CONFIDENCE_ERROR, atol=0.0)
    _require(close, where, "confidences that are not those of the logits")
    for output, counts in spike_counts(snn, spikes).items():
        same = output not in results or np.array_equal(results[output][step], counts)
        _require(same, where, f"the output `{output}` miscounts")


def _require(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise CheckFailed(
            f"self-check: {where}: {what}. Nothing was written. This is a bug, or a backend that computes in less than "
            "half precision: please report it."
        )


def _agreement(found: list[np.ndarray], expected: list[np.ndarray], scale: float) -> tuple[float, float]:
    """Shares of equal labels after the last step and of equal exit steps; logits `[image, class]`, one per step."""
    ours, exact = (exits_of([max_softmax(logits, scale) for logits in run]) for run in (found, expected))
    equal = np.equal(ours, exact)
    return float((found[-1].argmax(1) == expected[-1].argmax(1)).mean()), float(np.mean(equal))
