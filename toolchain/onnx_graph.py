"""A thin builder over onnx.helper: nodes named after the tensor they make, each constant stored once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..runtime.manifest import Dim, Output, State
from ..runtime.onnx_file import IR_VERSION, OPSET

_TYPES = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def numbered(name: str, step: int | None) -> str:
    """The name of what one step of a call makes of its own, or of what is made for all steps."""
    return name if step is None else f"{name}.{step}"


@dataclass
class GraphBuilder:
    """An ONNX graph under construction, with the states and outputs its manifest will list."""

    states: list[State] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    _nodes: list[onnx.NodeProto] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)
    _initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    _inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    _outputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def add(self, op: str, name: str, *inputs: str, **attributes: object) -> str:
        """Add a node and return the tensor it makes, which bears the node's name."""
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))  # type: ignore[arg-type]
        self._names.add(name)
        return name

    def has(self, name: str) -> bool:
        return name in self._names

    def batched(self, name: str, tensors: list[str]) -> str:
        """Join tensors along their first axis, once; one alone stays what it is."""
        return tensors[0] if len(tensors) == 1 else self.once("Concat", name, *tensors, axis=0)

    def split(self, name: str, tensor: str, parts: int) -> list[str]:
        """Cut a tensor into equal parts along its first axis."""
        names = [f"{name}.{part}" for part in range(parts)]
        self._nodes.append(helper.make_node("Split", [tensor], names, name=name, axis=0))
        self._names.update(names)
        return names

    def once(self, op: str, name: str, *inputs: str, **attributes: object) -> str:
        """As `add`, unless a node of this name is there already."""
        return name if self.has(name) else self.add(op, name, *inputs, **attributes)

    def constant(self, name: str, value: np.ndarray) -> str:
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def scalar(self, value: float) -> str:
        return self.constant(f"const/{value!r}", np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        return self.constant("const/" + "_".join(map(str, values)) + "i", np.array(values, np.int64))

    def input(self, name: str, dtype: str, shape: tuple[Dim, ...]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], shape))
        return name

    def output(self, name: str, dtype: str, shape: tuple[Dim, ...]) -> None:
        """Declare a tensor that already bears this name as an output of the contract."""
        self.debug_output(name, dtype, shape)
        self.outputs.append(Output(name=name, shape=shape, dtype=dtype))  # type: ignore[arg-type]

    def debug_output(self, name: str, dtype: str, shape: tuple[Dim, ...]) -> None:
        """Declare an output that the contract does not know (the self-check's probes)."""
        self._outputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], shape))

    def state(self, kind: str, layer: str, shape: tuple[int, ...], initial: float) -> tuple[str, str]:
        """Declare a state; return the tensor it comes in by, and the name that its next value must be given."""
        suffix = f".{layer}" if layer else ""
        state = State(
            input=f"{kind}_in{suffix}",
            output=f"{kind}_out{suffix}",
            shape=("N", *shape),
            dtype="float32",
            initial=initial,
        )
        self.states.append(state)
        self.input(state.input, state.dtype, state.shape)
        self.debug_output(state.output, state.dtype, state.shape)
        return state.input, state.output

    def model(self, name: str) -> onnx.ModelProto:
        """Assemble the graph and check it with onnx.checker."""
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, initializer=list(self._initializers.values())
        )
        domains = {"": OPSET} | {node.domain: 1 for node in self._nodes if node.domain}
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in domains.items()],
            ir_version=IR_VERSION,
            producer_name="dynamic-confidence",
        )
        onnx.checker.check_model(model, full_check=True)
        return model
