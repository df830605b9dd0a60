"""Snapping: everything on its grid, and no partial sum of any input outside the head-room."""

from __future__ import annotations

import numpy as np
import pytest
from support import random_checkpoint

from dynamic_confidence.models.checkpoint import Checkpoint
from dynamic_confidence.runtime.manifest import Grid
from dynamic_confidence.toolchain import snap as snapping
from dynamic_confidence.toolchain.oracle import convolve, oracle_steps
from dynamic_confidence.toolchain.snap import measure, snap, worst_case
from dynamic_confidence.toolchain.snn import INPUT, Layer, Pool, Snn
from dynamic_confidence.toolchain.snn_from_ann import snn_from_ann

STEPS = 12


def snapped(checkpoint: Checkpoint, method: str, pixels: np.ndarray | None = None) -> tuple[Snn, tuple[Grid, ...]]:
    return snap(snn_from_ann(checkpoint.network(), checkpoint.preprocessing, method), STEPS, pixels)


def magnitudes(snn: Snn, pixels: np.ndarray) -> dict[str, float]:
    """The largest |v| + sum of |terms| that occurs: no partial sum, in any order, can be larger."""
    largest = {layer.name: 0.0 for layer in (*snn.layers, snn.readout)}
    membrane = {layer.name: np.full((len(pixels), *layer.shape), 0.5) for layer in snn.layers}
    logits = np.zeros((len(pixels), snn.readout.shape[0], 1, 1))
    for step in oracle_steps(snn, pixels, STEPS):
        values = {INPUT: pixels.astype(np.float64)} | step.spikes
        for node in snn.nodes:
            if isinstance(node, Pool):
                from dynamic_confidence.toolchain.oracle import sum_pool

                values[node.name] = sum_pool(values[node.source], node)
        for layer in (*snn.layers, snn.readout):
            before = logits if layer is snn.readout else membrane[layer.name]
            total = np.abs(before) + np.abs(layer.bias)
            for synapse in layer.synapses:
                positive = type(synapse)(**{**synapse.__dict__, "weight": np.abs(synapse.weight)})
                total = total + convolve(np.abs(values[synapse.source]), positive)
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
    """Half of the sum of magnitudes bounds a subset of either sign no worse than the worst case does; the extreme
    images drive the first layer to its own worst case."""
    snn, grids = snapped(checkpoint, method)
    weight = snn.layers[0].synapses[0].weight
    sign = np.kron(np.ones((4, 4)), weight[0, 0] > 0)
    images = {
        "black": np.zeros((1, 1, 12, 12)),
        "white": np.full((1, 1, 12, 12), 255),
        "matched": (255 * sign)[None, None],
        "noise": np.random.default_rng(0).integers(0, 2, (4, 1, 12, 12)) * 255,
    }[extreme].astype(np.uint8)
    bounds = {grid.layer: grid.bound for grid in grids}
    for step in oracle_steps(snn, images, STEPS):
        for name, membrane in step.membrane.items():
            assert np.abs(membrane).max() <= bounds[name]
        assert np.abs(step.logits).max() <= bounds["readout"]


def test_measured_sums_stay_within_the_measured_bound(checkpoint: Checkpoint, pixels: np.ndarray) -> None:
    snn = snn_from_ann(checkpoint.network(), checkpoint.preprocessing, "qcfs")
    seen, bounds = magnitudes(snn, pixels[:8]), measure(snn, STEPS, pixels[:8], batch=3)
    worst = worst_case(snn, STEPS)
    for layer in snn.layers:
        # |v| with the margin plus the one-signed worst case of a step; a sum of magnitudes counts both signs.
        assert seen[layer.name] <= 2 * bounds[layer.name]
        assert bounds[layer.name] > 0
        assert worst[layer.name] > 0


def test_measured_head_room_is_taken_only_where_the_worst_case_is_not_affordable(
    checkpoint: Checkpoint, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, affordable = snapped(checkpoint, "qcfs", pixels)
    assert {grid.source for grid in affordable[:-1]} == {"worst case"}
    monkeypatch.setattr(snapping, "FINE_ENOUGH", 30)
    _, demanding = snapped(checkpoint, "qcfs", pixels)
    assert "measured" in {grid.source for grid in demanding}
    for coarse, fine in zip(affordable, demanding, strict=True):
        assert fine.exponent >= coarse.exponent
        assert fine.head_room == 2.0 ** (24 - fine.exponent) >= fine.bound


def test_qffs_head_room_does_not_depend_on_the_number_of_steps(checkpoint: Checkpoint) -> None:
    snn = snn_from_ann(checkpoint.network(), checkpoint.preprocessing, "qffs")
    assert worst_case(snn, 10) == worst_case(snn, 1000)


def test_snapping_is_a_small_change() -> None:
    checkpoint = random_checkpoint("resnet8")
    before = snn_from_ann(checkpoint.network(), checkpoint.preprocessing, "qcfs")
    after, grids = snap(before, STEPS)
    for old, new, grid in zip((*before.layers, before.readout), (*after.layers, after.readout), grids, strict=True):
        assert isinstance(new, Layer)
        for a, b in zip(old.synapses, new.synapses, strict=True):
            assert np.abs(a.weight - b.weight).max() <= 0.5 * 2.0**-grid.exponent
