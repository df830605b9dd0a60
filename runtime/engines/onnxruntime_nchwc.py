"""An exported graph, rewritten for ONNX Runtime's CPU: what lies between convolutions stays in their layout."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..manifest import Manifest
from ..onnx_file import attributes_of
from .onnxruntime_blocks import BLOCKS, SHARP, in_domains, weight_in_blocks
from .onnxruntime_neurons import SignedNeurons
from .onnxruntime_sums import BlockedGraph, Convolution, Gated, Sum, windows
from .onnxruntime_values import UnknownGraphError, Values, is_map, shape_of

if TYPE_CHECKING:
    import onnx

POSITIONS, NEURONS = [2, 3], [1, 2, 3]
"""Axes."""


def model_in_blocks(model: onnx.ModelProto, manifest: Manifest, batch: int, block: int) -> onnx.ModelProto | None:
    """Rewrite a graph of one K so that it computes the same bits in less time; None where that is not known to pay.

    - Convolutions, states and all between them lie in blocks of channels, without a change of layout around each
      convolution. The host sees no difference: it only fills states, or rows of them, with one number.
    - A convolution adds the membrane, the other convolutions and the biases of its neurons by itself.
    - A spike is one operation (`SHARP`); QFFS keeps s = v + n in the place of v (`signed_neurons`).
    - The steps of a call run one after the other, layer by layer: nothing is joined and cut apart, and the weights are
      still in the cache for the second step. For that, nodes have to run in the order in which they stand.
    - The weights of an int8 network are multiplied out: no convolution here is faster with integers.

    Sums are exact in any order (contract.md, Exactness), so no bit depends on any of this (docs/adr/0012-nchwc.md).
    `batch` is the engine's. A network is left as it is in half precision, in the form matmul, where the channels of a
    layer do not fill blocks, and where it is built in another way than this toolchain's.
    """
    shapes = [state.shape[1:] for state in manifest.states if is_map(state.shape)]
    numerics = manifest.numerics
    sharp = all(2.0**grid.exponent <= SHARP for grid in numerics.grids[:-1])  # the last one is the read-out's
    fills = all(int(shape[0]) % block == 0 for shape in shapes)
    if numerics.form != "conv" or numerics.precision == "fp16" or not sharp or not fills:
        return None
    try:
        return _Rewriting(model, manifest, BlockedGraph(block, batch)).run()
    # what is looked for is not there, or not where it should be
    except (UnknownGraphError, LookupError, ValueError, ArithmeticError):
        return None


class _Rewriting(Values):
    """Walks through the nodes once: one handler per operator that a tensor of neurons goes through."""

    def __init__(self, model: onnx.ModelProto, manifest: Manifest, graph: BlockedGraph) -> None:
        super().__init__(model, manifest, graph)
        self.handlers: dict[str, Callable[[onnx.NodeProto], None]] = {
            "Add": self._add,
            "AveragePool": self._average_pool,
            "Clip": self._elementwise,
            "Concat": self._concat,
            "Conv": self._convolution,
            "DequantizeLinear": self._dequantize,
            "Floor": self._floor,
            "Mul": self._multiply,
            "QuantizeLinear": self._rename,
            "ReduceL1": self._reduce,
            "ReduceSum": self._reduce,
            "Split": self._split,
            "Sub": self._elementwise,
        }

    def run(self) -> onnx.ModelProto:
        for node in self.model.graph.node:
            if node.output[0] not in self.done:
                self.handlers.get(node.op_type, self.copy)(node)
        opset = self.model.opset_import[0].version
        return in_domains(self.graph.graph(self.model), ir_version=self.model.ir_version, opset=opset)

    def _add(self, node: onnx.NodeProto) -> None:
        known = [self.values[name] for name in node.input if name in self.values]
        if not known:
            return self.copy(node)
        shape = shape_of(known[0])
        total = [self.term(name, shape) for name in node.input]
        if any(shape_of(value) != shape for value in total):
            raise UnknownGraphError(node.output[0])
        constant = [value for value in total if isinstance(value, Sum) and not value.tensors + value.convolutions]
        moving = [value for value in total if not any(value is one for one in constant)]

        def make(_: str, terms: list[Sum]) -> Sum:
            return functools.reduce(Sum.plus, [*terms, *constant])

        return self.define(node.output[0], self.per_step(node.output[0], [*moving], make))

    def _elementwise(self, node: onnx.NodeProto) -> None:
        values = [self.value(name) if name in self.values else None for name in node.input]
        shapes = {shape_of(value) for value in values if value is not None}
        if not shapes:
            return self.copy(node)
        if len(shapes) > 1 or any(self.constants[n].size > 1 for n in node.input if n in self.constants):
            raise UnknownGraphError(node.output[0])

        def make(made: str, parts: list[Sum]) -> Sum:
            rest = iter(parts)
            inputs = [
                n if value is None else self.tensor(next(rest)) for n, value in zip(node.input, values, strict=True)
            ]
            return Sum(parts[0].shape, (self.graph.emit(node.op_type, made, *inputs, **attributes_of(node)),))

        self.values[node.output[0]] = self.per_step(node.output[0], values, make)

    def _multiply(self, node: onnx.NodeProto) -> None:
        """Also a gate times a bias, which is left to the sum that it is a part of, and spikes times their gain."""
        constants = [name for name in node.input if name in self.constants]
        others = [name for name in node.input if name not in constants]
        if len(constants) != 1 or len(others) != 1:
            return self._elementwise(node)
        factor, (other,), name = self.constants[constants[0]], others, node.output[0]
        if factor.size == 1 and other in self.values and self.graph.blocked(shape_of(self.values[other])):
            return self._gain(name, other, factor.item())
        if factor.size == 1 or other in self.values or other in self.images:
            return self._elementwise(node)
        (values,) = factor
        if values.shape[1:] == (1, 1):
            self.biases[name] = Gated(values.reshape(-1), other)
            return None
        every = self.graph.map(f"{name}/map", values, values.shape)
        return self.define(name, Sum(values.shape, (self.graph.emit("Mul", name, every, other),)))

    def _gain(self, name: str, spikes: str, gain: float) -> None:
        """A convolution of one weight for each channel: it multiplies, and adds itself to a sum, in one pass."""
        source = self.value(spikes)
        shape = shape_of(source)
        weight = np.full((shape[0], 1, 1, 1), gain, np.float32)
        blocks = self.graph.constant(f"{name}/blocks", weight_in_blocks(weight, self.graph.block, planes=True))
        attributes = {"group": shape[0], "kernel_shape": [1, 1]}

        def make(_: str, parts: list[Sum]) -> Sum:
            return Sum(shape, convolutions=(Convolution(self.tensor(parts[0]), blocks, None, attributes),))

        self.define(name, self.per_step(name, [source], make))

    def _floor(self, node: onnx.NodeProto) -> None:
        """Also what follows it in a neuron."""
        p, floor = node.input[0], node.output[0]
        if p not in self.values:
            return self.copy(node)
        after = self.readers[floor]
        limits = [float(self.constants[name]) for name in after.input[1:]] if after.op_type == "Clip" else []
        if p in self.neurons:
            return self._signed_spikes(floor, self.neurons[p])
        if self.uses[floor] > 1 or limits != [0.0, 1.0]:
            return self._elementwise(node)
        value, z = self.value(p), after.output[0]

        def make(name: str, parts: list[Sum]) -> Sum:
            tensor = self.tensor(parts[0])
            return Sum(parts[0].shape, (self.graph.emit("HardSigmoid", name, tensor, alpha=SHARP, beta=1 - SHARP),))

        self.values[z] = self.per_step(z, [value], make)
        return self.done.add(z)

    def _signed_spikes(self, name: str, of: SignedNeurons) -> None:
        """See `signed_neurons`."""
        total, before = self.value(of.p), self.value(of.n_before)
        if isinstance(total, list) or isinstance(before, list) or total.tensors != (of.v,):
            raise UnknownGraphError(of.p)
        n, emit = self.tensor(before), self.graph.emit
        wanted = emit("Clip", f"{name}/wanted", emit("Floor", name, of.v), of.zero, of.levels)
        change = emit("Sub", f"{name}/change", wanted, n)
        emit("Clip", of.z, change, of.minus_one, of.one)
        emit("Add", of.n, n, of.z)
        self.values |= {made: Sum(total.shape, (made,)) for made in (of.v, of.z, of.n)}
        self.done.update((*of.inner, of.v, of.z, of.n))

    def _concat(self, node: onnx.NodeProto) -> None:
        steps = [self.values.get(name) for name in node.input]
        if not all(isinstance(value, Sum) for value in steps):
            return self.copy(node)
        return self.define(node.output[0], steps)  # type: ignore[arg-type]

    def _split(self, node: onnx.NodeProto) -> None:
        if node.input[0] not in self.values:
            return self.copy(node)
        steps = self.values[node.input[0]]
        if isinstance(steps, Sum):
            steps = self.cut(node.name, steps, len(node.output))
        for name, one in zip(node.output, steps, strict=True):
            self.define(name, one)
        return None

    def _rename(self, node: onnx.NodeProto) -> None:
        """What (de)quantises whole numbers with a scale of 1."""
        if node.input[0] not in self.values:
            return self.copy(node)
        if self.constants[node.input[1]] != 1 or self.constants[node.input[2]] != 0:
            raise UnknownGraphError(node.output[0])
        self.values[node.output[0]] = self.value(node.input[0])
        return None

    def _dequantize(self, node: onnx.NodeProto) -> None:
        if node.input[0] not in self.constants:
            return self._rename(node)
        integers, unit = (self.constants[name].astype(np.float32) for name in node.input[:2])
        self.constants[node.output[0]] = integers * unit.reshape(-1, *[1] * (integers.ndim - 1))
        return None

    def _convolution(self, node: onnx.NodeProto) -> None:
        name, block = node.input[1], self.graph.block
        if name not in self.constants or not (node.input[0] in self.values or node.input[0] in self.images):
            raise UnknownGraphError(node.output[0])
        weight, attributes = self.constants[name], attributes_of(node)
        bias = self.constants[node.input[2]] if len(node.input) > 2 else None
        of_image = node.input[0] in self.images
        source = Sum(self.image_shape, (node.input[0],)) if of_image else self.value(node.input[0])
        channels, into, groups = *weight.shape[:2], attributes.get("group", 1)
        shape = windows(shape_of(source), channels, weight.shape[2:], attributes)
        planes = of_image if groups == 1 else into == 1 and channels == groups and not of_image
        fits = planes if groups > 1 else into < block if of_image else into % block == 0
        inside = self.graph.blocked(shape) and fits
        if inside:
            name = self.graph.constant(f"{name}/blocks", weight_in_blocks(weight, block, planes=planes))

        def make(made: str, parts: list[Sum]) -> Sum:
            tensor = parts[0].tensors[0] if of_image else self.tensor(parts[0], blocked=inside)
            return self.graph.convolution(made, shape, Convolution(tensor, name, bias, attributes), inside=inside)

        self.define(node.output[0], self.per_step(node.output[0], [source], make))

    def _average_pool(self, node: onnx.NodeProto) -> None:
        if node.input[0] not in self.values:
            raise UnknownGraphError(node.output[0])
        value, attributes = self.value(node.input[0]), attributes_of(node)
        shape = windows(shape_of(value), shape_of(value)[0], attributes["kernel_shape"], attributes)
        blocked = self.graph.blocked(shape)

        def make(name: str, parts: list[Sum]) -> Sum:
            tensor = self.tensor(parts[0], blocked=blocked)
            pool = self.graph.emit("AveragePool", name, tensor, domain=BLOCKS if blocked else "", **attributes)
            return Sum(shape, (pool,))

        self.values[node.output[0]] = self.per_step(node.output[0], [value], make)

    def _reduce(self, node: onnx.NodeProto) -> None:
        """Sum over positions, for a read-out, or over a whole layer, for its count of spikes."""
        source, name = node.input[0], node.output[0]
        attributes = attributes_of(node)
        axes = attributes["axes"] if "axes" in attributes else self.constants[node.input[1]].tolist()
        if source not in self.values or axes not in (POSITIONS, NEURONS):
            return self.copy(node)
        keep = attributes["keepdims"]
        over = self.graph.constant(f"{name}/axes", np.array(axes, np.int64))

        def make(made: str, parts: list[Sum]) -> Sum:
            tensor = self.tensor(parts[0], blocked=False if axes == POSITIONS else None)
            if node.op_type == "ReduceL1":  # of Abs and ReduceSum, each is several times as fast
                tensor = self.graph.emit("Abs", f"{made}/abs", tensor)
            return Sum((parts[0].shape[0], 1, 1), (self.graph.emit("ReduceSum", made, tensor, over, keepdims=keep),))

        total = self.per_step(name, [self.value(source)], make)
        if axes == POSITIONS and keep:
            self.values[name] = total
        elif isinstance(total, list):
            self.graph.emit("Concat", name, *(self.tensor(one) for one in total), axis=0)
        return None
