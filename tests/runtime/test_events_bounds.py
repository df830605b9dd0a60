"""A program of the event-driven engine is refused when a number in it points outside its array."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from dynamic_confidence.runtime.engines.events_bounds import check_bounds
from dynamic_confidence.runtime.engines.events_network import Convolution, Gain, Layer, Network, Pool
from dynamic_confidence.runtime.engines.events_program import Program, Sizes, program_from_network
from dynamic_confidence.runtime.errors import DynamicConfidenceError


def made() -> tuple[Program, Sizes]:
    """Image -> 1: a -> 2: pool -> 3: b, with a shortcut from the pool -> 4: read-out, with one from b."""
    stem = Convolution("image", np.ones((20, 2, 3, 3), np.float32), None, (1, 1), (1, 1), 1)
    int8 = Convolution("pool", np.ones((20, 20, 3, 3), np.int8), np.ones(20, np.float32), (1, 1), (1, 1), 1)
    last = Convolution("b", np.ones((5, 20, 2, 2), np.float32), None, (1, 1), (0, 0), 1)
    nodes = (
        Layer("a", (20, 4, 4), (stem,), np.ones((20, 1, 1), np.float32)),
        Pool("pool", (20, 2, 2), "a", (2, 2), (2, 2), (0, 0)),
        Layer("b", (20, 2, 2), (int8, Gain("pool", 0.5)), np.ones((20, 2, 2), np.float32)),
    )
    readout = Layer("acc", (5, 1, 1), (last,), np.ones((5, 1, 1), np.float32))
    return program_from_network(Network("image", (2, 4, 4), nodes, readout, 0))


FAR = 1 << 40


def test_a_sound_program_passes():
    check_bounds(*made())


@pytest.mark.parametrize("by", [FAR, -FAR])
@pytest.mark.parametrize(
    ("index", "field"),
    [
        *((1, name) for name in ["neurons", "bias", "sums", "events", "starts", "line", "height", "width", "channels"]),
        *(
            (2, name)
            for name in [
                "source",
                "sums",
                "events",
                "starts",
                "line",
                "height",
                "width",
                "kernel_y",
                "stride_x",
                "padding_y",
            ]
        ),
        *((3, name) for name in ["neurons", "bias", "events", "starts", "line", "lanes"]),
        *((4, name) for name in ["neurons", "bias", "height", "lanes"]),
    ],
)
def test_a_part_that_lies_outside(index: int, field: str, by: int):
    program, sizes = made()
    program.nodes[index][field] += by
    with pytest.raises(DynamicConfidenceError, match=rf"^part {index}.* cannot run this network\. Use --backend onnx"):
        check_bounds(program, sizes)


@pytest.mark.parametrize("by", [FAR, -FAR])
@pytest.mark.parametrize(
    ("index", "field"),
    [
        *((0, name) for name in ["source", "weights", "kernel_y", "stride_y", "padding_x"]),
        *((1, name) for name in ["source", "weights", "unit", "stride_x"]),
        (2, "source"),
        (3, "weights"),
    ],
)
def test_a_synapse_that_reads_outside(index: int, field: str, by: int):
    program, sizes = made()
    program.synapses[index][field] += by
    with pytest.raises(DynamicConfidenceError, match="cannot run this network"):
        check_bounds(program, sizes)


@pytest.mark.parametrize(
    ("index", "field", "value", "message"),
    [
        (1, "source", 0, "a synapse of kind 0 from a part of kind 0"),
        (2, "kind", 3, "a synapse of kind 3 from a part of kind 2"),
        (2, "source", 1, "a synapse of kind 4 from a part of kind 1"),
    ],
)
def test_a_synapse_from_what_it_cannot_read(index: int, field: str, value: int, message: str):
    """Such as spikes of the image, which has none."""
    program, sizes = made()
    program.synapses[index][field] = value
    with pytest.raises(DynamicConfidenceError, match=message):
        check_bounds(program, sizes)


@pytest.mark.parametrize("array", ["neurons", "readout", "current", "events", "starts", "sums"])
def test_an_array_that_is_too_small(array: str):
    program, sizes = made()
    with pytest.raises(DynamicConfidenceError, match="cannot run this network"):
        check_bounds(program, sizes._replace(**{array: getattr(sizes, array) - 1}))


def test_a_pool_without_what_is_read():
    for field in ("summed", "listed"):
        program, sizes = made()
        program.nodes[2][field] = 0
        with pytest.raises(DynamicConfidenceError, match="part 3 reads a pool that does not hold what it wants"):
            check_bounds(program, sizes)
