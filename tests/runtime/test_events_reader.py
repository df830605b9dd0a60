"""What the event-driven engine reads of a graph, and what it refuses: above all what would overrun its memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("numba", reason="numba is not installed")

from dynamic_confidence.runtime.engine import open_engine
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Manifest
from dynamic_confidence.runtime.onnx_file import attributes_of, bytes_with_manifest, graph_sha256, read_onnx
from dynamic_confidence.runtime.stepping import run_to_the_end

Exported = Callable[..., Path]
Change = Callable[[onnx.GraphProto, Manifest], Manifest | None]
replace = msgspec.structs.replace


def changed(source: Path, path: Path, change: Change) -> Path:
    network, manifest = read_onnx(source)
    manifest = change(network.graph, manifest) or manifest
    provenance = replace(manifest.provenance, graph_sha256=graph_sha256(network))
    path.write_bytes(bytes_with_manifest(network, replace(manifest, provenance=provenance)))
    return path


def of_type(graph: onnx.GraphProto, operator: str, index: int = 0) -> onnx.NodeProto:
    return [node for node in graph.node if node.op_type == operator][index]


def constant(graph: onnx.GraphProto, name: str, value: np.ndarray) -> str:
    """Set an initializer, or add one."""
    for tensor in graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(value, name))
            return name
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def value(graph: onnx.GraphProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == name)


def setting(operator: str, name: str, numbers: list[int], index: int = 0) -> Change:
    def change(graph: onnx.GraphProto, _: Manifest) -> None:
        next(a for a in of_type(graph, operator, index).attribute if a.name == name).ints[:] = numbers

    return change


def operand(operator: str, position: int, number: float, dtype: type = np.float32, index: int = 0) -> Change:
    def change(graph: onnx.GraphProto, _: Manifest) -> None:
        of_type(graph, operator, index).input[position] = constant(graph, "odd", np.array(number, dtype))

    return change


def renamed_operator(operator: str, other: str) -> Change:
    def change(graph: onnx.GraphProto, _: Manifest) -> None:
        of_type(graph, operator).op_type = other

    return change


def initial(prefix: str, number: float) -> Change:
    def change(_: onnx.GraphProto, manifest: Manifest) -> Manifest:
        states = [replace(s, initial=number) if s.input.startswith(prefix) else s for s in manifest.states]
        return replace(manifest, states=tuple(states))

    return change


def method(**values: int) -> Change:
    return lambda _, manifest: replace(manifest, method=replace(manifest.method, **values))


def other_names(graph: onnx.GraphProto, manifest: Manifest) -> Manifest:
    new = {s.input: s.input.replace("v_in.", "membrane_in.") for s in manifest.states}
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
    for end in graph.input:
        end.name = new.get(end.name, end.name)
    return replace(manifest, states=tuple(replace(s, input=new[s.input]) for s in manifest.states))


def other_shape(graph: onnx.GraphProto, _: Manifest) -> None:
    graph.input[2].type.tensor_type.shape.dim[1].dim_value += 16


def fewer_weights(graph: onnx.GraphProto, _: Manifest) -> None:
    name = "layer1.0.activation2/i0/w.int8"
    constant(graph, name, value(graph, name)[:, :-1])


def wider_bias(graph: onnx.GraphProto, _: Manifest) -> None:
    constant(graph, "readout/i0/b", np.zeros(7, np.float32))


def wider_unit(graph: onnx.GraphProto, _: Manifest) -> None:
    of_type(graph, "DequantizeLinear", 1).input[1] = constant(graph, "odd", np.ones(99, np.float32))


def reset_by_floor(graph: onnx.GraphProto, _: Manifest) -> None:
    of_type(graph, "Sub").input[1] = of_type(graph, "Floor").output[0]


def no_reset(graph: onnx.GraphProto, _: Manifest) -> None:
    of_type(graph, "Sub").input[1] = constant(graph, "odd", np.array(0, np.float32))


def unsigned_spikes(graph: onnx.GraphProto, _: Manifest) -> None:
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        of_type(graph, operator).input[2] = constant(graph, "odd", np.array(0, np.uint8))


def image_in_int8(graph: onnx.GraphProto, _: Manifest) -> None:
    """The weights of the image's convolution as int8, times a unit."""
    stem = of_type(graph, "Conv")
    weight = value(graph, stem.input[1])
    unit = np.full(len(weight), np.abs(weight).max() / 127, np.float32)
    names = constant(graph, "odd", np.round(weight / unit[0]).astype(np.int8)), constant(graph, "odd.unit", unit)
    at = list(graph.node).index(stem)
    graph.node.insert(at, helper.make_node("DequantizeLinear", names, ["odd.w"], name="odd.w", axis=0))
    of_type(graph, "Conv").input[1] = "odd.w"


def ungated(graph: onnx.GraphProto, _: Manifest) -> None:
    """An image that enters in every step."""
    of_type(graph, "Add", 2).input[1] = of_type(graph, "Mul").input[0]


def bias_in_every_step(graph: onnx.GraphProto, _: Manifest) -> None:
    convolution = of_type(graph, "Conv", 1)
    channels = len(value(graph, f"{convolution.output[0]}/unit"))
    convolution.input.append(constant(graph, "odd", np.ones(channels, np.float32)))


def first_input(operator: str, tensor: str) -> Change:
    def change(graph: onnx.GraphProto, _: Manifest) -> None:
        of_type(graph, operator).input[0] = tensor

    return change


def initializer(name: str, made: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(graph: onnx.GraphProto, _: Manifest) -> None:
        constant(graph, name, made(value(graph, name)))

    return change


def other_axis(graph: onnx.GraphProto, _: Manifest) -> None:
    of_type(graph, "DequantizeLinear", 1).attribute[0].i = 1


def quantised_image(graph: onnx.GraphProto, _: Manifest) -> None:
    scale = constant(graph, "odd", np.array(1, np.float32)), constant(graph, "odd.zero", np.array(0, np.int8))
    graph.node.insert(1, helper.make_node("QuantizeLinear", ["pixels", *scale], ["odd.int8"], name="odd.int8"))
    graph.node.insert(2, helper.make_node("DequantizeLinear", ["odd.int8", *scale], ["odd.pixels"], name="odd.pixels"))
    of_type(graph, "Conv").input[0] = "odd.pixels"


def read_out_of_one_name(graph: onnx.GraphProto, manifest: Manifest) -> Manifest:
    """A layer that is called as the read-out is."""
    old, new = "v_in.activation1", "v_in.acc"
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    for end in graph.input:
        end.name = new if end.name == old else end.name
    states = [replace(s, input=new) if s.input == old else s for s in manifest.states]
    return replace(manifest, states=tuple(states))


def crossed_membranes(_: onnx.GraphProto, manifest: Manifest) -> Manifest:
    one, other, *rest = manifest.states
    crossed = replace(one, output=other.output), replace(other, output=one.output)
    return replace(manifest, states=(*crossed, *rest))


def other_order(graph: onnx.GraphProto, _: Manifest) -> None:
    joined = of_type(graph, "Concat")
    joined.input[:] = list(joined.input)[::-1]


def other_part(graph: onnx.GraphProto, _: Manifest) -> None:
    cut = of_type(graph, "Split")
    cut.output[:] = list(cut.output)[::-1]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qcfs", setting("Conv", "pads", [1, 1, 0, 0]), r"node '\S+', a window with .*'pads': \[1, 1, 0, 0\]"),
        ("qcfs", setting("Conv", "kernel_shape", [2, 3]), r"node '\S+', a window with .*'kernel_shape': \[2, 3\]"),
        ("qcfs", setting("Conv", "strides", [0, 1], 1), "a window of 3 with stride 0 and padding 1 over 12"),
        ("qcfs", setting("Conv", "strides", [-2, 2], 1), "a window of 3 with stride -2 and padding 1 over 12"),
        ("qcfs", setting("Conv", "pads", [-1, 0, -1, 0], 1), "a window of 3 with stride 1 and padding -1 over 12"),
        ("qcfs", renamed_operator("ReduceSum", "ReduceMax"), r"node 'avgpool/sum' \(ReduceMax\)"),
        ("qcfs", renamed_operator("Floor", "Identity"), r"tensor '\S+/p', read by 2 nodes, expected Floor and Sub"),
        ("qcfs", fewer_weights, r"layer 'layer1.0.activation2' \[4, 12, 12\], a current of \[\]"),
        ("qcfs", wider_unit, r"layer '\S+' \[\S+, 12, 12\], a current of \[\]"),
        ("qcfs", wider_bias, r"layer 'acc' \[4, 1, 1\], a bias of \[7, 1, 1\]"),
        ("qcfs", image_in_int8, "a convolution of the image with int8 weights"),
        (
            "qcfs",
            initializer("layer1.0.activation2/i1/gain", lambda _: np.ones(2, np.float32)),
            r"a gain of shape \[2\]",
        ),
        ("qcfs", initializer("layer1.0.activation2/i0/w.int8", lambda w: w.astype(np.uint8)), "weights of uint8"),
        ("qcfs", other_axis, "weights with another axis than 0, or a zero point"),
        ("qcfs", quantised_image, "node 'odd.int8', up to 255 in an int8"),
        ("qcfs", renamed_operator("QuantizeLinear", "Cast"), r"node '\S+/int8' \(Cast\) behind spikes"),
        ("qcfs", renamed_operator("Flatten", "Identity"), r"tensor 'readout/flat\.0', expected of Flatten"),
        ("qcfs", first_input("Conv", "nowhere"), "tensor 'nowhere', made by no node"),
        ("qcfs", first_input("ReduceSum", "pixels"), "node 'avgpool/sum', a pool of the image"),
        ("qcfs", read_out_of_one_name, "two parts of one name among"),
        (
            "qcfs",
            crossed_membranes,
            r"layer 'activation1', whose last membranes are not 'v_out\.layer1\.0\.activation1'",
        ),
        ("qcfs", initial("v_in", 0.25), r"state 'v_in\.\S+' begins with 0\.25, expected 0\.5"),
        ("qffs", initial("n_in", 1.0), r"state 'n_in\.\S+' begins with 1\.0, expected 0\.0"),
        ("qffs", initial("t_in", 1.0), r"state 't_in' begins with 1\.0, expected 0\.0"),
        ("qcfs", initial("acc_in", 1.0), r"state 'acc_in' begins with 1\.0, expected 0\.0"),
        ("qcfs", other_names, r"state 'membrane_in\.\S+' is too many \(qcfs needs v_in\.<layer> and acc_in\)"),
        ("qcfs", operand("Clip", 2, 2.0), r"node '\S+/z', spikes with the limits \[0\.0, 2\.0\]"),
        ("qcfs", reset_by_floor, r"tensor '\S+/floor', read by 2 nodes, expected Clip"),
        ("qcfs", no_reset, r"node 'v_out\.\S+', a reset by another number than the spikes"),
        ("qcfs", operand("QuantizeLinear", 1, 2.0), r"spikes with scale 2\.0, zero point 0 \(int8\)"),
        ("qcfs", operand("DequantizeLinear", 1, 2.0), r"spikes with scale 2\.0, zero point 0 \(int8\)"),
        ("qcfs", operand("DequantizeLinear", 2, 1, np.int8), r"spikes with scale 1\.0, zero point 1 \(int8\)"),
        ("qcfs", unsigned_spikes, r"spikes with scale 1\.0, zero point 0 \(uint8\)"),
        ("qffs", method(levels=7), "neurons other than those of qffs with 7 levels"),
        ("qffs", method(levels=256), r"method\.levels 256, at most 255 are counted"),
        ("qffs", operand("Clip", 2, 2.0, index=1), "neurons other than those of qffs with 3 levels"),
        ("qffs", method(injection_steps=4), "an injection that ends after 3 steps, in the manifest 4"),
        ("qffs", operand("Add", 1, 2.0), r"node 't_out', a time other than t \+ 1"),
        ("qffs", operand("Clip", 2, 2.0), "node 'injection/gate.0', not a gate of the injection"),
        ("qffs", ungated, r"layer 'activation1', whose current 'activation1/i0' is not gated"),
        ("qffs", bias_in_every_step, r"layer 'layer1\.0\.activation1', whose current '\S+' is not gated"),
    ],
)
def test_what_it_refuses(exported: Exported, tmp_path: Path, name: str, change: Change, message: str):
    """Whatever the kernels would not compute as the graph does; they check no size."""
    path = changed(exported(method=name, precision="int8"), tmp_path / "net.onnx", change)
    ending = r".*: not a graph as the event-driven engine knows it\. Use --backend onnxruntime, or export .*`dc-export"
    with pytest.raises(DynamicConfidenceError, match=message + ending):
        open_engine(path, backend="events")


@pytest.mark.parametrize(
    ("change", "message"),
    [(other_order, r"node 'activation1/z' \(Concat\)"), (other_part, r"node '\S+split', not the steps of a call")],
)
def test_steps_that_are_not_in_order(exported: Exported, tmp_path: Path, change: Change, message: str):
    path = changed(exported(steps_per_call=4, precision="int8"), tmp_path / "net.onnx", change)
    with pytest.raises(DynamicConfidenceError, match=message):
        open_engine(path, backend="events")


def test_inputs_of_another_shape(exported: Exported, tmp_path: Path):
    path = changed(exported(precision="int8"), tmp_path / "net.onnx", other_shape)
    with pytest.raises(DynamicConfidenceError, match="the graph's inputs are not those of its manifest"):
        open_engine(path, backend="events")


def test_attributes_that_have_their_defaults(exported: Exported, tmp_path: Path, pixels: np.ndarray):
    """ONNX: group 1, strides 1, no padding, the weights' kernel."""

    def change(graph: onnx.GraphProto, _: Manifest) -> None:
        for node in graph.node:
            if node.op_type == "Conv":
                defaults = {"group": 1, "strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1]}
                kept = {k: v for k, v in attributes_of(node).items() if v != defaults.get(k) and k != "kernel_shape"}
                del node.attribute[:]
                node.attribute.extend(helper.make_attribute(k, v) for k, v in kept.items())

    path = changed(exported(precision="int8"), tmp_path / "net.onnx", change)
    found = []
    for backend in ("events", "onnxruntime"):
        with open_engine(path, batch=2, backend=backend) as engine:
            found.append(run_to_the_end(engine, pixels[:2], 1.0).logits)
    np.testing.assert_array_equal(*found)
