"""A graph in ONNX Runtime's blocks, under construction: sums that convolutions add up, and how each tensor lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .onnxruntime_blocks import BLOCKS, FUSED, Shape, lies_in_blocks, map_in_blocks

if TYPE_CHECKING:
    import onnx


class Convolution(NamedTuple):
    source: str
    weight: str
    bias: np.ndarray | None
    """`[channel]`"""
    attributes: dict[str, Any]


class Gated(NamedTuple):
    """A bias `[channel]` times a gate `[N, 1, 1, 1]`."""

    bias: np.ndarray
    gate: str


class Sum(NamedTuple):
    """A tensor `[N, channel, y, x]`, as what it is the sum of."""

    shape: Shape
    tensors: tuple[str, ...] = ()
    convolutions: tuple[Convolution, ...] = ()
    gated: tuple[Gated, ...] = ()
    constants: tuple[np.ndarray, ...] = ()
    """`[channel, y, x]` or `[channel, 1, 1]`"""

    def plus(self, other: Sum) -> Sum:
        return Sum(
            self.shape,
            self.tensors + other.tensors,
            self.convolutions + other.convolutions,
            self.gated + other.gated,
            self.constants + other.constants,
        )


class BlockedGraph:
    """Nodes and constants of a graph under construction. A tensor's shape says how it lies (`lies_in_blocks`)."""

    def __init__(self, block: int, batch: int) -> None:
        self.block, self.batch = block, batch
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.made: set[str] = set()
        self._vectors: dict[str, list[tuple[str, np.ndarray]]] = {}
        """By gate: names and values of the biases that it is multiplied with."""

    def emit(self, op: str, name: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node and return the tensor it makes, which bears the node's name."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [name], name=name, domain=domain, **attributes))
        self.made.add(name)
        return name

    def copy(self, node: onnx.NodeProto, inputs: list[str]) -> onnx.NodeProto:
        """Add a node as it stands in another graph, with other inputs."""
        import onnx

        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        copied.input[:] = inputs
        self.nodes.append(copied)
        self.made.update(copied.output)
        return copied

    def split(self, name: str, tensor: str, parts: list[str]) -> None:
        """Cut a tensor into equal parts along its first axis."""
        from onnx import helper

        self.nodes.append(helper.make_node("Split", [tensor], parts, name=f"{name}/split", axis=0))
        self.made.update(parts)

    def convolution(self, name: str, shape: Shape, of: Convolution, *, inside: bool) -> Sum:
        """A convolution as a term; one that cannot run `inside` the layout of its shape is computed outside of it."""
        if inside or not self.blocked(shape):
            return Sum(shape, convolutions=(of,))
        bias = [] if of.bias is None else [self.constant(f"{name}/bias", of.bias)]
        self.emit("FusedConv", f"{name}/outside", of.source, of.weight, *bias, domain=FUSED, **of.attributes)
        return Sum(shape, (self.emit("ReorderInput", name, f"{name}/outside", domain=BLOCKS),))

    def constant(self, name: str, values: np.ndarray) -> str:
        self.constants[name] = values
        return name

    def map(self, name: str, values: np.ndarray, shape: Shape) -> str:
        """A constant `[1, channel, y, x]`, laid out as its shape says."""
        values = np.broadcast_to(values, shape).astype(np.float32)
        return self.constant(name, (map_in_blocks(values, self.block) if self.blocked(shape) else values)[None])

    def blocked(self, shape: Shape) -> bool:
        return lies_in_blocks(shape, self.block)

    def laid(self, name: str, shape: Shape, *, blocked: bool) -> str:
        """A tensor in this layout, changed once where it lies in the other one."""
        if self.blocked(shape) == blocked or shape[1:] == (1, 1):  # of one position, both are the same
            return name
        other = f"{name}/{'blocked' if blocked else 'plain'}"
        if other not in self.made:
            if blocked:
                self.emit("ReorderInput", other, name, domain=BLOCKS)
            else:
                self.emit("ReorderOutput", other, name, domain=BLOCKS, channels=shape[0])
        return other

    def added(self, name: str, total: Sum) -> str:
        """Add up; return the tensor, which is called `name` unless there was nothing to add.

        What is a whole tensor comes first and the convolutions add themselves to it, in place where it is not a state.
        """
        tensors, maps, biases = list(total.tensors), list(total.constants), list(total.gated)
        vectors = [one.bias for one in total.convolutions if one.bias is not None]
        if total.convolutions:
            vectors += [values.reshape(-1) for values in maps if values.shape[1:] == (1, 1)]
            maps = [values for values in maps if values.shape[1:] != (1, 1)]
        bias = ""
        if vectors:
            bias = self.constant(f"{name}/bias", sum(vectors[1:], start=vectors[0]).astype(np.float32))
        elif total.convolutions and self.batch == 1 and biases:
            first, bias = biases.pop(0), f"{name}/bias"
            self._vectors.setdefault(first.gate, []).append((bias, first.bias))
        for index, (values, gate) in enumerate(biases):
            every = self.map(f"{name}/bias.{index}", values.reshape(-1, 1, 1), total.shape)
            tensors.append(self.emit("Mul", f"{name}/gated.{index}", every, gate))
        left = len(total.convolutions) + max(len(tensors) - 1, 0) + bool(maps)

        def following() -> str:
            nonlocal left
            left -= 1
            return f"{name}/sum.{left}" if left else name

        so_far = tensors[0] if tensors else ""
        for tensor in tensors[1:]:
            so_far = self.emit("Add", following(), so_far, tensor)
        constant = self.map(f"{name}/map", sum(maps[1:], start=maps[0]), total.shape) if maps else ""
        if constant and so_far:
            so_far, constant = self.emit("Add", following(), so_far, constant), ""
        elif not total.convolutions:
            return so_far or constant
        domain, op = (BLOCKS, "Conv") if self.blocked(total.shape) else (FUSED, "FusedConv")
        for source, weight, _, attributes in total.convolutions:
            inputs = [source, weight] + ([bias, so_far] if so_far else [bias] if bias else [])
            so_far, bias = self.emit(op, following(), *inputs, domain=domain, **attributes), ""
        return self.emit("Add", following(), so_far, constant) if constant else so_far

    def graph(self, model: onnx.ModelProto) -> onnx.GraphProto:
        """The graph, with the inputs and outputs of `model`."""
        import onnx
        from onnx import numpy_helper

        graph = onnx.GraphProto(name=model.graph.name, input=model.graph.input, output=model.graph.output)
        for node in self.nodes:
            graph.node.append(node)
            graph.node.extend(self._gated_vectors(node.output[0]))
        read = {name for node in graph.node for name in node.input}
        for name, values in self.constants.items():
            if name in read:
                graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return graph

    def _gated_vectors(self, gate: str) -> list[onnx.NodeProto]:
        """All biases of a gate, for one input: multiplied at once."""
        from onnx import helper

        if gate not in self._vectors:
            return []
        names, vectors = zip(*self._vectors[gate], strict=True)
        one = self.constant(f"{gate}/one", np.array([1], np.int64))
        sizes = self.constant(f"{gate}/sizes", np.array([len(vector) for vector in vectors], np.int64))
        biases = self.constant(f"{gate}/biases", np.concatenate(vectors).astype(np.float32))
        return [
            helper.make_node("Reshape", [gate, one], [f"{gate}/number"]),
            helper.make_node("Mul", [biases, f"{gate}/number"], [f"{gate}/gated"]),
            helper.make_node("Split", [f"{gate}/gated", sizes], names, axis=0),
        ]


def windows(source: Shape, channels: int, kernel: Sequence[int], attributes: Mapping[str, Any]) -> Shape:
    """The shape of what windows see that are moved over a source."""
    pads, strides = attributes.get("pads", [0] * 4), attributes.get("strides", [1, 1])
    height, width = (
        (source[1 + axis] + pads[axis] + pads[2 + axis] - kernel[axis]) // strides[axis] + 1 for axis in (0, 1)
    )
    return channels, height, width
