"""The blocked layout of ONNX Runtime's convolutions on a CPU: its block, asked for and tried, and what lies in it.

Memory is `[N, channel / block, y, x, block]`; the shape stays `[N, channel, y, x]`.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .onnxruntime_session import load_onnxruntime

if TYPE_CHECKING:
    import onnx

BLOCKS = "com.microsoft.nchwc"
"""ONNX Runtime's own domain. It writes operators of it when it optimises a graph, and reads what it has written."""
FUSED = "com.microsoft"
SHARP = 2.0**23
"""HardSigmoid, clip(a p + 1 - a, 0, 1), is [p >= 1] for every p on a grid of 1 / a, or a coarser one."""
Shape = tuple[int, int, int]
"""Channel, y, x."""


def lies_in_blocks(shape: Shape, block: int) -> bool:
    """Whether a tensor of this shape, without its batch, lies in blocks.

    Not where all positions make up one vector (4 x 4 for a block of 16): there a product of matrices is faster than the
    convolution over blocks, whose rows are short (docs/adr/0012-nchwc.md).
    """
    channels, height, width = shape
    return channels % block == 0 and not block // 2 < height * width <= block


def map_in_blocks(values: np.ndarray, block: int) -> np.ndarray:
    """Lay out `[channel, y, x]` in blocks; the shape stays."""
    channels, height, width = values.shape
    return values.reshape(channels // block, block, height, width).transpose(0, 2, 3, 1).reshape(values.shape)


def weight_in_blocks(weight: np.ndarray, block: int, *, planes: bool) -> np.ndarray:
    """Lay out `[out, in, y, x]` for a convolution over blocks, or over `planes`: an image, or one channel per group."""
    out, into, height, width = weight.shape
    if planes:
        laid = weight.reshape(out // block, block, into, height, width).transpose(0, 2, 3, 4, 1)
    else:
        laid = weight.reshape(out // block, block, into // block, block, height, width).transpose(0, 2, 4, 5, 3, 1)
    return laid.reshape(weight.shape)


@functools.cache
def block_size() -> int | None:
    """Ask ONNX Runtime for its block, 16 with AVX-512, else mostly 8; None where it has no such layout.

    It is an internal of ONNX Runtime, so it is also tried, on every operator that is used: None where a version refuses
    one or means something else by it.
    """
    onnxruntime = load_onnxruntime()
    block = _block_of(onnxruntime)
    return block if block is not None and _works(onnxruntime, block) else None


def _block_of(onnxruntime: Any) -> int | None:
    """What a convolution's four output channels are padded to when it is optimised."""
    import onnx

    try:
        with tempfile.TemporaryDirectory() as folder:
            options, path = _quiet(onnxruntime), Path(folder) / "optimised.onnx"
            options.optimized_model_filepath = str(path)
            model = _model([("", "Conv", ["x", "w"], "y", {})], {"w": np.ones((4, 4, 1, 1), np.float32)}, {"x": 4})
            onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            graph = onnx.load(path).graph
    except OSError:  # nowhere to write: a device with a read-only system
        return None
    padded = {tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 4}
    if not any((node.domain, node.op_type) == (BLOCKS, "Conv") for node in graph.node) or len(padded) != 1:
        return None
    return padded.pop()


def _works(onnxruntime: Any, block: int) -> bool:
    """Whether a small network in blocks gives what it gives in ONNX's own operators.

    On whole numbers (and quarters, after the pool) small enough that no sum is rounded; with the last one a spike is
    decided.
    """
    generator, channels = np.random.default_rng(0), 2 * block
    shapes = {"stem": (channels, 3, 3, 3), "wide": (channels, channels, 3, 3)}
    shapes |= {"deep": (channels, 1, 3, 3), "gain": (channels, 1, 1, 1)}
    weights = {name: generator.integers(-1, 2, shape).astype(np.float32) for name, shape in shapes.items()}
    bias = {"bias": generator.integers(-1, 2, channels).astype(np.float32)}
    image = {"x": generator.integers(0, 4, (2, 3, 5, 7)).astype(np.float32)}
    sides = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    last, depthwise = {**sides, "strides": [2, 2]}, {**sides, "group": channels}
    gain = {"kernel_shape": [1, 1], "group": channels}
    pool = {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    limits = {"zero": np.zeros((), np.float32), "one": np.ones((), np.float32)}
    plain = [
        ("", "Conv", ["x", "stem", "bias"], "a", sides),
        ("", "Conv", ["a", "wide", "bias"], "b", sides),
        ("", "Add", ["a", "b"], "c", {}),
        ("", "Conv", ["c", "deep"], "c.deep", depthwise),
        ("", "Conv", ["c", "gain"], "c.gain", gain),
        ("", "Add", ["c.deep", "c.gain"], "d", {}),
        ("", "AveragePool", ["d"], "e", pool),
        ("", "Conv", ["e", "wide"], "f", last),
        ("", "Conv", ["e", "wide", "bias"], "g", last),
        ("", "Sum", ["f", "f", "f", "g"], "h", {}),
        ("", "Floor", ["h"], "i", {}),
        ("", "Clip", ["i", "zero", "one"], "z", {}),
        ("", "Sub", ["h", "z"], "y", {}),
    ]
    laid = {name: weight_in_blocks(weight, block, planes=name != "wide") for name, weight in weights.items()}
    blocked = [
        (BLOCKS, "Conv", ["x", "stem", "bias"], "a", sides),
        (BLOCKS, "Conv", ["a", "wide", "bias", "a"], "c", sides),
        (BLOCKS, "Conv", ["c", "deep"], "c.deep", depthwise),
        (BLOCKS, "Conv", ["c", "gain", "", "c.deep"], "d", gain),
        (BLOCKS, "AveragePool", ["d"], "e", pool),
        (BLOCKS, "ReorderOutput", ["e"], "e.plain", {"channels": channels}),
        (FUSED, "FusedConv", ["e.plain", "wide.plain"], "f", last),
        (BLOCKS, "ReorderInput", ["f"], "f.blocked", {}),
        (BLOCKS, "Conv", ["e", "wide", "", "f.blocked"], "ff.blocked", last),
        (BLOCKS, "ReorderOutput", ["ff.blocked"], "ff", {"channels": channels}),
        (FUSED, "FusedConv", ["e.plain", "wide.plain", "bias", "f"], "fg", last),
        ("", "Add", ["ff", "fg"], "h", {}),
        ("", "HardSigmoid", ["h"], "z", {"alpha": SHARP, "beta": 1 - SHARP}),
        ("", "Sub", ["h", "z"], "y", {}),
    ]
    found = []
    for nodes, constants in (
        (plain, weights | bias | limits),
        (blocked, laid | bias | {"wide.plain": weights["wide"]}),
    ):
        options = _quiet(onnxruntime)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            model = _model(nodes, constants, {"x": 3})
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            found.append(session.run(None, image)[0])
        except Exception:  # noqa: BLE001 — ONNX Runtime has no class of its own for what it refuses
            return False
    return np.array_equal(*found)


def _quiet(onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return options


def _model(nodes: list[tuple[Any, ...]], constants: dict[str, np.ndarray], inputs: dict[str, int]) -> bytes:
    """A model with the output y of nodes (domain, operator, inputs, output, attributes), inputs by their channels."""
    from onnx import TensorProto, helper, numpy_helper

    made = [helper.make_node(kind, ins, [out], domain=domain, **more) for domain, kind, ins, out, more in nodes]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", c, "y", "x"]) for name, c in inputs.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(np.ascontiguousarray(values), name) for name, values in constants.items()]
    graph = helper.make_graph(made, "probe", ends, [output], stored)
    return in_domains(graph, ir_version=8, opset=17).SerializeToString()


def in_domains(graph: onnx.GraphProto, *, ir_version: int, opset: int) -> onnx.ModelProto:
    """A model of a graph that may hold operators of both of ONNX Runtime's domains."""
    from onnx import helper

    domains = [helper.make_opsetid(name, version) for name, version in (("", opset), (BLOCKS, 1), (FUSED, 1))]
    return helper.make_model(graph, opset_imports=domains, ir_version=ir_version)
