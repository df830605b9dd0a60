"""The neurons of QFFS, found again in an exported graph, so that they can be written with one operation less."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..manifest import Manifest

if TYPE_CHECKING:
    import onnx


class SignedNeurons(NamedTuple):
    """A layer in one time step: names of its tensors, and of its constants."""

    v_before: str
    p: str
    z: str
    v: str
    n_before: str
    n: str
    minus_one: str
    one: str
    zero: str
    levels: str
    inner: tuple[str, str]
    """What nothing outside reads."""


def signed_neurons(
    graph: onnx.GraphProto, manifest: Manifest, constants: Mapping[str, np.ndarray]
) -> dict[str, SignedNeurons] | None:
    """Find the neurons of a QFFS network, by p, one per Floor; None unless all are as `onnx_neurons` writes them.

        p = v + I;  n' = clip(n + clip(floor(p), -1, 1), 0, levels);  z = n' - n;  v' = p - z

    With s = v + n, which only the current changes, and n in 0 … levels, that is

        s' = s + I;  z = clip(clip(floor(s'), 0, levels) - n, -1, 1);  n' = n + z

    So s may take the place of v, also as the state (n starts at 0), where nothing but the next step reads v.
    """
    reads: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            reads[name].append(node)
    adds = {node.output[0]: node for node in graph.node if node.op_type == "Add"}

    def only(name: str, *operators: str) -> onnx.NodeProto:
        """The first of the nodes that read a tensor, which are of these operators and no more."""
        if sorted(node.op_type for node in reads[name]) != sorted(operators):
            raise LookupError(name)
        return next(node for node in reads[name] if node.op_type == operators[0])

    def found(floor: onnx.NodeProto, membranes: set[str]) -> SignedNeurons:
        p = floor.input[0]
        change = only(floor.output[0], "Clip")
        wanted = only(change.output[0], "Add")
        (n_before,) = set(wanted.input) - {change.output[0]}
        bounded = only(wanted.output[0], "Clip")
        n = bounded.output[0]
        (spikes,) = [node for node in reads[n] if list(node.input) == [n, n_before]]
        reset = only(p, "Sub", "Floor")
        (v_before,) = membranes & set(adds[p].input)
        limits = (*change.input[1:], *bounded.input[1:])
        values = [float(constants[name]) for name in limits]
        right = spikes.op_type == "Sub" and list(reset.input) == [p, spikes.output[0]]
        if not right or values != [-1.0, 1.0, 0.0, manifest.method.levels] or len(reads[v_before]) != 1:
            raise LookupError(p)
        return SignedNeurons(
            v_before,
            p,
            spikes.output[0],
            reset.output[0],
            n_before,
            n,
            *limits,
            inner=(change.output[0], wanted.output[0]),
        )

    states = {state.input: state for state in manifest.states}
    paired: dict[str, str] = {}
    """Net spikes by the membrane that goes with them, and states that they started from."""
    origins: dict[str, tuple[str, str]] = {}
    neurons: dict[str, SignedNeurons] = {}
    try:
        for floor in graph.node:
            if floor.op_type != "Floor":
                continue
            one = found(floor, states.keys() | paired.keys())
            start = origins.get(one.v_before, (one.v_before, one.n_before))
            if paired.get(one.v_before, one.n_before) != one.n_before or states[start[1]].initial != 0.0:
                return None
            neurons[one.p], paired[one.v], origins[one.v] = one, one.n, start
    except (LookupError, ValueError):  # another graph than the exporter's
        return None
    ends = {(states[v].output, states[n].output) for v, n in origins.values()}
    last = {(v, n) for v, n in paired.items() if not reads[v]}
    return neurons if ends == last else None
