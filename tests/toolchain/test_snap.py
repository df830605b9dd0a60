"""Snapping: everything on its grid, and no partial sum of any input outside the head-room."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support import random_checkpoint

from dynamic_confidence.models.checkpoint import Checkpoint
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Grid, Method
from dynamic_confidence.toolchain import snap as snapping
from dynamic_confidence.toolchain.oracle import convolve, oracle_steps, sum_pool
from dynamic_confidence.toolchain.snap import snap, worst_case
from dynamic_confidence.toolchain.snn import INPUT, Layer, Pool, Snn, Synapse
from dynamic_confidence.toolchain.snn_from_ann import snn_from_ann

STEPS = 12


def snapped(checkpoint: Checkpoint, method: str, pixels: np.ndarray | None = None) -> tuple[Snn, tuple[Grid, ...]]:
    return snap(snn_from_ann(checkpoint.network(), checkpoint.preprocessing, method), STEPS, pixels)


def partial_sums(snn: Snn, pixels: np.ndarray) -> dict[str, float]:
    """The largest subset sum, of either sign, of membrane and terms that occurs in any layer and step."""
    largest = {layer.name: 0.0 for layer in (*snn.layers, snn.readout)}
    membrane = {layer.name: np.full((len(pixels), *layer.shape), 0.5) for layer in snn.layers}
    logits = np.zeros((len(pixels), snn.readout.shape[0], 1, 1))
    for number, step in enumerate(oracle_steps(snn, pixels, STEPS)):
        gate = snn.method.injection_steps is None or number < snn.method.injection_steps
        values = {INPUT: pixels.astype(np.float64) * gate} | step.spikes
        for node in snn.nodes:
            if isinstance(node, Pool):
                values[node.name] = sum_pool(values[node.source], node)
        for layer in (*snn.layers, snn.readout):
            before = logits if layer is snn.readout else membrane[layer.name]
            for sign in (1.0, -1.0):
                total = np.maximum(sign * before, 0) + np.maximum(sign * layer.bias * gate, 0)
                for synapse in layer.synapses:
                    for part in (1.0, -1.0):  # spikes of either sign times weights of either sign
                        weight = replace(synapse, weight=np.maximum(sign * part * synapse.weight, 0))
                        total = total + convolve(np.maximum(part * values[synapse.source], 0), weight)
                largest[layer.name] = max(largest[layer.name], float(total.max()))
        membrane, logits = step.membrane, step.logits[:, :, None, None]
    return largest


@pytest.mark.parametrize("method", ["qcfs", "qffs"])
def test_every_number_is_a_multiple_of_its_grid(checkpoint: Checkpoint, method: str) -> None:
    snn, grids = snapped(checkpoint, method)
    exponents = {grid.layer: grid.exponent for grid in grids}
    assert list(exponents) == [layer.name for layer in (*snn.layers, snn.readout)]
    for layer in (*snn.layers, snn.readout):
        for array in (layer.bias, *(synapse.weight for synapse in layer.synapses)):
            units = array * 2.0 ** exponents[layer.name]
            assert np.array_equal(units, np.round(units))
            assert np.abs(units).max() < 2**24
            assert np.array_equal(array, array.astype(np.float32))


@pytest.mark.parametrize("method", ["qcfs", "qffs"])
@pytest.mark.parametrize("extreme", ["black", "white", "matched", "noise"])
def test_no_input_leaves_the_worst_case(checkpoint: Checkpoint, method: str, extreme: str) -> None:
    """Every subset of the terms of every step; "matched" drives a channel of the first layer to its own worst case."""
    snn, grids = snapped(checkpoint, method)
    sign = np.kron(np.ones((4, 4)), snn.layers[0].synapses[0].weight[0, 0] > 0)
    images = {
        "black": np.zeros((1, 1, 12, 12)),
        "white": np.full((1, 1, 12, 12), 255),
        "matched": (255 * sign)[None, None],
        "noise": np.random.default_rng(0).integers(0, 2, (4, 1, 12, 12)) * 255,
    }[extreme].astype(np.uint8)
    seen = partial_sums(snn, images)
    for grid in grids:
        assert seen[grid.layer] <= grid.bound <= grid.head_room == 2.0 ** (24 - grid.exponent)


@pytest.mark.parametrize("method", ["qcfs", "qffs"])
def test_measured_bounds_hold_for_what_was_measured(
    checkpoint: Checkpoint, pixels: np.ndarray, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapping, "FINE_ENOUGH", 30)
    snn, grids = snapped(checkpoint, method, pixels[:8])
    assert {grid.source for grid in grids[:-1]} == {"measured"}
    assert grids[-1].source == "worst case", "the read-out has no threshold to measure its grid by"
    seen = partial_sums(snn, pixels[:8])
    for grid in grids:
        assert seen[grid.layer] <= grid.bound <= grid.head_room


def test_rounding_that_enlarges_the_weights_is_allowed_for() -> None:
    """A layer whose worst case is exactly its head-room before rounding, and more than that after it."""
    tap = 32767.0 / (STEPS * 255 * 243) * (1 + 1e-7)
    weight = np.full((1, 3, 9, 9), tap)
    stem = Layer("stem", (Synapse(INPUT, weight, padding=(4, 4)),), np.zeros((1, 1, 1)), (1, 9, 9), 1.0)
    readout = Layer("readout", (Synapse("stem", np.ones((2, 1, 9, 9))),), np.zeros((2, 1, 1)), (2, 1, 1), 1.0)
    snn = Snn(Method(name="qcfs", levels=3, injection_steps=None), (3, 9, 9), (stem,), readout)
    rounded, grids = snap(snn, STEPS)
    bound = worst_case(rounded, rounded.layers[0], STEPS, rounded.largest_values())
    assert bound == grids[0].bound <= grids[0].head_room


@pytest.mark.parametrize("scale", [1e-12, float("nan")])
def test_a_network_that_no_grid_can_hold_is_refused(checkpoint: Checkpoint, scale: float) -> None:
    snn = snn_from_ann(checkpoint.network(), checkpoint.preprocessing, "qcfs")
    first = snn.layers[0]
    broken = replace(first, synapses=tuple(s.times(np.array(1 / scale)) for s in first.synapses))
    with pytest.raises(DynamicConfidenceError, match=r"layer 'activation1': its sums reach .* thresholds"):
        snap(replace(snn, nodes=(broken, *snn.nodes[1:])), STEPS)


def test_a_read_out_of_zeros_is_no_obstacle(checkpoint: Checkpoint) -> None:
    snn = snn_from_ann(checkpoint.network(), checkpoint.preprocessing, "qcfs")
    zero = replace(
        snn.readout, synapses=tuple(s.times(np.array(0.0)) for s in snn.readout.synapses), bias=0 * snn.readout.bias
    )
    assert snap(replace(snn, readout=zero), STEPS)[1][-1].exponent == 40


def test_measured_head_room_is_taken_only_where_the_worst_case_is_not_affordable(
    checkpoint: Checkpoint, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, affordable = snapped(checkpoint, "qcfs", pixels)
    assert {grid.source for grid in affordable} == {"worst case"}
    monkeypatch.setattr(snapping, "FINE_ENOUGH", 30)
    _, demanding = snapped(checkpoint, "qcfs", pixels)
    assert "measured" in {grid.source for grid in demanding}
    for coarse, fine in zip(affordable, demanding, strict=True):
        assert fine.exponent >= coarse.exponent
        assert fine.head_room == 2.0 ** (24 - fine.exponent) >= fine.bound


def test_qffs_head_room_does_not_depend_on_the_number_of_steps(checkpoint: Checkpoint) -> None:
    snn = snn_from_ann(checkpoint.network(), checkpoint.preprocessing, "qffs")
    for layer in (*snn.layers, snn.readout):
        assert worst_case(snn, layer, 10, snn.largest_values()) == worst_case(snn, layer, 1000, snn.largest_values())


def test_snapping_is_a_small_change() -> None:
    checkpoint = random_checkpoint("resnet8")
    before = snn_from_ann(checkpoint.network(), checkpoint.preprocessing, "qcfs")
    after, grids = snap(before, STEPS)
    for old, new, grid in zip((*before.layers, before.readout), (*after.layers, after.readout), grids, strict=True):
        assert isinstance(new, Layer)
        for a, b in zip(old.synapses, new.synapses, strict=True):
            assert np.abs(a.weight - b.weight).max() <= 0.5 * 2.0**-grid.exponent
