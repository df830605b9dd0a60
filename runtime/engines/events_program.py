"""A network laid out for the event-driven kernels: tables of numbers, weights in blocks, and the memory it needs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .events_network import Convolution, Layer, Network, Pool, Shape

LANES = (128, 64, 32, 16)
"""Channels of a block: the most that divides a layer's, which are filled up to a multiple of the least.

Sums of 128 channels of int8 weights are what 32 registers hold, AVX-512's and NEON's alike.
"""
IMAGE, LAYER, POOL, READOUT = range(4)
"""Kinds of nodes."""
CHANNEL_BIAS, MAP_BIAS, IMAGE_BIAS = range(3)
"""What enters a layer beside spikes: numbers per channel or per neuron, or those and the image's current."""
INT8, FLOAT, PRODUCTS, GAIN, PRODUCT_GAIN = range(5)
"""Kinds of synapses: weights of events, in int8 or float32; weights times what the image or a pool holds; the gain of
a spike; a gain times what a pool holds."""
CACHE_LINE = 64
"""Bytes. A vector that lies across two of them takes twice as long to read."""
SLACK = 8
"""Lists are written so many entries at a time."""

_WINDOW = "kernel_y kernel_x stride_y stride_x padding_y padding_x"
NODE = np.dtype([(name, np.int64) for name in (
    "kind source channels height width lanes neurons bias_kind bias first_synapse last_synapse "
    f"events line starts sums listed summed {_WINDOW}"
).split()])  # fmt: skip
"""neurons: where its membranes begin, `[block, y, x, lane]`, and eight times where its masks do; line: room for the
events of a line."""
SYNAPSE = np.dtype(
    [*((name, np.int64) for name in f"kind source weights unit {_WINDOW}".split()), ("gain", np.float64)]
)


class Program(NamedTuple):
    """What never changes."""

    nodes: np.ndarray
    synapses: np.ndarray
    floats: np.ndarray
    """Biases, units and float32 weights."""
    weights: np.ndarray
    """int8 weights, two channels in an int16 (`interleaved`)."""
    levels: int
    """QFFS: of the quantiser; 0 with QCFS, whose spikes have one sign."""


class State(NamedTuple):
    """What one input keeps from one call to the next."""

    v: np.ndarray
    """float32 `[neuron]`: membranes, and behind them the accumulated logits."""
    n: np.ndarray
    """uint8 `[neuron]`, QFFS: net number of spikes."""
    current: np.ndarray
    """float32 `[neuron]`, of the layers that see the image: its current and the bias."""


class Scratch(NamedTuple):
    """What a call needs, whatever the input. A plane is 2 * step + sign."""

    masks: np.ndarray
    """uint8 `[plane, neuron / 8]`: one bit per neuron."""
    events: np.ndarray
    """int32 `[plane, event]`"""
    starts: np.ndarray
    """int64 `[plane, pixel]`: where the events of each pixel begin; one more at the end of each line."""
    sums: np.ndarray
    """float32 `[step, channel …]`: what pools hold, for those who want numbers."""
    totals: np.ndarray
    """int64 `[thread, plane, node]`: number of events."""
    logits: np.ndarray
    """float32 `[step, padded class]`"""


class Sizes(NamedTuple):
    """Numbers of elements."""

    neurons: int
    readout: int
    current: int
    events: int
    starts: int
    sums: int


def program_from_network(network: Network) -> tuple[Program, Sizes]:
    """Lay a network out. Node 0 is the image, the last one the read-out."""
    return _Layout(network).finished()


def aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros that begin with a cache line."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def state_of(sizes: Sizes) -> State:
    neurons = sizes.neurons + sizes.readout
    return State(aligned((neurons,), np.float32), aligned((neurons,), np.uint8), aligned((sizes.current,), np.float32))


def scratch_of(program: Program, sizes: Sizes, steps: int, threads: int) -> Scratch:
    planes = 2 * steps
    return Scratch(
        np.zeros((planes, sizes.neurons // 8), np.uint8),
        np.zeros((planes, sizes.events), np.int32),
        np.zeros((planes, sizes.starts), np.int64),
        np.zeros((steps, sizes.sums), np.float32),
        np.zeros((threads, planes, len(program.nodes)), np.int64),
        np.zeros((steps, sizes.readout), np.float32),
    )


def padded(channels: int) -> int:
    return -(-channels // LANES[-1]) * LANES[-1]


def interleaved(weights: np.ndarray) -> np.ndarray:
    """int8 `[…, lanes]` -> int16 `[…, lanes / 2]`: (w_i + 128) + 256 * w_(i + lanes / 2)."""
    low, high = np.split(weights.astype(np.int16), 2, axis=-1)
    return low + np.int16(128) + np.int16(256) * high


def in_blocks(weights: np.ndarray, lanes: int, inputs: int, groups: int) -> np.ndarray:
    """`[out, in / groups, y, x]` -> `[block, y * x * inputs, lanes]`, with zeros for channels that there are not."""
    outputs, per_group, *kernel = weights.shape
    rows, width = np.zeros((*kernel, inputs, padded(outputs)), weights.dtype), outputs // groups
    for group in range(groups):
        seen, made = slice(group * per_group, (group + 1) * per_group), slice(group * width, (group + 1) * width)
        rows[:, :, seen, made] = weights[made].transpose(2, 3, 1, 0)
    return np.ascontiguousarray(rows.reshape(-1, padded(outputs) // lanes, lanes).transpose(1, 0, 2))


def maps_in_blocks(maps: np.ndarray, lanes: int) -> np.ndarray:
    """`[channel, y, x]` -> `[block, y, x, lanes]`, with zeros for channels that there are not."""
    channels, height, width = maps.shape
    filled = np.zeros((padded(channels), height, width), maps.dtype)
    filled[:channels] = maps
    return np.ascontiguousarray(filled.reshape(-1, lanes, height, width).transpose(0, 2, 3, 1))


class _Store:
    """Arrays one behind another; `add` says where each begins."""

    def __init__(self, dtype: type) -> None:
        self.size, self._dtype, self._parts = 0, dtype, []

    def add(self, array: np.ndarray) -> int:
        """Keep an array; the next one will begin with a cache line too."""
        start = self.size
        self._parts.append((start, np.ravel(array).astype(self._dtype)))
        self.size += -(-array.size // CACHE_LINE) * CACHE_LINE
        return start

    def joined(self) -> np.ndarray:
        whole = aligned((self.size,), self._dtype)
        for start, part in self._parts:
            whole[start : start + part.size] = part
        return whole


class _Layout:
    def __init__(self, network: Network) -> None:
        self._network, nodes = network, (*network.nodes, network.readout)
        self._floats, self._weights = _Store(np.float32), _Store(np.int16)
        self._floats.add(np.zeros(LANES[0]))  # the bias where none enters
        self._neurons = self._current = self._events = self._starts = self._sums = 0
        self._index = {network.input: 0} | {node.name: index for index, node in enumerate(nodes, start=1)}
        channels, height, width = network.input_shape
        self._nodes = [{"kind": IMAGE, "channels": channels, "height": height, "width": width}]
        self._synapses: list[dict[str, Any]] = []
        for node in nodes:
            self._nodes.append(self._pool(node) if isinstance(node, Pool) else self._layer(node))

    def finished(self) -> tuple[Program, Sizes]:
        for synapse in self._synapses:
            source = self._nodes[synapse["source"]]
            if source["kind"] == POOL:
                self._read(source, summed=synapse["kind"] in (PRODUCTS, PRODUCT_GAIN))
        for node in reversed(self._nodes):  # what reads a pool that reads a pool comes behind both
            source = self._nodes[node["source"]] if node["kind"] == POOL else None
            if source is not None and source["kind"] == POOL:
                self._read(source, summed=False)
        nodes, synapses = _table(self._nodes, NODE), _table(self._synapses, SYNAPSE)
        program = Program(nodes, synapses, self._floats.joined(), self._weights.joined(), self._network.levels)
        readout = self._nodes[-1]["channels"]
        neurons = self._neurons - readout
        return program, Sizes(neurons, readout, self._current, self._events, self._starts, self._sums)

    def _read(self, pool: dict[str, Any], *, summed: bool) -> None:
        pool["summed" if summed else "listed"] = 1

    def _lists(self, shape: Shape, line: int) -> dict[str, int]:
        """Room for the events of a source: at most `line` of them, and the slack, in each line of its map."""
        _, height, width = shape
        found = {"events": self._events, "line": line + SLACK, "starts": self._starts}
        self._events += height * (line + SLACK)
        self._starts += height * (width + 1)
        return found

    def _layer(self, layer: Layer) -> dict[str, Any]:
        (channels, height, width), readout = layer.shape, layer is self._network.readout
        wide = padded(channels)
        lanes, neurons = next(lanes for lanes in LANES if wide % lanes == 0), wide * height * width
        node: dict[str, Any] = {"kind": READOUT if readout else LAYER, "neurons": self._neurons, "lanes": lanes}
        node |= {"channels": wide, "height": height, "width": width, "first_synapse": len(self._synapses)}
        self._synapses += [self._synapse(synapse, lanes) for synapse in layer.synapses]
        node["last_synapse"] = len(self._synapses)
        if any(synapse.source == self._network.input for synapse in layer.synapses):
            bias = np.broadcast_to(layer.bias, layer.shape)
            node |= {"bias_kind": IMAGE_BIAS, "sums": self._current}
            self._current += neurons
        else:
            bias = layer.bias
            node["bias_kind"] = CHANNEL_BIAS if bias.shape[1:] == (1, 1) else MAP_BIAS
        node["bias"] = self._floats.add(maps_in_blocks(bias, lanes))
        self._neurons += neurons
        return node if readout else node | self._lists(layer.shape, wide * width)

    def _synapse(self, synapse: Any, lanes: int) -> dict[str, Any]:
        index = self._index[synapse.source]
        source = self._nodes[index]
        of_sums = source["kind"] != LAYER
        if not isinstance(synapse, Convolution):
            return {"kind": PRODUCT_GAIN if of_sums else GAIN, "source": index, "gain": synapse.gain}
        blocks = in_blocks(synapse.weight, lanes, source["channels"], synapse.groups)
        found = {"source": index, **_window(synapse.weight.shape[2:], synapse.stride, synapse.padding)}
        if synapse.unit is None:
            return found | {"kind": PRODUCTS if of_sums else FLOAT, "weights": self._floats.add(blocks)}
        unit = np.pad(synapse.unit, (0, padded(len(synapse.unit)) - len(synapse.unit)))
        return found | {"kind": INT8, "weights": self._weights.add(interleaved(blocks)), "unit": self._floats.add(unit)}

    def _pool(self, pool: Pool) -> dict[str, Any]:
        index = self._index[pool.source]
        source = self._nodes[index]
        (_, height, width), wide = pool.shape, source["channels"]
        node = {"kind": POOL, "source": index, "channels": wide, "height": height, "width": width, "sums": self._sums}
        self._sums += wide * height * width
        area, each = pool.kernel[0] * pool.kernel[1], source["line"] // source["width"]  # so many events, or fewer
        lists = self._lists(pool.shape, width * area * each)
        return node | _window(pool.kernel, pool.stride, pool.padding) | lists


def _window(kernel: Any, stride: Any, padding: Any) -> dict[str, int]:
    numbers = (*kernel, *stride, *padding)
    return dict(zip(_WINDOW.split(), map(int, numbers), strict=True))


def _table(records: list[dict[str, Any]], dtype: np.dtype) -> np.ndarray:
    table = np.zeros(max(len(records), 1), dtype)
    for index, record in enumerate(records):
        for name, value in record.items():
            table[index][name] = value
    return table
