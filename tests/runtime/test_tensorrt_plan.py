"""Loading a plan: what the library refuses, a plan of another network, and every name that is used of the library."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from memory_network import manifest_of

from dynamic_confidence.runtime.cuda.errors import CudaError
from dynamic_confidence.runtime.engines import tensorrt_plan
from dynamic_confidence.runtime.engines.device_buffers import layout_from_manifest
from dynamic_confidence.runtime.engines.tensorrt_plan import (
    Contexts,
    check_signature,
    execution_contexts,
    require,
    signature_of_engine,
)
from dynamic_confidence.runtime.errors import BackendMissing, DynamicConfidenceError
from dynamic_confidence.runtime.onnx_file import read_onnx
from dynamic_confidence.runtime.plan_file import EngineIdentity, PlanInfo
from dynamic_confidence.runtime.signature import Tensor, signature_of_manifest
from dynamic_confidence.runtime.tensorrt_library import logger

MANIFEST = manifest_of([([3], 0.5), ([2, 2], 0.0)], spikes=True)
VERSION = "1.7.1.116"
BUILT = EngineIdentity("rtx", VERSION, ("sm86", "sm89"), 4, "net.onnx", "0" * 64, "0" * 64)
COMMAND = r"Build it again with `dc-build net\.onnx -o net\.plan --flavour rtx --target sm86,sm89 --batch 4`"


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")


def no_memory(size: int) -> Any:
    raise AssertionError("memory was allocated for a plan that was not loaded")


def contexts_of(trt: Any, content: bytes = b"vtrt" + bytes(100)) -> None:
    layout = layout_from_manifest(MANIFEST, 1)
    with execution_contexts(trt, Path("net.plan"), PlanInfo(MANIFEST, BUILT, content), layout, 0, 7, no_memory):
        raise AssertionError("a plan was loaded")


def test_a_plan_that_the_library_refuses(rtx):
    with pytest.raises(
        DynamicConfidenceError, match=rf"net\.plan: TensorRT-RTX {VERSION} cannot load it \(.*\w.*\)\. {COMMAND}"
    ):
        contexts_of(rtx)
    assert logger(rtx).errors


def test_a_library_that_cannot_start(rtx, monkeypatch: pytest.MonkeyPatch):
    def construct(log: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(rtx, "Runtime", construct)
    message = rf"net\.plan: TensorRT-RTX {VERSION} cannot start \(it gave no reason\)\. Install a driver that serves"
    with pytest.raises(BackendMissing, match=message):
        contexts_of(rtx)


@pytest.mark.parametrize("answer", [None, False])
def test_what_the_library_refuses(rtx, answer: object):
    assert require(True, rtx, Path("net.plan"), BUILT, "do it") is True
    logger(rtx).errors[:] = ["first", "second", "third", "fourth"]
    with pytest.raises(
        DynamicConfidenceError, match=rf"cannot take an address for 'x' \(first; second; third\)\. {COMMAND}"
    ):
        require(answer, rtx, Path("net.plan"), BUILT, "take an address for 'x'")


def test_a_call_that_the_library_refuses(rtx):
    logger(rtx).errors[:] = ["no memory"]
    contexts = Contexts(rtx, 7)
    contexts.both.append(SimpleNamespace(execute_async_v3=lambda stream: False))
    with pytest.raises(CudaError, match=r"^execute_async_v3 failed: no memory\. Open the engine again"):
        contexts.enqueue(0)


def test_what_can_be_captured(rtx):
    contexts = Contexts(rtx, 7)
    contexts.both[:] = [SimpleNamespace(), SimpleNamespace(is_stream_capturable=lambda stream: True)]
    contexts.require_capturable()  # a release that cannot say it, and one that says yes
    contexts.both[0] = SimpleNamespace(is_stream_capturable=lambda stream: False)
    with pytest.raises(CudaError, match="TensorRT says that this plan cannot be captured"):
        contexts.require_capturable()


def test_the_signature_of_an_engine(rtx):
    """Read through the names of the installed library; the engine is a list of tensors."""
    tensors = signature_of_manifest(MANIFEST)
    dtypes = {"float32": "FLOAT", "uint8": "UINT8", "int64": "INT64"}
    engine = SimpleNamespace(
        num_io_tensors=len(tensors),
        get_tensor_name=lambda index: list(tensors)[index],
        get_tensor_mode=lambda name: getattr(rtx.TensorIOMode, tensors[name].mode.upper()),
        get_tensor_dtype=lambda name: getattr(rtx.DataType, dtypes[tensors[name].dtype]),
        get_tensor_location=lambda name: rtx.TensorLocation.DEVICE,
        get_tensor_shape=lambda name: rtx.Dims(tensors[name].shape),
    )
    assert signature_of_engine(rtx, engine) == tensors
    engine.get_tensor_location = lambda name: rtx.TensorLocation.HOST
    assert signature_of_engine(rtx, engine)["label"] == Tensor("output", "host int64", (1, -1))


def test_the_signature_of_a_manifest_is_that_of_its_network(exported: Callable[..., Path]):
    model, manifest = read_onnx(exported(method="qffs", steps_per_call=4))
    found = signature_of_manifest(manifest)
    for mode, values in (("input", model.graph.input), ("output", model.graph.output)):
        shapes = {v.name: tuple(d.dim_value or -1 for d in v.type.tensor_type.shape.dim) for v in values}
        assert shapes == {name: tensor.shape for name, tensor in found.items() if tensor.mode == mode}


@pytest.mark.parametrize(
    ("name", "found", "message"),
    [
        ("label", None, r"tensor 'label' of the plan is missing, its manifest says output int64 \[1, -1\]\. Build"),
        ("more", Tensor("input", "HALF", (2,)), r"'more' of the plan is input HALF \[2\], its manifest says missing"),
        ("alpha", Tensor("input", "host float32", ()), r"'alpha' of the plan is input host float32 \[\], its manifest"),
        (
            "label",
            Tensor("input", "int64", (1, -1)),
            r"'label' of the plan is input int64 \[1, -1\], its manifest says",
        ),
        (
            "logits",
            Tensor("output", "float32", (1, -1, 4)),
            r"is output float32 \[1, -1, 4\], its manifest says output",
        ),
        (
            "logits",
            Tensor("output", "float32", (1, -1)),
            r"is output float32 \[1, -1\], its manifest says output float32",
        ),
    ],
)
def test_a_plan_of_another_network(name: str, found: Tensor | None, message: str):
    wanted = signature_of_manifest(MANIFEST)
    other = {key: value for key, value in (wanted | {name: found}).items() if value is not None}
    with pytest.raises(DynamicConfidenceError, match=message):
        check_signature(Path("net.plan"), BUILT, other, wanted)


def test_a_plan_for_one_batch_only_may_have_fixed_dimensions():
    wanted = signature_of_manifest(MANIFEST)
    fixed = {n: t._replace(shape=tuple(4 if dim == -1 else dim for dim in t.shape)) for n, t in wanted.items()}
    check_signature(Path("net.plan"), BUILT, fixed, wanted)


def test_shapes_and_addresses_are_set_once():
    """Every input's shape first, since the outputs' follow from them; what the library answers is checked."""
    layout, told = layout_from_manifest(MANIFEST, 3), []
    table, wanted = layout.tensors[1], signature_of_manifest(MANIFEST)
    context = SimpleNamespace(
        active_optimization_profile=-1,
        set_device_memory=lambda address, size: told.append(("memory", address, size)),
        set_optimization_profile_async=lambda index, stream: told.append(("profile", index, stream)),
        set_input_shape=lambda name, shape: told.append(("shape", name, shape)),
        get_tensor_shape=lambda name: table[name].shape,
        set_tensor_address=lambda name, address: told.append((name, address)),
    )
    answers: list[str] = []
    tensorrt_plan._bind(context, table, wanted, 4096, (8192, 100), 7, lambda answer, what: answers.append(what))
    dynamic = [name for name, tensor in wanted.items() if tensor.mode == "input" and name != "alpha"]
    assert told[:2] == [("memory", 8192, 100), ("profile", 0, 7)]
    assert told[2 : 2 + len(dynamic)] == [("shape", name, table[name].shape) for name in table if name in dynamic]
    assert told[2 + len(dynamic) :] == [(name, 4096 + place.offset) for name, place in table.items()]
    assert answers[:2] == ["take its optimisation profile", "take the shape [3, 1, 2, 3] for 'input'"]
    assert {"keep to the shape [1, 3] for 'label'", "take an address for 'label'"} <= set(answers)
    context.get_tensor_shape = lambda name: (9,)
    seen = []
    tensorrt_plan._bind(context, table, wanted, 0, None, 7, lambda answer, what: seen.append((answer, what)))
    assert (False, "keep to the shape [1, 3] for 'label'") in seen


def test_the_runtime_configuration(rtx):
    """By the names that a release has: all of them, none of RTX, or no configuration at all."""
    given, strategies = [], []
    user = rtx.ExecutionContextAllocationStrategy.USER_MANAGED
    config = SimpleNamespace(
        set_execution_context_allocation_strategy=strategies.append,
        dynamic_shapes_kernel_specialization_strategy=None,
        cuda_graph_strategy=None,
        create_runtime_cache=lambda: "cache",
        set_runtime_cache=given.append,
    )
    assert tensorrt_plan._runtime_config(rtx, SimpleNamespace(create_runtime_config=lambda: config), user) == (
        config,
        "cache",
    )
    assert given == ["cache"]
    assert config.cuda_graph_strategy == rtx.CudaGraphStrategy.DISABLED
    strategy = rtx.DynamicShapesKernelSpecializationStrategy
    assert config.dynamic_shapes_kernel_specialization_strategy == strategy.EAGER
    plain = SimpleNamespace(set_execution_context_allocation_strategy=strategies.append)
    assert tensorrt_plan._runtime_config(rtx, SimpleNamespace(create_runtime_config=lambda: plain), user) == (
        plain,
        None,
    )
    assert tensorrt_plan._runtime_config(rtx, SimpleNamespace(), user) == (None, None)
    assert strategies == [rtx.ExecutionContextAllocationStrategy.USER_MANAGED] * 2


def test_the_names_of_the_library(rtx):
    """Every name that the engine uses on a thing of TensorRT is one in the installed bindings."""
    owners = {
        "trt": [rtx],
        "log": [logger(rtx)],
        "runtime": [rtx.Runtime],
        "engine": [rtx.ICudaEngine],
        "context": [rtx.IExecutionContext],
        "config": [rtx.IRuntimeConfig],
    }
    nested = (
        "TensorIOMode",
        "TensorLocation",
        "CudaGraphStrategy",
        "DynamicShapesKernelSpecializationStrategy",
        "ExecutionContextAllocationStrategy",
    )
    used: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(Path(tensorrt_plan.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in owners:
            used.add((node.value.id, node.attr))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr in nested:
            assert hasattr(getattr(rtx, node.value.attr), node.attr), node.attr
            used.add((node.value.attr, node.attr))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "hasattr":
            used.add((node.args[0].id, node.args[1].value))  # type: ignore[attr-defined]
    assert {
        ("runtime", "deserialize_cuda_engine"),
        ("engine", "create_execution_context"),
        ("context", "set_tensor_address"),
        ("context", "is_stream_capturable"),
        ("config", "create_runtime_cache"),
        ("TensorIOMode", "INPUT"),
        ("CudaGraphStrategy", "DISABLED"),
        ("ExecutionContextAllocationStrategy", "USER_MANAGED"),
        ("engine", "device_memory_size_v2"),
        ("context", "set_device_memory"),
    } <= used
    for owner, name in used:
        assert any(hasattr(thing, name) for thing in owners.get(owner, [getattr(rtx, owner, None)])), (owner, name)
    assert hasattr(rtx.IExecutionContext, "execute_async_v3")
