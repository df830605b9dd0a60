"""Read the layers of an exported graph back from its nodes, for an engine that has kernels of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import DynamicConfidenceError
from ..manifest import Manifest
from ..onnx_file import attributes_of
from .events_network import Convolution, Gain, Layer, Network, Pool, Shape
from .events_neurons import check_states, injection_gates, spike_trains
from .events_windows import made_size, pool_window, stride_and_padding

if TYPE_CHECKING:
    import onnx

MOST_INT8 = 127
MOST_PIXEL = 255


def network_from_onnx(model: onnx.ModelProto, manifest: Manifest) -> Network:
    """Read the network out of a graph of the form conv: what flows into its membranes in the first step of a call.

    Raises: DynamicConfidenceError for anything that the kernels would not compute as the graph does.
    """
    try:
        return _Reader(model, manifest).network()
    except (LookupError, ValueError, TypeError, RecursionError) as error:
        raise DynamicConfidenceError(
            f"{manifest.name}: {error}: not a graph as the event-driven engine knows it. Use --backend onnxruntime, "
            "or export the network again with `dc-export model.pt --precision int8`."
        ) from error


class _Reader:
    """Follows every current back to its sources. Tensors go by their names, and pools by those of what they make.

    All raise LookupError or ValueError for what no such graph has; `network_from_onnx` says what to do.
    """

    def __init__(self, model: onnx.ModelProto, manifest: Manifest) -> None:
        from onnx import numpy_helper

        check_states(manifest)
        self._manifest = manifest
        self._maker = {tensor: node for node in model.graph.node for tensor in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for tensor in node.input:
                self._readers.setdefault(tensor, []).append(node)
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._signed = manifest.method.name == "qffs"
        graph = model.graph, manifest, self._readers, self._constants
        self._trains, self._gates = spike_trains(*graph), injection_gates(*graph)
        image = manifest.input.name
        self._shapes: dict[str, Shape] = {image: manifest.input.preprocessing.shape}
        self._most = {image: MOST_PIXEL}
        """The largest numbers that sources emit in a step."""
        self._sources: dict[str | tuple[str, ...], tuple[str, bool]] = {image: (image, False)}
        """Tensor, or the spikes of all steps of a call -> what emits it, and whether it is gated by the injection."""
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
                self._shapes[name], self._most[name] = layer.shape, 1
                self._sources[self._trains[name]] = name, False
        add = self._only_reader("acc_in", "Add")
        flat = self._made(self._other(add, "acc_in"), "Flatten")
        readout = self._layer("acc", (len(manifest.class_names), 1, 1), flat.input[0])
        names = [manifest.input.name, *(node.name for node in self._nodes), readout.name]
        if len(set(names)) < len(names):
            raise LookupError(f"two parts of one name among {sorted(names)}")
        levels = manifest.method.levels if self._signed else 0
        return Network(manifest.input.name, self._shapes[manifest.input.name], tuple(self._nodes), readout, levels)

    def _layer(self, name: str, shape: Shape, current: str) -> Layer:
        synapses: list[Gain | Convolution] = []
        bias = np.zeros((shape[0], 1, 1), np.float32)
        for term, gated in self._terms(current):
            added, source_gated = self._constants.get(term), False
            if added is None:
                synapse, added, source_gated = self._synapse(term)
                if (made := self._shape_made(synapse)) != shape:
                    raise LookupError(f"layer '{name}' {list(shape)}, a current of {list(made)}")
                self._check_gate(name, term, gated or source_gated, synapse.source == self._manifest.input.name)
                synapses.append(synapse)
            else:
                added = added.reshape(-1, *added.shape[-2:])
            if np.any(added):
                self._check_gate(name, term, gated, True)
            bias = bias + self._bias(name, shape, added)
        return Layer(name, shape, tuple(synapses), bias.astype(np.float32))

    def _check_gate(self, layer: str, term: str, gated: bool, injected: bool) -> None:
        """QFFS: the image and biases enter in the injection steps, spikes in all."""
        if self._signed and gated != injected:
            raise LookupError(f"layer '{layer}', whose current '{term}' is {'' if gated else 'not '}gated")

    def _bias(self, layer: str, shape: Shape, bias: np.ndarray) -> np.ndarray:
        if bias.shape[0] not in (1, shape[0]) or bias.shape[1:] not in ((1, 1), shape[1:]):
            raise LookupError(f"layer '{layer}' {list(shape)}, a bias of {list(bias.shape)}")
        return bias

    def _synapse(self, term: str) -> tuple[Gain | Convolution, np.ndarray, bool]:
        """What a term of a current is, the bias in it, and whether its source is gated by the injection."""
        node, gain = self._maker.get(term), np.ones((), np.float32)
        if node is not None and node.op_type == "Conv":
            return self._convolution(node)
        shortcut = node is not None and node.op_type == "Mul" and node.input[1] in self._constants
        if node is not None and shortcut and self._maker_type(node.input[0]) != "AveragePool":
            term, gain = node.input[0], self._constants[node.input[1]]
            if gain.size != 1:
                raise LookupError(f"node '{node.name}', a gain of shape {list(gain.shape)}")
        source, gated = self._source(term)
        return Gain(source, float(gain.reshape(()))), np.zeros((1, 1, 1), np.float32), gated

    def _shape_made(self, synapse: Gain | Convolution) -> tuple[int, ...]:
        """The shape of a synapse's current; empty where it does not fit its source."""
        channels, *size = self._shapes[synapse.source]
        image = synapse.source == self._manifest.input.name
        if isinstance(synapse, Gain):
            return () if image else self._shapes[synapse.source]
        outputs, per_group, *kernel = synapse.weight.shape
        fits = per_group * synapse.groups == channels and outputs % synapse.groups == 0
        if not fits or (synapse.unit is not None and synapse.unit.shape != (outputs,)):
            return ()
        if image and synapse.unit is not None:
            raise LookupError("a convolution of the image with int8 weights")
        return outputs, *made_size(size, kernel, synapse.stride, synapse.padding)

    def _terms(self, current: str, gated: bool = False) -> list[tuple[str, bool]]:
        """What is added up to the first step's current, and whether it is gated by the injection."""
        node = self._maker.get(current)
        if node is None:
            return [(current, gated)]
        if node.op_type == "Add":
            return [term for tensor in node.input for term in self._terms(tensor, gated)]
        if node.op_type == "Split":
            settings = attributes_of(node)
            halves = current == node.output[0] and len(node.output) == self._manifest.steps_per_call
            if not halves or len(node.input) > 1 or settings.get("axis", 0) != 0:
                raise LookupError(f"node '{node.name}', not the steps of a call")
            return self._terms(node.input[0], gated)
        if node.op_type == "Mul" and node.input[1] in self._gates[:1]:
            return self._terms(node.input[0], True)
        return [(current, gated)]

    def _convolution(self, node: onnx.NodeProto) -> tuple[Convolution, np.ndarray, bool]:
        weight, unit = self._constants.get(node.input[1]), None
        if weight is None:
            made = self._made(node.input[1], "DequantizeLinear")
            weight, unit = (self._constants[name] for name in made.input[:2])
            zeros = [self._constants[name] for name in made.input[2:]]
            if attributes_of(made).get("axis", 1) != 0 or np.any(zeros):
                raise LookupError(f"node '{made.name}', weights with another axis than 0, or a zero point")
        if weight.dtype != (np.float32 if unit is None else np.int8):
            raise LookupError(f"node '{node.name}', weights of {weight.dtype}")
        stride, padding = stride_and_padding(node, weight.shape[2:])
        bias = self._constants[node.input[2]] if len(node.input) > 2 else np.zeros(1, np.float32)
        source, gated = self._source(node.input[0])
        groups = attributes_of(node).get("group", 1)
        return Convolution(source, weight, unit, stride, padding, groups), bias.reshape(-1, 1, 1), gated

    def _source(self, tensor: str) -> tuple[str, bool]:
        """The image, layer or pool that emits this tensor, and whether the injection gates it.

        A pool is added to the nodes when it is first seen.
        """
        key = tensor if tensor in self._sources else (tensor,)
        if key not in self._sources:
            node = self._maker.get(tensor)
            if node is None:
                raise LookupError(f"tensor '{tensor}', made by no node")
            self._sources[tensor] = self._emitter(node)
            return self._sources[tensor]
        return self._sources[key]

    def _emitter(self, node: onnx.NodeProto) -> tuple[str, bool]:
        if node.op_type == "Concat" and tuple(node.input) in self._sources and attributes_of(node)["axis"] == 0:
            return self._sources[tuple(node.input)]
        if node.op_type in ("Cast", "Reshape"):  # frames
            source = self._source(node.input[0])
            if source[0] != self._manifest.input.name:
                raise LookupError(f"node '{node.name}' ({node.op_type}) behind spikes")
            return source
        if node.op_type == "Mul" and self._are_gates(node.input[1]):
            return self._source(node.input[0])[0], True
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            source = self._source(node.input[0])
            scale, zero = (self._constants[name] for name in node.input[1:])
            if scale != 1.0 or zero != 0 or zero.dtype != np.int8:
                raise LookupError(f"node '{node.name}', spikes with scale {scale}, zero point {zero} ({zero.dtype})")
            if self._most[source[0]] > MOST_INT8:
                raise LookupError(f"node '{node.name}', up to {self._most[source[0]]} in an int8")
            return source
        return self._pool(node), False

    def _are_gates(self, tensor: str) -> bool:
        """Whether these are the gates of all steps of a call."""
        node = self._maker.get(tensor)
        gates = tuple(node.input) if node is not None and node.op_type == "Concat" else (tensor,)
        return bool(self._gates) and gates == self._gates

    def _pool(self, node: onnx.NodeProto) -> str:
        if node.op_type not in ("ReduceSum", "Mul", "Conv"):
            raise LookupError(f"node '{node.name}' ({node.op_type})")
        read = node if self._maker_type(node.input[0]) != "AveragePool" else self._maker[node.input[0]]
        source, gated = self._source(read.input[0])
        if source == self._manifest.input.name or gated:
            raise LookupError(f"node '{node.name}', a pool of the image")
        channels, *size = self._shapes[source]
        kernel, stride, padding = pool_window(node, read, self._shapes[source], self._constants)
        height, width = made_size(size, kernel, stride, padding)
        pool = Pool(node.output[0], (channels, height, width), source, kernel, stride, padding)
        self._nodes.append(pool)
        self._shapes[pool.name] = pool.shape
        self._most[pool.name] = self._most[source] * kernel[0] * kernel[1]
        return pool.name

    def _maker_type(self, tensor: str) -> str:
        node = self._maker.get(tensor)
        return "" if node is None else node.op_type

    def _made(self, tensor: str, operator: str) -> onnx.NodeProto:
        if self._maker_type(tensor) != operator:
            raise LookupError(f"tensor '{tensor}', expected of {operator}")
        return self._maker[tensor]

    def _only_reader(self, tensor: str, operator: str) -> onnx.NodeProto:
        found = [node for node in self._readers.get(tensor, []) if node.op_type == operator]
        if len(found) != 1:
            raise LookupError(f"tensor '{tensor}', read by {len(found)} nodes {operator}")
        return found[0]

    def _other(self, node: onnx.NodeProto, tensor: str) -> str:
        return node.input[1] if node.input[0] == tensor else node.input[0]
