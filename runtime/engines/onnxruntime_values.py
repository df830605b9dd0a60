"""What each tensor of an exported graph has become while the graph is rewritten for ONNX Runtime's CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..manifest import Manifest
from .onnxruntime_blocks import Shape
from .onnxruntime_neurons import signed_neurons
from .onnxruntime_sums import BlockedGraph, Gated, Sum

if TYPE_CHECKING:
    import onnx

Value = Sum | list[Sum]
"""A tensor of neurons, or one `[N, …]` for each step of the call where the exported graph has joined them."""


class UnknownGraphError(ValueError):
    """The graph is not like those that this toolchain exports, so nothing is known to be safe."""


class Values:
    """Sums wait in `values` until something reads them; what is in no table is a tensor as it was exported."""

    def __init__(self, model: onnx.ModelProto, manifest: Manifest, graph: BlockedGraph) -> None:
        from onnx import numpy_helper

        self.model, self.graph = model, graph
        self.constants = graph.constants
        self.constants |= {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.outputs = {end.name for end in model.graph.output}
        self.readers = {name: node for node in model.graph.node for name in node.input}
        """The last of them."""
        self.uses = Counter([*(name for node in model.graph.node for name in node.input), *self.outputs])
        neurons = {} if manifest.method.name == "qcfs" else signed_neurons(model.graph, manifest, self.constants)
        if neurons is None:
            raise UnknownGraphError("neurons")
        self.neurons = neurons
        self.images = {manifest.input.name}
        """The image, and what becomes of it before the first convolution: plain, `[N or K * N, channel, y, x]`."""
        self.image_shape: Shape = manifest.input.preprocessing.shape
        self.biases: dict[str, Gated] = {}
        self.done: set[str] = set()
        """What nodes make whose work is done otherwise."""
        self.values: dict[str, Value] = {
            state.input: Sum(state.shape[1:], (state.input,))  # type: ignore[arg-type]
            for state in manifest.states
            if is_map(state.shape)
        }

    def define(self, name: str, value: Value) -> None:
        """Add up now what is read more than once, or comes out."""
        self.values[name] = value
        if self.uses[name] > 1 or name in self.outputs:
            self.value(name)

    def value(self, name: str) -> Value:
        """A value, added up: of one tensor, or one per step."""
        # The membrane potential of QFFS before the spikes, with n, is the next state.
        called = self.neurons[name].v if name in self.neurons else name
        value = self.values[name]
        if isinstance(value, list):
            steps = [Sum(one.shape, (self.graph.added(f"{called}.{i}", one),)) for i, one in enumerate(value)]
            self.values[name] = steps
            return steps
        if name in self.outputs and len(value.tensors) == 1 and value.tensors != (name,):
            raise UnknownGraphError(name)
        self.values[name] = done = Sum(value.shape, (self.graph.added(called, value),))
        return done

    def tensor(self, one: Sum, *, blocked: bool | None = None) -> str:
        """The tensor of what is added up; in this layout, or in its own."""
        (name,) = one.tensors
        return name if blocked is None else self.graph.laid(name, one.shape, blocked=blocked)

    def plain(self, name: str) -> str:
        """A tensor as the exported graph has it."""
        if name in self.biases:
            raise UnknownGraphError(name)
        if name not in self.values:
            return name
        value = self.value(name)
        if isinstance(value, Sum):
            return self.tensor(value, blocked=False)
        joined = f"{name}/joined"
        if joined not in self.graph.made:
            self.graph.emit("Concat", joined, *(self.tensor(one, blocked=False) for one in value), axis=0)
        return joined

    def term(self, name: str, shape: Shape) -> Value:
        """What a tensor adds to a sum of this shape."""
        if name in self.values:
            return self.values[name]
        if name in self.biases:
            return Sum(shape, gated=(self.biases[name],))
        if name in self.constants and self.constants[name].ndim == 4:
            (values,) = self.constants[name]
            per_channel = values.shape[1:] == (1, 1)
            return Sum(shape, constants=(np.broadcast_to(values, (shape[0], 1, 1) if per_channel else shape),))
        raise UnknownGraphError(name)

    def per_step(self, name: str, values: list[Value | None], make: Callable[[str, list[Sum]], Sum]) -> Value:
        """Do for each step what the exported graph does for all at once; None is what is no tensor of neurons."""
        steps = max((len(value) for value in values if isinstance(value, list)), default=0)
        if not steps:
            return make(name, [value for value in values if isinstance(value, Sum)])
        cut = [
            value if isinstance(value, list) else self.cut(f"{name}/{i}", value, steps)
            for i, value in enumerate(values)
            if value is not None
        ]
        return [make(f"{name}.{step}", list(parts)) for step, parts in enumerate(zip(*cut, strict=True))]

    def cut(self, name: str, value: Sum, steps: int) -> list[Sum]:
        """The steps of what was computed for all of them at once."""
        parts = [f"{name}.{step}" for step in range(steps)]
        self.graph.split(name, self.graph.added(name, value), parts)
        return [Sum(value.shape, (part,)) for part in parts]

    def copy(self, node: onnx.NodeProto) -> None:
        copied = self.graph.copy(node, [self.plain(name) for name in node.input])
        if self.images.intersection(node.input):
            self.images.update(copied.output)


def is_map(shape: tuple[Any, ...]) -> bool:
    """Whether a state is one of neurons: not the counter of steps, not the sum of the read-out."""
    return len(shape) == 4 and shape[1:] != (1, 1, 1)


def shape_of(value: Value) -> Shape:
    return (value[0] if isinstance(value, list) else value).shape
