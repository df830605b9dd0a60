"""The kernels of the event-driven engine against numpy: any layer, any spikes, any number of threads, to the bit."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba", reason="numba is not installed")

from dynamic_confidence.runtime.engines import events_kernels as kernels
from dynamic_confidence.runtime.engines.events_bounds import check_bounds
from dynamic_confidence.runtime.engines.events_network import Convolution, Gain, Layer, Network, Pool
from dynamic_confidence.runtime.engines.events_program import (
    aligned,
    in_blocks,
    interleaved,
    program_from_network,
    scratch_of,
    state_of,
)

UNIT = 2.0**-10


def convolved(source: np.ndarray, synapse: Convolution) -> np.ndarray:
    """float64 `[channel, y, x]`, term by term."""
    weight = synapse.weight.astype(np.float64)
    if synapse.unit is not None:
        weight = weight * synapse.unit.reshape(-1, 1, 1, 1)
    outputs, per_group, height, width = weight.shape
    (top, left), (dy, dx) = synapse.padding, synapse.stride
    padded = np.pad(source.astype(np.float64), ((0, 0), (top, top), (left, left)))
    ys, xs = (padded.shape[1] - height) // dy + 1, (padded.shape[2] - width) // dx + 1
    found = np.zeros((outputs, ys, xs))
    for out in range(outputs):
        first = out // (outputs // synapse.groups) * per_group
        for y in range(ys):
            for x in range(xs):
                window = padded[first : first + per_group, y * dy : y * dy + height, x * dx : x * dx + width]
                found[out, y, x] = (window * weight[out]).sum()
    return found


def pooled(source: np.ndarray, pool: Pool) -> np.ndarray:
    channels = len(source)
    ones = np.ones((channels, 1, *pool.kernel), np.float32)
    return convolved(source, Convolution(pool.source, ones, None, pool.stride, pool.padding, channels))


def stepped(network: Network, pixels: np.ndarray, gates: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: logits `[step, class]` and spikes of both signs `[step, layer, sign]`, in float64."""
    layers = [node for node in network.nodes if isinstance(node, Layer)]
    v = {layer.name: np.full(layer.shape, 0.5) for layer in layers}
    n = {layer.name: np.zeros(layer.shape) for layer in layers}
    total, logits, spikes = np.zeros(network.readout.shape), [], []
    for gate in gates:
        values: dict[str, np.ndarray] = {network.input: pixels * float(gate)}

        def current(layer: Layer, values: dict[str, np.ndarray] = values, gate: bool = gate) -> np.ndarray:
            found = np.zeros(layer.shape) + layer.bias * float(gate)
            for s in layer.synapses:
                found = found + (values[s.source] * s.gain if isinstance(s, Gain) else convolved(values[s.source], s))
            return found

        counts = []
        for node in network.nodes:
            if isinstance(node, Pool):
                values[node.name] = pooled(values[node.source], node)
                continue
            p = v[node.name] + current(node)
            if network.levels:
                z = ((p >= 1) & (n[node.name] < network.levels)) * 1.0 - ((p < 0) & (n[node.name] > 0)) * 1.0
            else:
                z = (p >= 1) * 1.0
            v[node.name], n[node.name], values[node.name] = p - z, n[node.name] + z, z
            counts.append([(z > 0).sum(), (z < 0).sum()])
        total = total + current(network.readout)
        logits.append(total.reshape(-1).copy())
        spikes.append(counts)
    return np.array(logits), np.array(spikes)


def run(network: Network, pixels: np.ndarray, gates: list[bool], threads: int) -> tuple[np.ndarray, np.ndarray]:
    program, sizes = program_from_network(network)
    check_bounds(program, sizes)
    state, scratch = state_of(sizes), scratch_of(program, sizes, len(gates), threads)
    state.v[: sizes.neurons] = 0.5
    kernels.inject(program, state, pixels)
    common = program, state, scratch, np.array(gates)
    arrivals = np.zeros(1, np.int64)
    others = [
        threading.Thread(target=kernels.advance, args=(*common, part, threads, arrivals)) for part in range(1, threads)
    ]
    for other in others:
        other.start()
    kernels.advance(*common, 0, threads, arrivals)
    for other in others:
        other.join()
    layers = [index for index, node in enumerate(network.nodes, start=1) if isinstance(node, Layer)]
    totals = scratch.totals.sum(axis=0)[:, layers].reshape(len(gates), 2, len(layers)).transpose(0, 2, 1)
    return scratch.logits[:, : network.readout.shape[0]], totals


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Image -> a -> b -> c, and perhaps pools, d and e -> read-out, of any sizes, strides and paddings.

    The image may enter a second layer and the read-out too.
    """
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([0, 1, 3, 255]))

    def weights(name: str, source: tuple[str, tuple[int, int, int]], out: int, *, int8: bool, whole: bool = False):
        channels, height, width = source[1]
        kernel = (
            (height, width) if whole else (draw(st.integers(1, min(3, height))), draw(st.integers(1, min(3, width))))
        )
        stride = (1, 1) if whole else (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
        padding = (0, 0) if whole else (draw(st.integers(0, kernel[0] - 1)), draw(st.integers(0, kernel[1] - 1)))
        groups = 2 if draw(st.booleans()) and channels % 2 == 0 and out % 2 == 0 and source[0] != "image" else 1
        shape = (out, channels // groups, *kernel)
        integers = random.integers(-127, 128, shape).astype(np.int8)
        unit = random.integers(1, 9, out).astype(np.float32) * UNIT / 8
        size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip((height, width), padding, kernel, stride, strict=True)]
        made = (out, size[0], size[1])
        if int8:
            return Convolution(source[0], integers, unit, stride, padding, groups), made
        return Convolution(source[0], integers * np.float32(UNIT), None, stride, padding, groups), made

    def layer(name: str, synapses: list, shape: tuple[int, int, int]) -> Layer:
        wide = draw(st.booleans())
        bias = random.integers(-64, 128, shape if wide else (shape[0], 1, 1)).astype(np.float32) * 2.0**-8
        return Layer(name, shape, tuple(synapses), bias.astype(np.float32))

    image = (draw(st.integers(1, 3)), draw(st.integers(3, 6)), draw(st.integers(3, 6)))
    first, shape_a = weights("a", ("image", image), draw(st.sampled_from([3, 16, 40, 130])), int8=False)
    nodes: list[Layer | Pool] = [layer("a", [first], shape_a)]
    before = "a"
    if draw(st.booleans()):
        again = random.integers(-127, 128, first.weight.shape) * np.float32(UNIT)
        image_again = Convolution("image", again.astype(np.float32), None, first.stride, first.padding, 1)
        nodes.append(layer("late", [Gain("a", 0.25), image_again, Gain("a", -0.625)], shape_a))
        before = "late"
    synapse, shape_b = weights("b", (before, shape_a), draw(st.sampled_from([4, 32, 72])), int8=draw(st.booleans()))
    nodes.append(layer("b", [synapse], shape_b))
    channels = shape_b[0]
    integers = random.integers(-127, 128, (channels, channels, 1, 1)).astype(np.int8)
    one_by_one = Convolution("b", integers, np.full(channels, UNIT / 8, np.float32), (1, 1), (0, 0), 1)
    nodes.append(layer("c", [one_by_one, Gain("b", 0.375)], shape_b))
    last, shape = "c", shape_b
    if draw(st.booleans()):
        kernel = (draw(st.integers(1, shape[1])), draw(st.integers(1, shape[2])))
        padding = (kernel[0] // 2, kernel[1] // 2)
        size = [(n + 2 * p - k) // 2 + 1 for n, p, k in zip(shape[1:], padding, kernel, strict=True)]
        nodes.append(Pool("pool", (shape[0], size[0], size[1]), last, kernel, (2, 2), padding))
        pooled_shape, pool = (shape[0], size[0], size[1]), "pool"
        if draw(st.booleans()):
            kernel = (draw(st.integers(1, min(2, size[0]))), draw(st.integers(1, min(2, size[1]))))
            pooled_shape, pool = (shape[0], size[0] - kernel[0] + 1, size[1] - kernel[1] + 1), "second pool"
            nodes.append(Pool(pool, pooled_shape, "pool", kernel, (1, 1), (0, 0)))
        synapse, shape_d = weights("d", (pool, pooled_shape), 20, int8=draw(st.booleans()))
        nodes.append(layer("d", [synapse], shape_d))
        nodes.append(layer("e", [Gain(pool, 0.25)], pooled_shape))
        last, shape = draw(st.sampled_from([("d", shape_d), ("e", pooled_shape), (pool, pooled_shape)]))
    synapse, out = weights("readout", (last, shape), 5, int8=False, whole=True)
    seen = [weights("readout", ("image", image), 5, int8=False, whole=True)[0]] if draw(st.booleans()) else []
    readout = Layer("acc", out, (synapse, *seen), random.integers(-9, 9, (5, 1, 1)).astype(np.float32))
    return Network("image", image, tuple(nodes), readout, levels)


@settings(max_examples=25, deadline=None)
@given(
    networks(),
    st.integers(0, 2**32),
    st.lists(st.booleans(), min_size=1, max_size=4),
    st.integers(1, 2),
)
def test_every_step_equals_the_oracle(network: Network, seed: int, gates: list[bool], threads: int):
    pixels = np.random.default_rng(seed).integers(0, 2, network.input_shape, np.uint8) * np.uint8(9)
    gates = gates if network.levels else [True] * len(gates)
    logits, spikes = run(network, pixels, gates, threads)
    expected_logits, expected_spikes = stepped(network, pixels, gates)
    np.testing.assert_array_equal(spikes, expected_spikes)
    np.testing.assert_array_equal(logits, expected_logits)


@pytest.mark.parametrize("weight", [127, -127])
@pytest.mark.parametrize("channels", [255, 256, 257, 513, 2000])
def test_sums_of_many_rows_do_not_overflow(channels: int, weight: int):
    """int16 holds the sum of 256 of the largest weights, and no more."""
    image = (1, 1, 1)
    ones = Convolution("image", np.ones((channels, 1, 1, 1), np.float32), None, (1, 1), (0, 0), 1)
    most = np.full((33, channels, 1, 1), weight, np.int8)
    b = Convolution("a", most, np.full(33, UNIT, np.float32), (1, 1), (0, 0), 1)
    nodes = (
        Layer("a", (channels, 1, 1), (ones,), np.zeros((channels, 1, 1), np.float32)),
        Layer("b", (33, 1, 1), (b,), np.zeros((33, 1, 1), np.float32)),
    )
    readout = Layer("acc", (33, 1, 1), (Gain("b", 1.0),), np.zeros((33, 1, 1), np.float32))
    network = Network("image", image, nodes, readout, 0)
    program, sizes = program_from_network(network)
    state, scratch = state_of(sizes), scratch_of(program, sizes, 1, 1)
    kernels.inject(program, state, np.ones(image, np.uint8))
    kernels.advance(program, state, scratch, np.array([True]), 0, 1, np.zeros(1, np.int64))
    first = program.nodes[2]["neurons"]
    total = channels * weight * UNIT
    np.testing.assert_array_equal(state.v[first : first + 33], total - (total >= 1))


@given(st.integers(0, 2**32), st.sampled_from([16, 32, 64, 128]))
def test_two_weights_in_one_integer(seed: int, lanes: int):
    weights = np.random.default_rng(seed).integers(-127, 128, (3, lanes)).astype(np.int8)
    coded = interleaved(weights)
    high = coded >> 8
    np.testing.assert_array_equal(high, weights[:, lanes // 2 :])
    np.testing.assert_array_equal(coded - (high << 8) - 128, weights[:, : lanes // 2])


def test_blocks_of_a_grouped_convolution():
    weight = np.arange(4 * 1 * 1 * 2, dtype=np.float32).reshape(4, 1, 1, 2)
    blocks = in_blocks(weight, 16, 16, 2)
    assert blocks.shape == (1, 2 * 16, 16)
    found = blocks.reshape(2, 16, 16)
    np.testing.assert_array_equal(found[:, 0, :2], weight[:2, 0, 0].T)
    np.testing.assert_array_equal(found[:, 1, 2:4], weight[2:, 0, 0].T)
    assert np.count_nonzero(found) == np.count_nonzero(weight)


def test_arrays_begin_with_a_cache_line():
    assert all(aligned((size,), np.float32).ctypes.data % 64 == 0 for size in range(1, 40))
