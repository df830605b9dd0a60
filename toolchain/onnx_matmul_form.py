"""The graph's form for ONNX Runtime's CPU: integer matrix products over `[batch, y, x, channel]`.

A convolution there has no fast integer kernel that keeps all bits of its sums; the matrix product has
(docs/adr/0010-matmul-form.md). So spikes are bytes with the channel last, and a 3 x 3 neighbourhood is nine of them in
a row. QFFS emits the number of spikes so far: bytes that are not negative, of which a neuron needs no membrane.
Weights are int8, or in fp32 a few int8 digits with a product for each (`byte_digits`).

The steps of a call share their products where weights are more than what they meet; elsewhere each step has its own,
and what it reads and writes is still in the cache when the neurons need it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from ..runtime.int8 import LARGEST_BYTE
from .byte_digits import BASE, Digits, are_exact, byte_digits
from .onnx_conv_form import convolution, float_weight, riding
from .onnx_graph import GraphBuilder, numbered
from .onnx_neurons import INITIAL_MEMBRANE, steps_of
from .onnx_windows import CHANNEL, X, Y, padded, shifted
from .snn import INPUT, Layer, Pool, Shape, Snn, Synapse, out_size

MICROSOFT = "com.microsoft"
TO_CHANNELS_LAST, TO_CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
UINT8_MAX = 255
CACHED = 2**18
"""Bytes that a layer or pool moves in a step; of so many, several steps fit into a core's cache (1 MiB, Zen 4)."""
FLOAT_BYTES = np.dtype(np.float32).itemsize


@dataclass
class MatmulForm:
    """See `onnx_currents.Form`.

    The neurons of QFFS are `[batch, y, 1, x * channel]`: a bias is added faster to long rows than to short ones.
    """

    graph: GraphBuilder
    snn: Snn
    trains: dict[str, str] = field(default_factory=dict)
    """The image alone, `[batch, channel, y, x]`."""
    _emitted: dict[str, list[str]] = field(default_factory=dict)
    """What layers emit, float32, per step, as the neurons lie."""
    _bytes: dict[str, list[str]] = field(default_factory=dict)
    """The same as uint8, where it was made on the way or asked for."""
    _pools: dict[str, list[str]] = field(default_factory=dict)
    """What pools emit, float32 `[batch, y, x, channel]`, per step or all steps in one."""
    _spikes: dict[str, list[str]] = field(default_factory=dict)
    """The same, or for QFFS what was added to it in the step."""
    _known_digits: dict[str, Digits | None] = field(default_factory=dict)
    """What `_digits` found for a synapse, by its name."""

    @property
    def cumulative(self) -> bool:
        return self.snn.method.name == "qffs"

    def by_step(self, layer: Layer) -> bool:
        moved, weights = FLOAT_BYTES * int(np.prod(layer.shape)), 0  # the current, and the neighbourhoods it is made of
        for synapse in layer.synapses:
            if synapse.source == INPUT:
                return False
            if not synapse.is_identity:
                _, height, width = self._shape(synapse)
                moved += height * width * int(np.prod(synapse.weight.shape[1:]))
                weights += synapse.weight.size
        return moved > max(weights, CACHED)

    def probe(self, name: str, source: str) -> None:
        spikes = self._image(source, self.graph.batched(f"{name}/z", self._spikes[source]), f"{name}/image")
        self.graph.add("Transpose", name, spikes, perm=TO_CHANNELS_FIRST)

    def count(self, name: str, layer: str, *, net: bool) -> str:
        graph, spikes = self.graph, list(enumerate(self._spikes[layer]))
        if net or not self.cumulative:
            axes = graph.integers(1, 2, 3)
            return graph.batched(name, [graph.add("ReduceSum", f"{name}.{i}", z, axes, keepdims=0) for i, z in spikes])
        # The squares of -1, 0 and 1. `z z^T` as ordinary MatMul takes twenty times as long.
        row = graph.integers(-1, 1, int(np.prod(self.snn.shape_of(layer))))
        rows = [graph.add("Reshape", f"{name}/row.{i}", z, row) for i, z in spikes]
        squares = [
            graph.add("FusedMatMul", f"{name}.{i}", z, z, domain=MICROSOFT, transB=1) for i, z in enumerate(rows)
        ]
        return graph.add("Reshape", name, graph.batched(f"{name}/squares", squares), graph.integers(-1))

    def bias(self, layer: Layer) -> np.ndarray:
        bias = layer.bias[None].transpose(TO_CHANNELS_LAST)
        if not self.cumulative:
            return bias
        _, rows, columns, _ = bias.shape
        return np.tile(bias, (1, 1, layer.shape[2] // columns, 1)).reshape(1, rows, 1, -1)

    def state(self, layer: Layer) -> tuple[int, ...]:
        channels, height, width = layer.shape
        return (height, 1, width * channels) if self.cumulative else (height, width, channels)

    def neurons(self, layer: Layer, currents: list[str]) -> None:
        neurons = self._if_neurons if self.snn.method.name == "qcfs" else self._signed_if_neurons
        neurons(layer, currents)

    def _if_neurons(self, layer: Layer, currents: list[str]) -> None:
        """p = v + I;  z = the byte that clip(p, 0, 1) is cut to;  v' = p - z  (`if_step`)."""
        graph = self.graph
        v, v_out = graph.state("v", layer.name, self.state(layer), INITIAL_MEMBRANE)
        spikes, as_bytes = [], []
        for name, last, current in steps_of(layer, currents):
            p = graph.add("Add", f"{name}/p", v, current)
            z, byte = self._cut(name, "z", p, 1)
            v = graph.add("Sub", v_out if last else f"{name}/v", p, z)
            spikes.append(z)
            as_bytes += byte
        self._emitted[layer.name] = self._spikes[layer.name] = spikes
        self._bytes[layer.name] = as_bytes

    def _signed_if_neurons(self, layer: Layer, sums: list[str]) -> None:
        """z = clip(clip(floor(s), 0, levels) - n, -1, 1);  n' = n + z.

        That is `signed_if_step` with s = v + n, which only the current changes: the sum of all currents so far.
        """
        graph, levels = self.graph, self.snn.method.levels
        n, n_out = graph.state("n", layer.name, self.state(layer), 0.0)
        numbers, spikes = [], []
        for name, last, s in steps_of(layer, sums):
            wanted, _ = self._cut(name, "wanted", s, levels)
            change = graph.add("Sub", f"{name}/change", wanted, n)
            z = graph.add("Clip", f"{name}/z", change, graph.scalar(-1), graph.scalar(1))
            n = graph.add("Add", n_out if last else f"{name}/n", n, z)
            numbers.append(n)
            spikes.append(z)
        self._emitted[layer.name], self._spikes[layer.name] = numbers, spikes

    def _cut(self, step: str, name: str, tensor: str, largest: int) -> tuple[str, list[str]]:
        """clip(floor(x), 0, largest) in float32 and, where it fits, as a byte, which is the faster way to it."""
        graph = self.graph
        clipped = graph.add("Clip", f"{step}/{name}.clipped", tensor, graph.scalar(0), graph.scalar(largest))
        if largest > UINT8_MAX:
            return graph.add("Floor", f"{step}/{name}", clipped), []
        byte = graph.add("Cast", f"{step}/{name}.byte", clipped, to=TensorProto.UINT8)
        return graph.add("Cast", f"{step}/{name}", byte, to=TensorProto.FLOAT), [byte]

    def pool(self, pool: Pool) -> None:
        large = FLOAT_BYTES * np.prod(self.snn.shape_of(pool.source)) > CACHED
        parts = range(self._steps) if large and self._steps > 1 else [None]
        self._pools[pool.name] = [self._pooled(pool, step) for step in parts]

    def _pooled(self, pool: Pool, step: int | None) -> str:
        """Sum over windows, first along x and then along y."""
        graph, name, total = self.graph, numbered(pool.name, step), self._numbers(pool.source, step)
        if pool.kernel == self.snn.shape_of(pool.source)[1:] and pool.padding == (0, 0):
            # of both axes at once it takes twelve times as long
            along_x = graph.add("ReduceSum", f"{name}/x", total, graph.integers(X), keepdims=1)
            return graph.add("ReduceSum", f"{name}/sum", along_x, graph.integers(Y), keepdims=1)
        total = padded(graph, f"{name}/padded", total, pool.padding, graph.scalar(0))
        for axis, kernel, stride, size in (
            (X, pool.kernel[1], pool.stride[1], pool.shape[2]),
            (Y, pool.kernel[0], pool.stride[0], pool.shape[1]),
        ):
            total, *others = shifted(graph, f"{name}/{'_yx'[axis]}", total, axis, kernel, stride, size)
            for index, other in enumerate(others, start=1):
                total = graph.add("Add", f"{name}/{'_yx'[axis]}.sum.{index}", total, other)
        return total

    def current(self, name: str, synapse: Synapse, bias: np.ndarray | None, step: int | None = None) -> str:
        """Add the current of a synapse: products of bytes, or a convolution between two changes of layout."""
        graph, made = self.graph, numbered(name, step)  # constants are stored once, as `name/…`
        if synapse.is_identity:
            gain, source = synapse.weight.astype(np.float32), self._numbers(synapse.source, step)
            if gain != 1.0:
                source = graph.add("Mul", f"{made}/gained", source, graph.constant(f"{name}/gain", gain))
            return self._rows(made, source, self.snn.shape_of(synapse.source))
        digits = self._digits(name, synapse, bias)
        if digits is None:
            current = self._convolved(name, synapse, bias, step)
        else:
            current = self._multiplied(name, synapse, digits, bias, step)
        return self._rows(made, current, self._shape(synapse))

    def _digits(self, name: str, synapse: Synapse, bias: np.ndarray | None) -> Digits | None:
        """What to multiply bytes with; None where that would not be exact."""
        if name not in self._known_digits:
            largest, digits = self._largest_byte(synapse.source), None
            if synapse.source != INPUT and synapse.groups == 1 and largest <= LARGEST_BYTE:
                digits = byte_digits(synapse)
            if digits is not None and synapse.unit is None and not are_exact(digits, largest, bias):
                digits = None
            self._known_digits[name] = digits
        return self._known_digits[name]

    def _convolved(self, name: str, synapse: Synapse, bias: np.ndarray | None, step: int | None) -> str:
        graph, made, source = self.graph, numbered(name, step), self._numbers(synapse.source, step)
        if synapse.source != INPUT:
            source = graph.once("Transpose", f"{source}/channels_first", source, perm=TO_CHANNELS_FIRST)
        operands = [float_weight(graph, name, synapse), *riding(graph, name, bias)]
        current = convolution(graph, f"{made}/conv", synapse, source, *operands)
        return graph.add("Transpose", f"{made}/last", current, perm=TO_CHANNELS_LAST)

    def _multiplied(
        self, name: str, synapse: Synapse, digits: Digits, bias: np.ndarray | None, step: int | None
    ) -> str:
        """Add the product of each digit, the highest first (`are_exact`); the bias is with the lowest."""
        graph, made, seen, total = self.graph, numbered(name, step), self._neighbourhoods(synapse, step), ""
        for place, digit in reversed(list(enumerate(digits.values))):
            # [out, in, y, x] -> [y * x * in, out], the order of `_neighbourhoods`
            matrix = digit.transpose(2, 3, 1, 0).reshape(-1, len(digit))
            operands = [
                graph.constant(f"{name}/w.int8.{place}", matrix),
                graph.scalar(1),
                graph.constant(f"{name}/unit.{place}", (digits.unit * BASE**place).astype(np.float32)),
                self._zero(),
                "",
                *(riding(graph, name, bias) if place == 0 else ()),
            ]
            product = graph.add("MatMulIntegerToFloat", f"{made}/product.{place}", seen, *operands, domain=MICROSOFT)
            total = graph.add("Add", f"{made}/sum.{place}", total, product) if total else product
        return total

    def _shape(self, synapse: Synapse) -> Shape:
        """`[channel, y, x]` of a current."""
        _, *sizes = self.snn.shape_of(synapse.source)
        kernel, windows = synapse.weight.shape[2:], zip(synapse.stride, synapse.padding, strict=True)
        height, width = (out_size(size, k, *w) for size, k, w in zip(sizes, kernel, windows, strict=True))
        return synapse.weight.shape[0], height, width

    def _rows(self, name: str, tensor: str, shape: Shape) -> str:
        """Lay out `[batch, y, x, channel]` as neurons are."""
        if not self.cumulative:
            return self.graph.add("Identity", name, tensor)
        channels, height, width = shape
        return self.graph.add("Reshape", name, tensor, self.graph.integers(-1, height, 1, width * channels))

    def _image(self, source: str, tensor: str, name: str) -> str:
        """The inverse of `_rows`."""
        if not self.cumulative:
            return tensor
        channels, height, width = self.snn.shape_of(source)
        return self.graph.once("Reshape", name, tensor, self.graph.integers(-1, height, width, channels))

    def _neighbourhoods(self, synapse: Synapse, step: int | None) -> str:
        """uint8 `[batch, y, x, kernel y * kernel x * channel]`: what each output position sees."""
        graph, source = self.graph, self._as_bytes(synapse.source, step)
        (ky, kx), (sy, sx) = synapse.weight.shape[2:], synapse.stride
        (py, px), (_, size_y, size_x) = synapse.padding, self._shape(synapse)
        name = f"{source}/{ky}x{kx}_{sy}{sx}_{py}{px}"
        if graph.has(name):
            return name
        seen = padded(graph, f"{source}/padded_{py}{px}", source, synapse.padding, self._zero())
        for axis, kernel, stride, size in ((X, kx, sx, size_x), (Y, ky, sy, size_y)):
            parts = shifted(graph, f"{name}/{'_yx'[axis]}", seen, axis, kernel, stride, size)
            seen = graph.add("Concat", f"{name}/{'_yx'[axis]}", *parts, axis=CHANNEL) if len(parts) > 1 else parts[0]
        return graph.add("Identity", name, seen)

    def _numbers(self, source: str, step: int | None) -> str:
        """float32 `[batch, y, x, channel]`: what a source emits; the image `[batch, channel, y, x]`."""
        if source == INPUT:
            return self.trains[INPUT]
        if source in self._pools:
            return self._part(source, self._pools[source], step)
        return self._train(f"{source}/numbers", source, self._emitted[source], step)

    def _as_bytes(self, source: str, step: int | None) -> str:
        """uint8 `[batch, y, x, channel]`: what a source emits."""
        name = f"{source}/bytes"
        if source in self._pools:
            casts = [
                self.graph.once("Cast", f"{pool}/byte", pool, to=TensorProto.UINT8) for pool in self._pools[source]
            ]
            return self._part(name, casts, step)
        if not self._bytes.get(source):
            self._bytes[source] = [
                self.graph.add("Cast", f"{name}.cast.{index}", number, to=TensorProto.UINT8)
                for index, number in enumerate(self._emitted[source])
            ]
        return self._train(name, source, self._bytes[source], step)

    @property
    def _steps(self) -> int:
        return len(self._emitted[self.snn.layers[0].name])

    def _part(self, name: str, parts: list[str], step: int | None) -> str:
        """One step, or all joined, of what is there per step or as a whole."""
        if len(parts) > 1:
            return self.graph.batched(f"{name}.joined", parts) if step is None else parts[step]
        (joined,) = parts
        if step is None:
            return joined
        if not self.graph.has(f"{joined}/parts.{step}"):
            self.graph.split(f"{joined}/parts", joined, self._steps)
        return f"{joined}/parts.{step}"

    def _train(self, name: str, source: str, parts: list[str], step: int | None) -> str:
        """The image of a step, or of all steps joined."""
        return self._image(source, self._part(name, parts, step), numbered(name, step))

    def _largest_byte(self, source: str) -> int:
        return self.snn.largest_values()[source] * (self.snn.method.levels if self.cumulative else 1)

    def _zero(self) -> str:
        return self.graph.constant("const/0_uint8", np.array(0, np.uint8))
