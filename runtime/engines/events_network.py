"""The layers of an exported graph: read back from its nodes, for an engine that has kernels of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DynamicConfidenceError
from ..manifest import Manifest

if TYPE_CHECKING:
    import onnx

MOST_LEVELS = 255
"""Spikes are counted in bytes."""
Pair = tuple[int, int]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Gain:
    """An identity shortcut: `source` times one number."""

    source: str
    gain: float


@dataclass(frozen=True)
class Convolution:
    source: str
    weight: np.ndarray
    """`[out, in / groups, y, x]`, int8 in units of `unit`, or float32."""
    unit: np.ndarray | None
    """float32 `[out]`; None with float32 weights."""
    stride: Pair
    padding: Pair
    groups: int


@dataclass(frozen=True)
class Layer:
    """Neurons, or the read-out: what flows into them in a time step."""

    name: str
    shape: Shape
    synapses: tuple[Gain | Convolution, ...]
    bias: np.ndarray
    """float32 `[channel, 1, 1]` or `[channel, y, x]`; QFFS: in the injection steps only."""


@dataclass(frozen=True)
class Pool:
    """Sums of `source` over windows."""

    name: str
    shape: Shape
    source: str
    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True)
class Network:
    input: str
    input_shape: Shape
    nodes: tuple[Layer | Pool, ...]
    """In topological order."""
    readout: Layer
    levels: int
    """QFFS: of the quantiser; 0 with QCFS."""


def network_from_onnx(model: onnx.ModelProto, manifest: Manifest) -> Network:
    """Read the network out of a graph of the form conv: what flows into its membranes in the first step of a call.

    Raises: DynamicConfidenceError for a node that no such graph has.
    """
    return _Reader(model, manifest).network()


class _Reader:
    """Follows every current back to its sources. Tensors go by their names, and pools by those of what they make."""

    def __init__(self, model: onnx.ModelProto, manifest: Manifest) -> None:
        from onnx import numpy_helper

        self._manifest = manifest
        self._maker = {tensor: node for node in model.graph.node for tensor in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for tensor in node.input:
                self._readers.setdefault(tensor, []).append(node)
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._signed = manifest.method.name == "qffs"
        self._shapes: dict[str, Shape] = {manifest.input.name: manifest.input.preprocessing.shape}
        self._sources: dict[str, str] = {}
        """Tensor of a layer's spikes -> the layer."""
        self._nodes: list[Layer | Pool] = []

    def network(self) -> Network:
        manifest = self._manifest
        for state in manifest.states:
            kind, _, name = state.input.partition("_in.")
            if kind == "v":
                channels, height, width = (int(dim) for dim in state.shape[1:])
                p = self._only_reader(state.input, "Add")
                layer = self._layer(name, (channels, height, width), self._other(p, state.input))
                self._nodes.append(layer)
                self._shapes[name] = layer.shape
                self._sources[self._spikes(name, p.output[0])] = name
        add = self._only_reader("acc_in", "Add")
        flat = self._made(self._other(add, "acc_in"), "Flatten")
        readout = self._layer("acc", (len(manifest.class_names), 1, 1), flat.input[0])
        levels = manifest.method.levels if self._signed else 0
        if levels > MOST_LEVELS:
            raise self._unknown(f"method.levels {levels}, at most {MOST_LEVELS} are counted")
        return Network(manifest.input.name, self._shapes[manifest.input.name], tuple(self._nodes), readout, levels)

    def _spikes(self, layer: str, p: str) -> str:
        """The tensor of a layer's first spikes: clip(floor(p), 0, 1), or with QFFS n' - n."""
        floor = self._only_reader(p, "Floor")
        z = self._only_reader(floor.output[0], "Clip")
        if self._signed:
            after = self._only_reader(self._only_reader(z.output[0], "Add").output[0], "Clip").output[0]
            z = next((n for n in self._readers[after] if n.op_type == "Sub" and n.input[1] == f"n_in.{layer}"), None)
            if z is None:
                raise self._unknown(f"the spikes of layer '{layer}'")
        return z.output[0]

    def _layer(self, name: str, shape: Shape, current: str) -> Layer:
        synapses: list[Gain | Convolution] = []
        bias = np.zeros((shape[0], 1, 1), np.float32)
        for term in self._terms(current):
            constant = self._constants.get(term)
            if constant is not None:
                bias = bias + self._bias(name, shape, constant.reshape(-1, *constant.shape[-2:]))
                continue
            node = self._maker.get(term)
            if node is not None and node.op_type == "Conv":
                synapse, added = self._convolution(node)
                bias = bias + self._bias(name, shape, added)
            elif node is not None and node.op_type == "Mul" and node.input[1] in self._constants:
                gain = self._constants[node.input[1]]
                if gain.size != 1:
                    raise self._unknown(f"node '{node.name}', a gain of shape {list(gain.shape)}")
                synapse = Gain(self._source(node.input[0]), float(gain.reshape(())))
            else:
                synapse = Gain(self._source(term), 1.0)
            synapses.append(synapse)
        for synapse in synapses:
            if self._shape_made(synapse) != shape:
                raise self._unknown(f"layer '{name}' {list(shape)}, a current of {list(self._shape_made(synapse))}")
        return Layer(name, shape, tuple(synapses), bias)

    def _bias(self, layer: str, shape: Shape, bias: np.ndarray) -> np.ndarray:
        if bias.shape[0] not in (1, shape[0]) or bias.shape[1:] not in ((1, 1), shape[1:]):
            raise self._unknown(f"layer '{layer}' {list(shape)}, a bias of {list(bias.shape)}")
        return bias

    def _shape_made(self, synapse: Gain | Convolution) -> tuple[int, ...]:
        """The shape of a synapse's current; empty where it does not fit its source."""
        channels, *size = self._shapes[synapse.source]
        if isinstance(synapse, Gain):
            return () if synapse.source == self._manifest.input.name else self._shapes[synapse.source]
        outputs, per_group, *kernel = synapse.weight.shape
        groups = synapse.groups
        if (
            per_group * groups != channels
            or outputs % groups
            or (synapse.unit is not None and synapse.unit.shape != (outputs,))
        ):
            return ()
        return outputs, *_out_size(size, kernel, synapse.stride, synapse.padding)

    def _terms(self, current: str) -> list[str]:
        """What is added up to a current; a term that is gated by the injection stands for itself."""
        node = self._maker.get(current)
        if node is None:
            return [current]
        if node.op_type == "Add":
            return [term for tensor in node.input for term in self._terms(tensor)]
        if node.op_type == "Split":
            return self._terms(node.input[0])
        if node.op_type == "Mul" and self._is_gate(node.input[1]):
            return self._terms(node.input[0])
        return [current]

    def _is_gate(self, tensor: str) -> bool:
        """Whether this is clip(injection steps - t, 0, 1), or those of all steps of a call."""
        node = self._maker.get(tensor)
        while node is not None and node.op_type in ("Concat", "Clip"):
            node = self._maker.get(node.input[0])
        return node is not None and node.op_type == "Sub" and node.input[1] == "t_in"

    def _convolution(self, node: onnx.NodeProto) -> tuple[Convolution, np.ndarray]:
        settings = _attributes(node)
        top, left, bottom, right = settings["pads"]
        if (top, left) != (bottom, right) or settings.get("dilations", [1, 1]) != [1, 1]:
            raise self._unknown(f"node '{node.name}', a convolution with pads {[top, left, bottom, right]}")
        weight, unit = self._constants.get(node.input[1]), None
        if weight is None:
            quantised = self._made(node.input[1], "DequantizeLinear")
            weight, unit = (self._constants[name] for name in quantised.input[:2])
        bias = self._constants[node.input[2]] if len(node.input) > 2 else np.zeros(1, np.float32)
        stride = settings["strides"][0], settings["strides"][1]
        source = self._source(node.input[0])
        return Convolution(source, weight, unit, stride, (top, left), settings["group"]), bias.reshape(-1, 1, 1)

    def _source(self, tensor: str) -> str:
        """The image, layer or pool that emits this tensor; a pool is added to the nodes when it is first seen."""
        if tensor in self._sources:
            return self._sources[tensor]
        if tensor == self._manifest.input.name:
            return tensor
        node = self._maker.get(tensor)
        if node is None:
            raise self._unknown(f"tensor '{tensor}'")
        gated = node.op_type == "Mul" and self._is_gate(node.input[1])
        if gated or node.op_type in ("Cast", "Reshape", "QuantizeLinear", "DequantizeLinear", "Concat"):
            found = self._source(node.input[0])
        else:
            found = self._pool(node)
        self._sources[tensor] = found
        return found

    def _pool(self, node: onnx.NodeProto) -> str:
        """A sum over the plane, a mean times its area, or a convolution with ones, one channel at a time."""
        if node.op_type == "ReduceSum" and self._constants[node.input[1]].tolist() == [2, 3]:
            source = self._source(node.input[0])
            kernel, stride, padding = self._shapes[source][1:], (1, 1), (0, 0)
        else:
            windows = self._maker.get(node.input[0]) if node.op_type == "Mul" else node
            settings = {} if windows is None else _attributes(windows)
            if windows is None or not self._sums(node, windows, settings):
                raise self._unknown(f"node '{node.name}' ({node.op_type})")
            source = self._source(windows.input[0])
            kernel, stride = tuple(settings["kernel_shape"]), tuple(settings["strides"])
            padding = settings["pads"][0], settings["pads"][1]
        if source == self._manifest.input.name:
            raise self._unknown(f"node '{node.name}', a pool of the image")
        channels, *size = self._shapes[source]
        height, width = _out_size(size, kernel, stride, padding)
        pool = Pool(node.output[0], (channels, height, width), source, kernel, stride, padding)
        self._nodes.append(pool)
        self._shapes[pool.name] = pool.shape
        return pool.name

    def _sums(self, node: onnx.NodeProto, windows: onnx.NodeProto, settings: dict[str, Any]) -> bool:
        if "pads" not in settings or settings["pads"][:2] != settings["pads"][2:]:
            return False
        factor = self._constants.get(node.input[1]) if len(node.input) > 1 else None
        if windows.op_type == "AveragePool" and node is not windows and factor is not None:
            return bool(settings.get("count_include_pad")) and float(factor) == math.prod(settings["kernel_shape"])
        one_by_one = settings.get("group") == self._shapes[self._source(node.input[0])][0] if node is windows else False
        return windows.op_type == "Conv" and one_by_one and factor is not None and bool((factor == 1.0).all())

    def _made(self, tensor: str, operator: str) -> onnx.NodeProto:
        node = self._maker.get(tensor)
        if node is None or node.op_type != operator:
            raise self._unknown(f"tensor '{tensor}', expected of {operator}")
        return node

    def _only_reader(self, tensor: str, operator: str) -> onnx.NodeProto:
        found = [node for node in self._readers.get(tensor, []) if node.op_type == operator]
        if len(found) != 1:
            raise self._unknown(f"tensor '{tensor}', read by {len(found)} nodes {operator}")
        return found[0]

    def _other(self, node: onnx.NodeProto, tensor: str) -> str:
        return node.input[1] if node.input[0] == tensor else node.input[0]

    def _unknown(self, what: str) -> DynamicConfidenceError:
        return DynamicConfidenceError(
            f"{self._manifest.name}: {what}: not a graph as the event-driven engine knows it. Leave out --backend "
            "events, or export the network again with `dc-export model.pt --precision int8`."
        )


def _out_size(size: Sequence[int], kernel: Sequence[int], stride: Pair, padding: Pair) -> Pair:
    y, x = ((n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, padding, kernel, stride, strict=True))
    return y, x


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
