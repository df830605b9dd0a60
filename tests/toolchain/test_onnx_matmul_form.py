"""The form of matrix products: the same bits as the form conv, whatever the levels, however an input enters."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_confidence.runtime.manifest import GraphForm, Method
from dynamic_confidence.toolchain import onnx_matmul_form
from dynamic_confidence.toolchain.onnx_from_snn import StepGraph, onnx_from_snn
from dynamic_confidence.toolchain.onnx_matmul_form import MatmulForm
from dynamic_confidence.toolchain.snn import INPUT, Layer, Pool, Snn, Synapse

BATCH, CALLS = 3, 3
UNIT = 2.0**-4


def random_snn(method: str, levels: int, seed: int, bits: int = 0) -> Snn:
    """Every way into a layer: the image, spikes, both, a gain, a pool, a 1 x 1 kernel with strides, biases and maps.

    `bits`: so many more behind the point of the weights between spikes; 0: they are int8.
    """
    rng = np.random.default_rng(seed)

    def synapse(source: str, shape: tuple[int, ...], **more: object) -> Synapse:
        integers = rng.integers(-6, 8, shape)
        if bits and source != INPUT:
            return Synapse(source, (integers + rng.integers(0, 2**bits, shape) / 2**bits) * UNIT, **more)  # type: ignore[arg-type]
        between = {} if source == INPUT else {"precision": "int8", "unit": np.full(shape[0], UNIT)}
        scale = 2.0**-10 if source == INPUT else UNIT
        return Synapse(source, integers * scale, **between, **more)  # type: ignore[arg-type]

    def bias(*shape: int) -> np.ndarray:
        return rng.integers(-16, 24, shape) * 2.0**-6

    padded = {"padding": (1, 1)}
    first = Layer("first", (synapse(INPUT, (3, 2, 3, 3), **padded),), bias(3, 6, 6), (3, 6, 6), 1.0)
    both = (synapse(INPUT, (3, 2, 1, 1)), synapse("first", (3, 3, 3, 3), **padded), Synapse("first", np.array(0.75)))
    pool = Pool("pool", "second", (2, 2), (2, 2), (0, 0), (3, 3, 3))
    gained = (synapse("fourth", (4, 4, 1, 1)), Synapse("third", np.array(0.75)))
    strided = (synapse("second", (4, 3, 1, 1), stride=(2, 2)), synapse("pool", (4, 3, 3, 3), **padded))
    nodes = (
        first,
        Layer("second", both, bias(3, 1, 1), (3, 6, 6), 1.0),
        pool,
        Layer("third", strided, bias(4, 1, 1), (4, 3, 3), 1.0),
        Layer("fourth", (Synapse("third", np.array(1.0)),), np.zeros((4, 1, 1)), (4, 3, 3), 1.0),
        Layer("fifth", gained, bias(4, 3, 3), (4, 3, 3), 1.0),
        Pool("plane", "fifth", (3, 3), (1, 1), (0, 0), (4, 1, 1)),
    )
    readout = Layer(
        "readout", (Synapse("plane", rng.integers(-9, 9, (5, 4, 1, 1)) / 8),), bias(5, 1, 1), (5, 1, 1), 1.0
    )
    return Snn(Method(method, levels, levels if method == "qffs" else None), (2, 6, 6), nodes, readout)


def written(snn: Snn, form: GraphForm, k: int, *, frames: bool = False, by_step: bool = False) -> StepGraph:
    """`by_step`: these layers are all small; make currents of single steps as if they were not."""
    with mock.patch.object(onnx_matmul_form, "CACHED", 0 if by_step else onnx_matmul_form.CACHED):
        return onnx_from_snn(snn, steps_per_call=k, frames=frames, count_spikes=True, form=form)


def answers(graph: StepGraph, images: np.ndarray, started_anew: int | None = None) -> list[np.ndarray]:
    """All outputs of every call; `images` has one for each, and in the second one row starts from the beginning."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.model.SerializeToString(), options)
    shapes = {state.input: (BATCH, *(int(size) for size in state.shape[1:])) for state in graph.states}
    states = {state.input: np.full(shapes[state.input], state.initial, np.float32) for state in graph.states}
    names, found = [output.name for output in graph.outputs], []
    for call, image in enumerate(images):
        if call == 1 and started_anew is not None:
            for state in graph.states:
                states[state.input][started_anew] = state.initial
        feed = {"input": image, "alpha": np.array(1, np.float32), **states}
        made = session.run([*names, *(state.output for state in graph.states)], feed)
        found += made[: len(names)]
        states = {state.input: made[len(names) + i].copy() for i, state in enumerate(graph.states)}
    return found


def images(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (CALLS, *shape, 2, 6, 6)).astype(np.uint8)


@pytest.mark.parametrize("by_step", [False, True])
@pytest.mark.parametrize("method", ["qcfs", "qffs"])
@pytest.mark.parametrize("levels", [1, 3, 15, 32, 33, 128, 129, 255, 256, 1000])
def test_all_levels_give_the_bits_of_the_form_conv(method: str, levels: int, by_step: bool):
    """4 * 32 and 128 are the largest bytes; from 256 on, numbers of spikes are none."""
    snn = random_snn(method, levels, seed=levels)
    pixels = images(levels, BATCH)
    expected = answers(written(snn, "conv", 4), pixels)
    found = answers(written(snn, "matmul", 4, by_step=by_step), pixels)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    spikes = expected[3 :: len(expected) // CALLS]
    assert sum(array.sum() for array in spikes) > 500


@pytest.mark.parametrize("by_step", [False, True])
@pytest.mark.parametrize("method", ["qcfs", "qffs"])
@pytest.mark.parametrize(("bits", "products"), [(5, 9), (13, 13)])
def test_weights_of_several_bytes_give_the_bits_of_the_form_conv(method: str, bits: int, products: int, by_step: bool):
    """The weights into `second` to `fifth` have 9 and 17 bits: two and three digits; the read-out has one."""
    snn = random_snn(method, 3, seed=bits, bits=bits)
    pixels = images(bits, BATCH)
    expected = answers(written(snn, "conv", 4), pixels)
    found = answers(written(snn, "matmul", 4, by_step=by_step), pixels)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert sum(array.sum() for array in expected[3 :: len(expected) // CALLS]) > 500
    nodes = written(snn, "matmul", 1).model.graph.node
    assert [node.op_type for node in nodes].count("MatMulIntegerToFloat") == products


def test_sums_that_float32_does_not_hold_are_convolved():
    """A weight of 129 is 256 - 127: of 2,033 of them, times 128, the digits' sums pass 2^24, the current does not."""
    channels, sizes = 2033, (8, 16)
    first = Layer(
        "first",
        (Synapse(INPUT, np.full((channels, 1, 1, 1), 2.0**-7)),),
        np.zeros((channels, 1, 1)),
        (channels, *sizes),
        1.0,
    )
    pool = Pool("pool", "first", sizes, (1, 1), (0, 0), (channels, 1, 1))
    weights = np.where(np.arange(channels) % 2, 127.0, -129.0)
    weights[[0, -1]] = -1, 1
    weights = np.stack([weights, -weights]).reshape(2, channels, 1, 1) * 2.0**-10
    readout = Layer("readout", (Synapse("pool", weights),), np.zeros((2, 1, 1)), (2, 1, 1), 1.0)
    snn = Snn(Method("qcfs", 1, None), (1, *sizes), (first, pool), readout)
    image = np.full((1, BATCH, 1, *sizes), 255, np.uint8)
    image[..., 0, 0] = 0
    found, expected = (answers(written(snn, form, 1), image)[0] for form in ("matmul", "conv"))
    np.testing.assert_array_equal(found, expected)
    with mock.patch.object(onnx_matmul_form, "are_exact", return_value=True):
        assert not np.array_equal(answers(written(snn, "matmul", 1), image)[0], expected)


@pytest.mark.parametrize(("levels", "products"), [(3, 5), (32, 4), (33, 3), (128, 3), (129, 0)])
def test_numbers_of_spikes_that_make_no_byte_are_convolved_in_float32(levels: int, products: int):
    graph = written(random_snn("qffs", levels, seed=0), "matmul", 1).model.graph
    assert [node.op_type for node in graph.node].count("MatMulIntegerToFloat") == products


@pytest.mark.parametrize("method", ["qcfs", "qffs"])
def test_products_of_large_layers_are_made_step_by_step(method: str):
    """`third`, `fifth` and the read-out move more than their weights; the image comes into `second`, too."""
    graph = written(random_snn(method, 3, seed=0), "matmul", 4, by_step=True).model.graph
    layers = [node.name.split("/")[0] for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert {layer: layers.count(layer) for layer in layers} == {"second": 1, "third": 8, "fifth": 4, "readout": 4}
    assert len({tensor.name for tensor in graph.initializer}) == len(graph.initializer)
    assert sum(tensor.name.endswith("w.int8.0") for tensor in graph.initializer) == 5


@pytest.mark.parametrize(("channels", "products"), [(40, 1), (41, 4)])
def test_a_large_current_of_small_neighbourhoods_is_made_step_by_step(channels: int, products: int):
    """40 x 40 bytes are seen; with 4 bytes for each number, 41 channels are more than `CACHED` (2^18)."""
    narrow, wide = (1, 40, 40), (channels, 40, 40)
    layers = (
        Layer("first", (Synapse(INPUT, np.ones((1, 1, 1, 1))),), np.zeros((1, 1, 1)), narrow, 1.0),
        Layer("wide", (Synapse("first", np.ones((channels, 1, 1, 1))),), np.zeros((channels, 1, 1)), wide, 1.0),
        Pool("plane", "wide", (40, 40), (1, 1), (0, 0), (channels, 1, 1)),
    )
    readout = Layer("readout", (Synapse("plane", np.ones((2, channels, 1, 1))),), np.zeros((2, 1, 1)), (2, 1, 1), 1.0)
    graph = written(Snn(Method("qcfs", 1, None), narrow, layers, readout), "matmul", 4).model.graph
    found = [node.name for node in graph.node if node.op_type == "MatMulIntegerToFloat" and "wide" in node.name]
    assert len(found) == products


@pytest.mark.parametrize("layers_by_step", [False, True])
@pytest.mark.parametrize("method", ["qcfs", "qffs"])
def test_pools_and_layers_go_by_step_for_themselves(method: str, layers_by_step: bool):
    """What one of them makes by step, the other takes as a whole, and the other way round."""
    snn, pixels = random_snn(method, 3, seed=0), images(0, BATCH)
    expected = answers(written(snn, "conv", 4), pixels)
    with mock.patch.object(MatmulForm, "by_step", lambda form, layer: layers_by_step and layer.name == "third"):
        made = written(snn, "matmul", 4, by_step=not layers_by_step)
    parts = [
        node.name
        for node in made.model.graph.node
        if node.op_type == "ReduceSum" and node.name.startswith("plane") and node.name.endswith("/sum")
    ]
    assert parts == (["plane/sum"] if layers_by_step else [f"plane.{k}/sum" for k in range(4)])
    for one, other in zip(answers(made, pixels), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from(["qcfs", "qffs"]),
    st.integers(1, 9),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_images_that_change_and_rows_that_start_anew(
    method: str, levels: int, k: int, frames: bool, by_step: bool, seed: int
):
    snn = random_snn(method, levels, seed)
    pixels = images(seed, k, BATCH) if frames else images(seed, BATCH)
    found, expected = (
        answers(written(snn, form, k, frames=frames, by_step=by_step), pixels, started_anew=1)
        for form in ("matmul", "conv")
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_qffs_keeps_a_number_of_spikes_and_no_membrane():
    """Only what the image has brought is a sum, since another image may come."""
    states = [state.input for state in written(random_snn("qffs", 3, seed=0), "matmul", 1).states]
    assert states == [
        "t_in",
        "s_in.first",
        "n_in.first",
        "s_in.second",
        "n_in.second",
        "n_in.third",
        "n_in.fourth",
        "n_in.fifth",
    ]


def test_a_network_without_biases():
    snn = random_snn("qffs", 3, seed=1)
    bare = replace(snn, nodes=tuple(replace(n, bias=0 * n.bias) if isinstance(n, Layer) else n for n in snn.nodes))
    found, expected = (answers(written(bare, form, 2), images(0, BATCH)) for form in ("matmul", "conv"))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
