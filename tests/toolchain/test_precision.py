"""int8 and half precision: what is rounded, what stays, and that int8 is as exact as float32 is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as replace_fields
from onnx import numpy_helper
from support import GREY, random_checkpoint

from dynamic_confidence.models.checkpoint import Checkpoint
from dynamic_confidence.runtime.engine import open_engine
from dynamic_confidence.runtime.errors import CheckFailed, DynamicConfidenceError
from dynamic_confidence.runtime.exit_policy import policy_from_manifest
from dynamic_confidence.runtime.manifest import Method, Numerics, Precision
from dynamic_confidence.runtime.onnx_file import read_onnx
from dynamic_confidence.runtime.stepping import infer, run_to_the_end
from dynamic_confidence.toolchain.export import ExportOptions, export
from dynamic_confidence.toolchain.onnx_from_snn import onnx_from_snn
from dynamic_confidence.toolchain.precision import INT8_MAX, reduced
from dynamic_confidence.toolchain.rounding_check import rounding_check
from dynamic_confidence.toolchain.snap import snap
from dynamic_confidence.toolchain.snn import INPUT, Layer, Pool, Snn, Synapse
from dynamic_confidence.toolchain.snn_from_ann import snn_from_ann

REDUCED = ("fp16", "int8")


@pytest.fixture(scope="module", params=["qcfs", "qffs"])
def converted(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Snn:
    return snn_from_ann(checkpoint.network(), checkpoint.preprocessing, request.param)


def synapses(snn: Snn) -> list[tuple[Layer, Synapse]]:
    return [(layer, synapse) for layer in (*snn.layers, snn.readout) for synapse in layer.synapses]


@pytest.mark.parametrize("precision", REDUCED)
def test_only_convolutions_between_spikes_are_reduced(converted: Snn, precision):
    snn, _ = snap(converted, 12, precision=precision)
    kept = {synapse.precision for layer, synapse in synapses(snn) if synapse.is_identity or synapse.source == INPUT}
    assert kept == {"fp32"}
    assert {synapse.precision for synapse in snn.readout.synapses} == {"fp32"}
    between = [s for layer in snn.layers for s in layer.synapses if not s.is_identity and s.source != INPUT]
    assert len(between) >= 7
    assert {synapse.precision for synapse in between} == {precision}


@given(st.data())
def test_int8_weights_are_the_nearest_multiples_of_a_unit_on_the_grid(data):
    exponent = data.draw(st.integers(8, 20))
    integers = data.draw(st.lists(st.integers(-(2**18), 2**18), min_size=12, max_size=12))
    weight = np.array(integers, np.float64).reshape(3, 2, 2, 1) / 2.0**exponent
    layer = Layer("x", (Synapse("s", weight),), np.zeros((3, 1, 1)), (3, 1, 1), 1.0)
    readout = replace(layer, name="readout")
    snn = Snn(None, (2, 1, 1), (layer,), readout)  # type: ignore[arg-type]
    synapse = reduced(snn, layer, exponent, "int8", {"s": 1}).synapses[0]
    assert synapse.unit is not None
    unit = synapse.unit.reshape(3, 1, 1, 1)
    multiples = synapse.weight / unit
    assert np.array_equal(multiples, np.round(multiples))
    assert np.abs(multiples).max() <= INT8_MAX
    assert np.array_equal(unit * 2.0**exponent, np.round(unit * 2.0**exponent))
    assert np.all(np.abs(synapse.weight - weight) <= unit / 2)
    # As fine as eight bits allow: the next smaller unit on the grid could not hold the largest weight.
    smaller = unit - 2.0**-exponent
    peak = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
    assert np.all((smaller <= 0) | (peak > INT8_MAX * smaller))


def test_sums_of_spikes_that_int8_cannot_hold_keep_float32(converted: Snn):
    layer = converted.layers[1]
    source = layer.synapses[0].source
    largest = converted.largest_values()
    assert reduced(converted, layer, 14, "int8", {**largest, source: 127}).synapses[0].precision == "int8"
    assert reduced(converted, layer, 14, "int8", {**largest, source: 128}).synapses[0].precision == "fp32"


def test_the_files_hold_what_the_network_computes_with(exported: Callable[..., Path]):
    kinds = {}
    for precision in ("fp32", "fp16", "int8"):
        model, manifest = read_onnx(exported(precision=precision))
        assert manifest.numerics.precision == precision
        weights = [t for t in model.graph.initializer if len(t.dims) == 4 and np.prod(t.dims[1:]) > 1]
        kinds[precision] = {numpy_helper.to_array(tensor).dtype.name for tensor in weights}
    assert kinds == {
        "fp32": {"float32"},
        "fp16": {"float32", "float16"},  # the image's convolution and the read-out stay
        "int8": {"float32", "int8"},
    }


@pytest.fixture(scope="module")
def reference(exported: Callable[..., Path], pixels: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per method the logits and exit steps of the int8 form: one step per call, batch 64, one thread."""
    results = {}
    for method in ("qcfs", "qffs"):
        with open_engine(exported(method=method, precision="int8"), batch=64, threads=1) as engine:
            policy = policy_from_manifest(engine.manifest, threshold=0.6)
            results[method] = run_to_the_end(engine, pixels, policy.scale)[0], infer(engine, pixels, policy).steps
    return results


@pytest.mark.parametrize("method", ["qcfs", "qffs"])
@pytest.mark.parametrize(("k", "batch", "threads", "optimize"), [(1, 7, 2, True), (4, 64, 1, True), (4, 7, 2, False)])
@pytest.mark.parametrize("form", ["conv", "matmul"])
def test_int8_gives_the_same_bits_whatever_the_engine_does(
    exported: Callable[..., Path], pixels: np.ndarray, reference, method, k, batch, threads, optimize, form
):
    logits, steps = reference[method]
    path = exported(method=method, precision="int8", steps_per_call=k, form=form)
    count = 28 if batch == 7 else 64
    with open_engine(path, batch=batch, threads=threads, optimize=optimize) as engine:
        policy = policy_from_manifest(engine.manifest, threshold=0.6)
        parts = [pixels[start : start + batch] for start in range(0, count, batch)]
        assert np.array_equal(
            np.concatenate([run_to_the_end(engine, part, policy.scale)[0] for part in parts]), logits[:count]
        )
        assert np.array_equal(np.concatenate([infer(engine, part, policy).steps for part in parts]), steps[:count])
    assert len(set(steps)) > 1  # inputs do stop at different steps


@pytest.mark.parametrize("method", ["qcfs", "qffs"])
@pytest.mark.parametrize(("k", "batch"), [(1, 7), (4, 64)])
def test_fp32_gives_the_same_bits_in_both_forms(exported: Callable[..., Path], pixels: np.ndarray, method, k, batch):
    found = {}
    for form, steps_per_call in (("conv", 1), ("matmul", k)):
        with open_engine(exported(method=method, steps_per_call=steps_per_call, form=form), batch=batch) as engine:
            policy = policy_from_manifest(engine.manifest, threshold=0.6)
            part = pixels[:batch]
            logits = run_to_the_end(engine, part, policy.scale)[0]
            found[form] = logits, infer(engine, part, policy).steps
    for one, other in zip(found["conv"], found["matmul"], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("form", [{}, {"steps_per_call": 4}, {"frames": True}, {"method": "qffs", "steps_per_call": 4}])
def test_a_half_precision_export_adds_up_and_says_that_it_is_approximate(checkpoint: Checkpoint, form):
    made = export(checkpoint, "0" * 64, ExportOptions(steps=12, precision="fp16", **form))
    assert made.manifest.numerics == Numerics(precision="fp16", exact=False, tf32=False, grids=())
    assert made.check.spikes > 1000
    assert 0.9 <= made.check.equal_labels <= 1.0
    assert 0.8 <= made.check.equal_exits <= 1.0


def half_precision(checkpoint: Checkpoint, pixels: np.ndarray):
    """What `rounding_check` takes, for the first images."""
    made = export(checkpoint, "0" * 64, ExportOptions(steps=4, precision="fp16"))
    snn, _ = snap(snn_from_ann(checkpoint.network(), checkpoint.preprocessing, "qcfs"), 4, precision="fp16")
    models = [onnx_from_snn(snn, probe=probe).model for probe in (False, True)]
    return snn, models, made.manifest, pixels[:4]


def scale_weights(model: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensor = next(tensor for tensor in changed.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), name))
    return changed


@pytest.mark.parametrize("factor", [1.01, -1.0, np.nan])
def test_the_rounding_check_finds_a_wrong_weight(checkpoint: Checkpoint, pixels: np.ndarray, factor: float):
    snn, (deployed, probed), manifest, images = half_precision(checkpoint, pixels)
    assert rounding_check(snn, deployed, probed, manifest, images).spikes > 0
    layer = snn.layers[2]
    wrong = [scale_weights(model, f"{layer.name}/i0/w", factor) for model in (deployed, probed)]
    with pytest.raises(
        CheckFailed, match=rf"call 1, layer {layer.name}: (the membranes do not add|spikes that the membr)"
    ):
        rounding_check(snn, *wrong, manifest, images)


def test_the_rounding_check_finds_a_graph_that_is_not_the_probed_one(checkpoint: Checkpoint, pixels: np.ndarray):
    snn, (deployed, probed), manifest, images = half_precision(checkpoint, pixels)
    wrong = scale_weights(deployed, f"{snn.layers[2].name}/i0/w", 1.1)
    with pytest.raises(CheckFailed, match="of the graph and of its probe differ"):
        rounding_check(snn, wrong, probed, manifest, images)


@pytest.mark.parametrize(
    ("precision", "exact", "grids", "message"),
    [
        ("fp16", True, 0, "exact true with precision fp16: expected false, its convolutions round"),
        ("fp16", False, 1, "1 grids with precision fp16: expected none"),
        ("int8", True, 0, "0 grids with precision int8: expected one for each layer"),
    ],
)
def test_numerics_that_contradict_themselves(exported: Callable[..., Path], precision, exact, grids, message):
    known = read_onnx(exported())[1].numerics.grids
    with pytest.raises(DynamicConfidenceError, match=message):
        Numerics(precision=precision, exact=exact, tf32=False, grids=known[:grids])


def test_the_form_of_matrix_products_is_not_for_half_precision():
    with pytest.raises(DynamicConfidenceError, match="form matmul with precision fp16: expected conv"):
        Numerics(precision="fp16", exact=False, tf32=False, grids=(), form="matmul")
    with pytest.raises(
        DynamicConfidenceError, match="--form matmul with --precision fp16: its matrix products are of int"
    ):
        ExportOptions(precision="fp16", form="matmul")


@pytest.mark.parametrize(("architecture", "form"), [("vgg16", "cifar"), ("resnet50", "imagenet")])
@pytest.mark.parametrize("method", ["qcfs", "qffs"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_pools_and_bottlenecks_have_the_form_of_matrix_products(
    architecture: str, form: str, method: str, precision: Precision
):
    """The self-check compares it with the oracle and the simulation, spike by spike."""
    images = replace_fields(GREY, height=32, width=32)
    checkpoint = random_checkpoint(architecture, images, form=form)
    made = export(checkpoint, "0" * 64, ExportOptions(method, 4, 2, precision=precision, form="matmul"))
    operators = {node.op_type for node in onnx.load_model_from_string(made.content).graph.node}
    assert "MatMulIntegerToFloat" in operators
    assert made.check.spikes > 1000


def test_a_source_of_large_sums_is_convolved_in_float32():
    """Bytes above 128 could overflow the 16-bit sums of x86 processors without VNNI."""
    shapes = {"input": (1, 12, 12), "a": (4, 12, 12), "b": (4, 1, 1)}
    pool = Pool("pool", "a", (12, 12), (12, 12), (0, 0), (4, 1, 1))
    weight = np.ones((4, 4, 1, 1))
    first = Layer("a", (Synapse("input", np.ones((4, 1, 1, 1))),), np.zeros((4, 1, 1)), shapes["a"], 1.0)
    second = Layer(
        "b", (Synapse("pool", weight, precision="int8", unit=np.ones(4)),), np.zeros((4, 1, 1)), shapes["b"], 1.0
    )
    readout = Layer("readout", (Synapse("b", weight),), np.zeros((4, 1, 1)), shapes["b"], 1.0)
    snn = Snn(Method("qcfs", 3, None), (1, 12, 12), (first, pool, second), readout)
    nodes = onnx_from_snn(snn, form="matmul").model.graph.node
    assert [node.name for node in nodes if node.op_type == "MatMulIntegerToFloat"] == ["readout/i0/product.0"]
    operators = [node.op_type for node in nodes]
    assert operators.count("Conv") == 2
