"""The graph's form for ONNX Runtime's CPU in int8: integer matrix products over `[batch, y, x, channel]`.

A convolution there has no fast integer kernel that keeps all bits of its sums; the matrix product has
(docs/adr/0010-matmul-form.md). So spikes are bytes with the channel last, and a 3 x 3 neighbourhood is nine of them in
a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from .onnx_conv_form import convolution, float_weight
from .onnx_graph import GraphBuilder
from .onnx_neurons import INITIAL_MEMBRANE, steps_of
from .snn import INPUT, Layer, Pool, Shape, Snn, Synapse, out_size

MICROSOFT = "com.microsoft"
TO_CHANNELS_LAST, TO_CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
Y, X, CHANNEL = 1, 2, 3
"""Axes."""
LARGEST_BYTE = 128
"""Two products of such bytes with int8 weights fit into int16, where x86 processors without VNNI add them."""


@dataclass
class MatmulForm:
    """See `onnx_from_snn.Form`."""

    graph: GraphBuilder
    snn: Snn
    trains: dict[str, str] = field(default_factory=dict)
    """The image, `[batch, channel, y, x]`, and sums of spikes, `[batch, y, x, channel]`, by source."""
    _emitted: dict[str, list[str]] = field(default_factory=dict)
    """Spikes, float32 `[N, y, x, channel]` per step, by layer."""
    _bytes: dict[str, list[str]] = field(default_factory=dict)
    """The same as uint8, each `_shift` larger."""

    def spikes(self, source: str) -> str:
        if source not in self.trains:
            self.trains[source] = self.graph.batched(f"{source}/z", self._emitted[source])
        return self.trains[source]

    def probe(self, name: str, source: str) -> None:
        self.graph.add("Transpose", name, self.spikes(source), perm=TO_CHANNELS_FIRST)

    def bias(self, bias: np.ndarray) -> np.ndarray:
        return bias[None].transpose(TO_CHANNELS_LAST)

    def neurons(self, layer: Layer, currents: list[str]) -> None:
        neurons = self._if_neurons if self.snn.method.name == "qcfs" else self._signed_if_neurons
        neurons(layer, currents)

    def _if_neurons(self, layer: Layer, currents: list[str]) -> None:
        """p = v + I;  z = the byte that clip(p, 0, 1) is cut to;  v' = p - z  (`if_step`)."""
        graph = self.graph
        v, v_out = graph.state("v", layer.name, _channels_last(layer.shape), INITIAL_MEMBRANE)
        self._emitted[layer.name], self._bytes[layer.name] = [], []
        for name, last, current in steps_of(layer, currents):
            p = graph.add("Add", f"{name}/p", v, current)
            clipped = graph.add("Clip", f"{name}/clipped", p, graph.scalar(0), graph.scalar(1))
            byte = graph.add("Cast", f"{name}/byte", clipped, to=TensorProto.UINT8)
            z = graph.add("Cast", f"{name}/z", byte, to=TensorProto.FLOAT)
            v = graph.add("Sub", v_out if last else f"{name}/v", p, z)
            self._emitted[layer.name].append(z)
            self._bytes[layer.name].append(byte)

    def _signed_if_neurons(self, layer: Layer, currents: list[str]) -> None:
        """s' = s + I;  z = clip(clip(floor(s'), 0, levels) - n, -1, 1);  n' = n + z.

        That is `signed_if_step` with s = v + n, which only the current changes: one pass over the neurons less.
        """
        graph, levels = self.graph, self.snn.method.levels
        s, s_out = graph.state("s", layer.name, _channels_last(layer.shape), INITIAL_MEMBRANE)
        n, n_out = graph.state("n", layer.name, _channels_last(layer.shape), 0.0)
        self._emitted[layer.name] = []
        for name, last, current in steps_of(layer, currents):
            s = graph.add("Add", s_out if last else f"{name}/s", s, current)
            floor = graph.add("Floor", f"{name}/floor", s)
            wanted = graph.add("Clip", f"{name}/wanted", floor, graph.scalar(0), graph.scalar(levels))
            change = graph.add("Sub", f"{name}/change", wanted, n)
            z = graph.add("Clip", f"{name}/z", change, graph.scalar(-1), graph.scalar(1))
            n = graph.add("Add", n_out if last else f"{name}/n", n, z)
            self._emitted[layer.name].append(z)

    def pool(self, pool: Pool) -> None:
        """Sum over windows, first along x and then along y."""
        graph, source, (_, height, width) = self.graph, self.spikes(pool.source), self.snn.shape_of(pool.source)
        if pool.kernel == (height, width) and pool.padding == (0, 0):
            total = graph.add("ReduceSum", f"{pool.name}/sum", source, graph.integers(Y, X), keepdims=1)
        else:
            total = self._padded(f"{pool.name}/padded", source, pool.padding, graph.scalar(0))
            for axis, kernel, stride, size in (
                (X, pool.kernel[1], pool.stride[1], pool.shape[2]),
                (Y, pool.kernel[0], pool.stride[0], pool.shape[1]),
            ):
                first, *others = self._shifted(f"{pool.name}/{'_yx'[axis]}", total, axis, kernel, stride, size)
                total = first
                for index, other in enumerate(others, start=1):
                    total = graph.add("Add", f"{pool.name}/{'_yx'[axis]}.sum.{index}", total, other)
        self.trains[pool.name] = total

    def current(self, name: str, synapse: Synapse, bias: np.ndarray | None) -> str:
        """Add the current of a synapse; what is not in int8 is a convolution between two changes of the layout."""
        graph = self.graph
        if synapse.is_identity:
            gain, source = synapse.weight.astype(np.float32), self.spikes(synapse.source)
            return source if gain == 1.0 else graph.add("Mul", name, source, graph.constant(f"{name}/gain", gain))
        extra = [] if bias is None else [graph.constant(f"{name}/b", bias.reshape(-1).astype(np.float32))]
        if synapse.unit is None or synapse.groups > 1 or self._largest_byte(synapse.source) > LARGEST_BYTE:
            source = self.spikes(synapse.source)
            if synapse.source != INPUT:
                source = graph.once("Transpose", f"{source}/channels_first", source, perm=TO_CHANNELS_FIRST)
            weight = float_weight(graph, name, synapse)
            current = convolution(graph, f"{name}/conv", synapse, source, weight, *extra)
            return graph.add("Transpose", name, current, perm=TO_CHANNELS_LAST)
        # [out, in, y, x] -> [y * x * in, out], the order of `_neighbourhoods`
        integers = synapse.integers().transpose(2, 3, 1, 0).reshape(-1, synapse.weight.shape[0])
        operands = [
            self._neighbourhoods(synapse),
            graph.constant(f"{name}/w.int8", integers),
            graph.scalar(1),
            graph.constant(f"{name}/unit", synapse.unit.astype(np.float32)),
            self._zero(synapse.source),
            "",
        ]
        return graph.add("MatMulIntegerToFloat", name, *operands, *extra, domain=MICROSOFT)

    def _neighbourhoods(self, synapse: Synapse) -> str:
        """uint8 `[batch, y, x, kernel y * kernel x * channel]`: what each output position sees."""
        graph, source = self.graph, synapse.source
        (ky, kx), (sy, sx) = synapse.weight.shape[2:], synapse.stride
        _, height, width = self.snn.shape_of(source)
        py, px = synapse.padding
        size_y, size_x = out_size(height, ky, sy, py), out_size(width, kx, sx, px)
        name = f"{source}/{ky}x{kx}_{sy}{sx}_{py}{px}"
        if graph.has(name):
            return name
        seen = self._padded(f"{source}/padded_{py}{px}", self._as_bytes(source), synapse.padding, self._zero(source))
        for axis, kernel, stride, size in ((X, kx, sx, size_x), (Y, ky, sy, size_y)):
            parts = self._shifted(f"{name}/{'_yx'[axis]}", seen, axis, kernel, stride, size)
            seen = graph.add("Concat", f"{name}/{'_yx'[axis]}", *parts, axis=CHANNEL) if len(parts) > 1 else parts[0]
        return graph.add("Identity", name, seen)

    def _as_bytes(self, source: str) -> str:
        """uint8 `[batch, y, x, channel]`: spikes, or sums of them, from `_shift` upwards."""
        graph, name = self.graph, f"{source}/bytes"
        if graph.has(name):
            return name
        if source in self._bytes:
            return graph.batched(name, self._bytes[source])
        values, shift = self.spikes(source), self._shift(source)
        if shift:
            values = graph.add("Add", f"{source}/shifted", values, graph.scalar(shift))
        return graph.add("Cast", name, values, to=TensorProto.UINT8)

    def _shift(self, source: str) -> int:
        """What makes a byte of the most negative value that a source emits."""
        return 0 if self.snn.method.name == "qcfs" else self.snn.largest_values()[source]

    def _largest_byte(self, source: str) -> int:
        return self._shift(source) + self.snn.largest_values()[source]

    def _zero(self, source: str) -> str:
        shift = self._shift(source)
        return self.graph.constant(f"const/{shift}_uint8", np.array(shift, np.uint8))

    def _padded(self, name: str, source: str, padding: tuple[int, int], zero: str) -> str:
        py, px = padding
        if not (py or px):
            return source
        return self.graph.once("Pad", name, source, self.graph.integers(0, py, px, 0, 0, py, px, 0), zero)

    def _shifted(self, name: str, source: str, axis: int, kernel: int, stride: int, size: int) -> list[str]:
        """The `kernel` views, shifted by one, that a window of this stride has of an axis; each of `size`."""
        if kernel == stride == 1:
            return [source]
        graph = self.graph
        along, every = graph.integers(axis), graph.integers(stride)
        return [
            graph.add(
                "Slice",
                f"{name}.{first}",
                source,
                graph.integers(first),
                graph.integers(first + (size - 1) * stride + 1),
                along,
                every,
            )
            for first in range(kernel)
        ]


def _channels_last(shape: Shape) -> tuple[int, int, int]:
    channels, height, width = shape
    return height, width, channels
