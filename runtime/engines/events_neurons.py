"""The states, neurons and gates of an exported graph, which must be those that the event-driven kernels compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..manifest import Manifest
from .onnxruntime_neurons import signed_neurons

if TYPE_CHECKING:
    import onnx

INITIAL_MEMBRANE = 0.5
MOST_LEVELS = 255
"""Spikes are counted in bytes."""
Readers = Mapping[str, list["onnx.NodeProto"]]
Constants = Mapping[str, np.ndarray]


def check_states(manifest: Manifest) -> None:
    """Raise LookupError unless these are the states of docs/contract.md, by name and initial value."""
    wanted = {"acc_in": 0.0}
    signed = manifest.method.name == "qffs"
    for state in manifest.states:
        kind, _, layer = state.input.partition("_in.")
        if kind == "v":
            wanted |= {state.input: INITIAL_MEMBRANE} | ({f"n_in.{layer}": 0.0, "t_in": 0.0} if signed else {})
    found = {state.input: state.initial for state in manifest.states}
    if odd := sorted(found.keys() ^ wanted.keys()):
        needed = "v_in.<layer>, n_in.<layer>, t_in and acc_in" if signed else "v_in.<layer> and acc_in"
        side = "too many" if odd[0] in found else "missing"
        raise LookupError(f"state '{odd[0]}' is {side} ({manifest.method.name} needs {needed})")
    for name, initial in found.items():
        if initial != wanted[name]:
            raise LookupError(f"state '{name}' begins with {initial}, expected {wanted[name]}")
    if signed and manifest.method.levels > MOST_LEVELS:
        raise LookupError(f"method.levels {manifest.method.levels}, at most {MOST_LEVELS} are counted")


def spike_trains(
    graph: onnx.GraphProto, manifest: Manifest, readers: Readers, constants: Constants
) -> dict[str, tuple[str, ...]]:
    """The tensors of each layer's spikes, one for every step of the call, by the layer.

        QCFS  z = clip(floor(p), 0, 1)                                               v' = p - z
        QFFS  n' = clip(n + clip(floor(p), -1, 1), 0, levels)    z = n' - n          v' = p - z

    Raises: LookupError for neurons that do anything else, or whose membranes are not handed on from step to step.
    """
    signed: dict[str, tuple[str, str]] = {}
    if manifest.method.name == "qffs":
        neurons = signed_neurons(graph, manifest, constants)
        if neurons is None:
            raise LookupError(f"neurons other than those of qffs with {manifest.method.levels} levels")
        signed = {one.v_before: (one.z, one.v) for one in neurons.values()}

    def only(name: str, *operators: str) -> onnx.NodeProto:
        """The first of the nodes that read a tensor, which are of these operators and no more."""
        found = readers.get(name, [])
        if sorted(node.op_type for node in found) != sorted(operators):
            raise LookupError(f"tensor '{name}', read by {len(found)} nodes, expected {' and '.join(operators)}")
        return next(node for node in found if node.op_type == operators[0])

    def step(v: str) -> tuple[str, str]:
        """Spikes and membranes after a step of QCFS."""
        p = only(v, "Add").output[0]
        z = only(only(p, "Floor", "Sub").output[0], "Clip")
        reset = only(p, "Sub", "Floor")
        limits = [float(constants[name]) for name in z.input[1:]]
        if limits != [0.0, 1.0]:
            raise LookupError(f"node '{z.name}', spikes with the limits {limits}")
        if list(reset.input) != [p, z.output[0]]:
            raise LookupError(f"node '{reset.name}', a reset by another number than the spikes")
        return z.output[0], reset.output[0]

    trains = {}
    for state in manifest.states:
        kind, _, layer = state.input.partition("_in.")
        if kind == "v":
            v, spikes = state.input, []
            for _ in range(manifest.steps_per_call):
                z, v = signed[v] if signed else step(v)
                spikes.append(z)
            if v != state.output:
                raise LookupError(f"layer '{layer}', whose last membranes are not '{state.output}'")
            trains[layer] = tuple(spikes)
    return trains


def injection_gates(
    graph: onnx.GraphProto, manifest: Manifest, readers: Readers, constants: Constants
) -> tuple[str, ...]:
    """The tensors that are 1 while image and biases are injected, and then 0, one for every step; none with QCFS.

        gate_i = clip(injection_steps - i - t, 0, 1);  t' = t + K

    Raises: LookupError for others, such as those of another number of steps.
    """
    injected = manifest.method.injection_steps
    if injected is None:
        return ()
    steps, gates = manifest.steps_per_call, {}
    output = next(state.output for state in manifest.states if state.input == "t_in")
    for node in readers.get("t_in", []):
        if node.op_type == "Sub" and node.input[1] == "t_in":
            for clip in readers.get(node.output[0], []):
                if clip.op_type != "Clip" or [float(constants[name]) for name in clip.input[1:]] != [0.0, 1.0]:
                    raise LookupError(f"node '{clip.name}', not a gate of the injection")
                gates[float(constants[node.input[0]])] = clip.output[0]
        elif node.op_type != "Add" or node.output[0] != output or float(constants[node.input[1]]) != steps:
            raise LookupError(f"node '{node.name}', a time other than t + {steps}")
    if sorted(gates, reverse=True) != [injected - step for step in range(steps)]:
        raise LookupError(f"an injection that ends after {max(gates, default=0):g} steps, in the manifest {injected}")
    return tuple(gates[injected - step] for step in range(steps))
