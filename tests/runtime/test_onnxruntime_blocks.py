"""Graphs rewritten for ONNX Runtime's blocks: the same bits as the exported graph, and when nothing is rewritten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from support import GREY, noise, random_checkpoint
from torch import Tensor, nn

from dynamic_confidence.models import registry
from dynamic_confidence.models.activations import activation_factory
from dynamic_confidence.runtime.engine import Engine, open_engine
from dynamic_confidence.runtime.engines import onnxruntime as engine_module
from dynamic_confidence.runtime.engines import onnxruntime_blocks as module
from dynamic_confidence.runtime.engines.onnxruntime_blocks import (
    block_size,
    lies_in_blocks,
    map_in_blocks,
    weight_in_blocks,
)
from dynamic_confidence.runtime.engines.onnxruntime_nchwc import SHARP, model_in_blocks
from dynamic_confidence.runtime.onnx_file import read_onnx
from dynamic_confidence.runtime.variants import variant
from dynamic_confidence.toolchain.export import ExportOptions, export

METHODS = ("qcfs", "qffs")
BLOCK = block_size()
needs_blocks = pytest.mark.skipif(BLOCK is None, reason="ONNX Runtime has no blocked layout on this processor")
Export = Callable[..., Path]


class Odd(nn.Module):
    """What the built-in networks do not have: groups, a group per channel, a pool over an odd area."""

    def __init__(self, *, classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        act = activation_factory("lsq", None, None)
        self.stem, self.first = nn.Conv2d(in_channels, width, 5, 2, 1), act()
        self.depthwise, self.second = nn.Conv2d(width, width, 3, padding=1, groups=width), act()
        self.pool = nn.AvgPool2d(3, 2)
        self.grouped, self.third = nn.Conv2d(width, 2 * width, 3, padding=2, groups=2), act()
        self.last, self.readout = nn.AdaptiveAvgPool2d(1), nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.depthwise(self.first(self.stem(x))))
        x = self.third(self.grouped(self.pool(x)))
        return self.readout(torch.flatten(self.last(x), 1))


NETWORKS: dict[str, tuple[str, int, Mapping[str, Any]]] = {
    # Its last layers have 3 x 3 positions: with blocks of 16 they stay plain.
    "residual": ("resnet8", 12, {"width": 16}),
    "padded shortcuts": ("resnet8", 12, {"width": 16, "shortcut": "pad"}),
    "pools and hidden layers": ("vgg16", 32, {"width": 16, "hidden": 32}),
    "bottlenecks": ("resnet50", 32, {"width": 16, "form": "imagenet"}),
    "groups": ("odd", 20, {"width": 16}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """`made("residual", "qffs", more_steps_per_call=(4,)) -> Path`: a small network whose channels fill blocks."""
    folder, files = tmp_path_factory.mktemp("blocks"), {}

    def make(name: str, method: str, **options: Any) -> Path:
        key = name, method, tuple(sorted(options.items()))
        if key not in files:
            architecture, size, arguments = NETWORKS[name]
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(registry.ARCHITECTURES, "odd", Odd)
                checkpoint = random_checkpoint(architecture, replace_size(size), **arguments)
                content = export(checkpoint, "0" * 64, ExportOptions(method, 6, **options)).content
            files[key] = folder / f"{len(files)}.onnx"
            files[key].write_bytes(content)
        return files[key]

    return make


def replace_size(size: int) -> Any:
    import msgspec

    return msgspec.structs.replace(GREY, height=size, width=size)


def images(path: Path, batch: int) -> np.ndarray:
    return noise(*(batch if dim == "N" else int(dim) for dim in read_onnx(path)[1].input.shape))


def everything(engine: Engine, pixels: np.ndarray, calls: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    """Every output of these calls, of which one input is refilled after the second."""
    engine.reset(2.0)
    found = []
    for index, size in enumerate(calls):
        if index == 2 and not engine.manifest.input.frames:
            engine.refill(np.array([engine.batch - 1]), pixels[..., :1, :, :, :])
        output = engine.step(pixels if index == 0 else None, size)
        found.append({name: values.copy() for name, values in output._asdict().items() if values is not None})
    return found


def assert_same_bits(path: Path, *, batch: int, threads: int, calls: tuple[int, ...], **options: Any) -> None:
    found = []
    for optimize in (True, False):
        with open_engine(
            path, batch=batch, threads=threads, optimize=optimize, backend="onnxruntime", **options
        ) as engine:
            assert engine.backend.endswith("c") == (optimize and BLOCK is not None), engine.backend
            found.append(everything(engine, images(path, batch), calls))
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys()
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name], err_msg=name)
    assert np.count_nonzero(found[0][-1]["logits"])
    assert sum(call["spikes"].sum() for call in found[0]) > 10


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (3, 2)])
@pytest.mark.parametrize(
    ("name", "method", "precision"),
    [case for case in product(NETWORKS, METHODS, ("fp32", "int8")) if case[::2] != ("bottlenecks", "fp32")],
)
def test_the_bits_are_those_of_the_exported_graph(
    made: Export, name: str, method: str, precision: str, batch: int, threads: int
):
    """Also where calls of several sizes take turns: their graphs share the states."""
    path = made(name, method, precision=precision, count_spikes=True, more_steps_per_call=(4,))
    sizes = {"call_sizes": (1, 4)}
    assert_same_bits(path, batch=batch, threads=threads, calls=(1, 4, 1, 1, 4), **sizes)


@pytest.mark.parametrize(("method", "batch", "frames"), list(product(METHODS, (1, 3), (False, True))))
def test_an_image_for_every_step(made: Export, method: str, batch: int, frames: bool):
    path = made("residual", method, steps_per_call=3, frames=frames, count_spikes=True)
    assert_same_bits(path, batch=batch, threads=1, calls=(3, 3, 3))


@needs_blocks
@pytest.mark.parametrize(("method", "batch"), list(product(METHODS, (1, 3))))
def test_what_is_left_to_do(made: Export, method: str, batch: int):
    """The whole residual network, K = 4: what is done per layer and step, and nothing for the layout beside."""
    path = made("residual", method, more_steps_per_call=(4,))
    network, manifest = variant(*read_onnx(path), 4)
    rewritten = model_in_blocks(network, manifest, batch, 16)
    assert rewritten is not None
    count = Counter((node.domain, node.op_type) for node in rewritten.graph.node)
    layers, steps = 7, 4
    convolutions = layers - 1 + 2  # the image's once in the call, the others in every step; two are of shortcuts
    last_stage, gains = 3, 1  # around the block without a convolution in its shortcut
    assert count["com.microsoft.nchwc", "Conv"] == 1 + steps * (convolutions - last_stage + gains)
    assert count["com.microsoft", "FusedConv"] == steps * (last_stage + 1)  # and the read-out's
    # Into the two convolutions of the last stage that see the stage before; nowhere else.
    assert count["com.microsoft.nchwc", "ReorderOutput"] == steps
    assert count["com.microsoft.nchwc", "ReorderInput"] == 0
    assert ("", "Conv") not in count
    if method == "qcfs":
        assert count["", "HardSigmoid"] == count["", "Sub"] == steps * layers
        assert ("", "Floor") not in count
        assert ("", "Split") not in count
        assert ("", "Mul") not in count
    else:
        assert count["", "Floor"] == count["", "Sub"] - steps == steps * layers  # and a gate per step
        assert count["", "Clip"] == 2 * steps * layers + steps


@needs_blocks
@pytest.mark.parametrize(
    ("options", "engine"),
    [({}, {"optimize": False}), ({"precision": "fp16"}, {}), ({"precision": "int8", "form": "matmul"}, {})],
)
def test_what_is_left_as_it_is(made: Export, options: dict[str, Any], engine: dict[str, Any]):
    with open_engine(made("residual", "qcfs", **options), backend="onnxruntime", **engine) as opened:
        assert opened.backend == f"ONNX Runtime {onnxruntime.__version__}, CPU"


@needs_blocks
def test_the_layout_is_named_where_it_is_used(made: Export, exported: Callable[..., Path], monkeypatch):
    plain = f"ONNX Runtime {onnxruntime.__version__}, CPU"
    with open_engine(made("residual", "qcfs"), backend="onnxruntime") as engine:
        assert engine.backend == f"{plain}, NCHW{BLOCK}c"
    with open_engine(exported(), backend="onnxruntime") as engine:  # of 4, 8 and 16 channels
        assert engine.backend == plain
    monkeypatch.setattr(engine_module, "block_size", lambda: None)
    with open_engine(made("residual", "qcfs"), backend="onnxruntime") as engine:
        assert engine.backend == plain


def test_calls_of_all_sizes_are_rewritten_or_none(made: Export, monkeypatch: pytest.MonkeyPatch):
    """Their graphs share the states."""

    def rewritten(network: onnx.ModelProto, manifest: Any, batch: int, block: int) -> onnx.ModelProto | None:
        return None if manifest.steps_per_call == 4 else model_in_blocks(network, manifest, batch, block)

    monkeypatch.setattr(engine_module, "model_in_blocks", rewritten)
    path = made("residual", "qcfs", count_spikes=True, more_steps_per_call=(4,))
    with open_engine(path, backend="onnxruntime", call_sizes=(1, 4)) as engine:
        assert engine.backend.endswith(", CPU")
        assert len(everything(engine, images(path, 1), (1, 4, 1))) == 3


def changed(made: Export, method: str, change: Callable[[onnx.GraphProto], None]) -> onnx.ModelProto | None:
    network, manifest = read_onnx(made("residual", method))
    change(network.graph)
    return model_in_blocks(network, manifest, 1, 16)


def named(graph: onnx.GraphProto, end: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.name.endswith(end))


def another_reader(graph: onnx.GraphProto) -> None:
    """Of a QFFS membrane, which s is not."""
    state = next(end.name for end in graph.input if end.name.startswith("v_in"))
    graph.node.append(helper.make_node("Identity", [state], ["copy"]))


def other_levels(graph: onnx.GraphProto) -> None:
    named(graph, "/change").input[1] = "const/0"


def an_unknown_operator(graph: onnx.GraphProto) -> None:
    """On the way to a convolution: nothing is known of its shape."""
    node = next(n for n in graph.node if n.op_type == "Conv" and not n.input[0].startswith("pixels"))
    graph.node.insert(list(graph.node).index(node), helper.make_node("Abs", [node.input[0]], ["somewhere"]))
    node.input[0] = "somewhere"


@pytest.mark.parametrize(
    ("method", "change"),
    [("qffs", another_reader), ("qffs", other_levels), ("qffs", an_unknown_operator), ("qcfs", an_unknown_operator)],
)
def test_an_unknown_graph_is_left_alone(made: Export, method: str, change: Callable[[onnx.GraphProto], None]):
    assert changed(made, method, lambda graph: None) is not None
    assert changed(made, method, change) is None


def test_blocks_hold_what_they_should():
    """Against the definition: channel c of position (y, x) at [c // B, y, x, c % B]."""
    values = np.arange(16 * 3 * 5).reshape(16, 3, 5)
    laid = map_in_blocks(values, 8).reshape(2, 3, 5, 8)
    for channel, y, x in np.ndindex(values.shape):
        assert laid[channel // 8, y, x, channel % 8] == values[channel, y, x]
    weight = np.arange(16 * 24 * 2 * 3).reshape(16, 24, 2, 3)
    inner = weight_in_blocks(weight, 8, planes=False).reshape(2, 3, 2, 3, 8, 8)
    outer = weight_in_blocks(weight, 8, planes=True).reshape(2, 24, 2, 3, 8)
    for out, into, y, x in np.ndindex(weight.shape):
        assert inner[out // 8, into // 8, y, x, into % 8, out % 8] == weight[out, into, y, x]
        assert outer[out // 8, into, y, x, out % 8] == weight[out, into, y, x]


def test_where_blocks_are_used():
    assert lies_in_blocks((32, 5, 5), 16)
    assert lies_in_blocks((32, 2, 2), 16)
    assert not lies_in_blocks((32, 4, 4), 16)
    assert lies_in_blocks((32, 4, 4), 8)
    assert not lies_in_blocks((24, 5, 5), 16)


@needs_blocks
def test_a_block_is_asked_for_and_tried(monkeypatch: pytest.MonkeyPatch):
    """None from an ONNX Runtime that has no blocks, refuses them in a file, or means another layout."""
    assert BLOCK in (4, 8, 16, 32)

    def options() -> onnxruntime.SessionOptions:
        made = onnxruntime.SessionOptions()
        made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        return made

    without = SimpleNamespace(SessionOptions=options, InferenceSession=onnxruntime.InferenceSession)
    assert module._block_of(without) is None
    assert module._works(onnxruntime, BLOCK)
    with monkeypatch.context() as patch:
        patch.setattr(module, "weight_in_blocks", lambda weight, block, planes: weight)
        assert not module._works(onnxruntime, BLOCK)
    monkeypatch.setattr(module, "BLOCKS", "com.microsoft.elsewhere")
    assert not module._works(onnxruntime, BLOCK)


@pytest.fixture(scope="module")
def sharp() -> onnxruntime.InferenceSession:
    node = helper.make_node("HardSigmoid", ["p"], ["z"], alpha=SHARP, beta=1 - SHARP)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "pz"]
    model = helper.make_model(
        helper.make_graph([node], "sharp", ends[:1], ends[1:]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@settings(deadline=None, max_examples=200)
@given(data=st.data(), exponent=st.integers(1, 23))
def test_a_spike_is_one_operation(sharp: onnxruntime.InferenceSession, data: st.DataObject, exponent: int):
    """For every float32 on the grid, above all around the threshold."""
    one = 2**exponent
    near = st.integers(-3, 3).flatmap(lambda d: st.sampled_from([d, one + d, -one + d]))
    units = np.array(data.draw(st.lists(near | st.integers(-(2**24), 2**24), min_size=1, max_size=70)))
    p = (units / one).astype(np.float32)
    np.testing.assert_array_equal(sharp.run(None, {"p": p})[0], (units >= one).astype(np.float32))


@given(levels=st.integers(1, 15), units=st.lists(st.integers(-3000, 3000), max_size=30))
def test_the_sum_of_membrane_and_spikes_gives_the_same_spikes(levels: int, units: list[int]):
    """The rules of `signed_neurons`, on a grid of 2^-10, against the contract's."""
    v, n, s, m = 0.5, 0, 0.5, 0
    for current in (unit / 1024 for unit in units):
        p = v + current
        z = int(p >= 1 and n < levels) - int(p < 0 and n > 0)
        v, n, s = p - z, n + z, s + current
        change = int(np.clip(np.clip(np.floor(s), 0, levels) - m, -1, 1))
        m += change
        assert (change, m, s) == (z, n, v + n)
