"""What only a GPU can tell: CUDA keeps its order, and a plan gives the same bits as ONNX Runtime on the CPU."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynamic_confidence.runtime.continuous_batching import answer_stream
from dynamic_confidence.runtime.cuda import IMPLEMENTATIONS, bindings, open_cuda, pycuda
from dynamic_confidence.runtime.cuda.errors import CudaError
from dynamic_confidence.runtime.engine import open_engine
from dynamic_confidence.runtime.exit_policy import policy_from_manifest
from dynamic_confidence.runtime.stepping import infer, run_to_the_end
from dynamic_confidence.runtime.tensorrt_library import MODULES
from dynamic_confidence.toolchain.write_plan import write_plan

pytestmark = pytest.mark.gpu


@pytest.fixture(params=IMPLEMENTATIONS)
def cuda(request: pytest.FixtureRequest) -> Any:
    if {"bindings": bindings, "pycuda": pycuda}[request.param].load() is None:
        pytest.skip(f"{request.param} is not installed")
    with open_cuda(request.param) as opened:
        yield opened


def test_copies_in_the_order_of_the_stream(cuda):
    size = 1 << 20
    source = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    with cuda.device_memory(2 * size) as address, cuda.stream() as stream, cuda.event() as event:
        assert address % 256 == 0
        there, back = cuda.pinned_memory(size), cuda.pinned_memory(size)
        there[:] = source
        cuda.copy_to_device(address, there, stream)
        cuda.copy_on_device(address + size, address, size, stream)
        cuda.copy_to_host(back, address + size, stream)
        cuda.record(event, stream)
        cuda.wait(event)
        np.testing.assert_array_equal(back, source)
        cuda.synchronize(stream)
    view = back[5:7]
    del back
    gc.collect()
    np.testing.assert_array_equal(view, source[5:7])  # the memory lives as long as its last view


def test_a_graph_does_again_what_was_captured():
    with open_cuda("bindings") as cuda, cuda.device_memory(256) as address, cuda.stream() as stream:
        there, back = cuda.pinned_memory(4), cuda.pinned_memory(4)

        def work() -> None:
            cuda.copy_to_device(address, there, stream)
            cuda.copy_to_host(back, address, stream)

        back[:] = 0
        with cuda.capture(work, stream) as graph:
            assert not back.any()
            for value in (3, 4):
                there[:] = value
                cuda.launch(graph, stream)
                cuda.synchronize(stream)
                assert (back == value).all()


def test_a_capture_that_fails_leaves_a_stream_that_works():
    with open_cuda("bindings") as cuda, cuda.device_memory(256) as address, cuda.stream() as stream:
        back = cuda.pinned_memory(4)
        with pytest.raises(CudaError), cuda.capture(lambda: cuda.synchronize(stream), stream):
            pass
        cuda.copy_to_host(back, address, stream)
        cuda.synchronize(stream)


FLAVOURS = [("tensorrt", ("current",)), ("rtx", ())]


@pytest.fixture(scope="module")
def built(exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """`built(flavour, targets, method="qffs") -> (the .onnx, its plan for 7 inputs)`"""
    folder, made = tmp_path_factory.mktemp("plans"), {}

    def build_once(flavour: Any, targets: tuple[str, ...], **form: Any) -> tuple[Path, Path]:
        pytest.importorskip(MODULES[flavour], reason=f"{flavour} is not installed")
        source = exported(**form)
        if (flavour, source) not in made:
            made[flavour, source] = path = folder / f"{flavour}{len(made)}.plan"
            write_plan(source, path, flavour=flavour, targets=targets, batch=7)
        return source, made[flavour, source]

    return build_once


@pytest.mark.parametrize(("flavour", "method", "k"), list(product(FLAVOURS, ("qcfs", "qffs"), (1, 4))))
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(("batch", "cuda_graphs", "speculate"), list(product((1, 7), (True, False), (False, True))))
def test_the_same_bits_as_on_the_cpu(
    built: Callable[..., tuple[Path, Path]],
    pixels: np.ndarray,
    flavour: tuple[str, tuple[str, ...]],
    method: str,
    k: int,
    precision: str,
    batch: int,
    cuda_graphs: bool,
    speculate: bool,
):
    """Logits and silence of every step, and the exits of inputs that stop early, on 14 images one after the other."""
    source, path = built(*flavour, method=method, steps_per_call=k, precision=precision)
    options = {"batch": batch, "cuda_graphs": cuda_graphs, "speculate": speculate}
    with open_engine(source, batch=batch) as cpu, open_engine(path, **options) as gpu:
        assert ("no CUDA graphs" in gpu.backend) != cuda_graphs, gpu.backend
        policy = policy_from_manifest(cpu.manifest, threshold=0.6)
        for start in range(0, 14, batch):
            images = pixels[start : start + batch]
            for one, other in zip(
                run_to_the_end(gpu, images, policy.scale), run_to_the_end(cpu, images, policy.scale), strict=True
            ):
                np.testing.assert_array_equal(one, other)
            found, expected = infer(gpu, images, policy), infer(cpu, images, policy)
            np.testing.assert_array_equal(found.label, expected.label)
            np.testing.assert_array_equal(found.steps, expected.steps)
            np.testing.assert_array_equal(found.logits, expected.logits)
            np.testing.assert_allclose(found.confidence, expected.confidence, rtol=1e-5)  # an exponential rounds
            assert found.reason == expected.reason


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("speculate", [False, True])
def test_another_image_and_a_reset_in_the_middle(
    built: Callable[..., tuple[Path, Path]], pixels: np.ndarray, flavour: tuple[str, tuple[str, ...]], speculate: bool
):
    """A network that takes one image may be given another at every step; what was launched ahead is then discarded."""
    source, path = built(*flavour, method="qcfs", steps_per_call=1)
    with open_engine(source) as cpu, open_engine(path, speculate=speculate) as gpu:
        for images in ([0, None, 1, None], [2, None, None], [3, 4, 5, None, 6]):
            cpu.reset(2.0)
            gpu.reset(2.0)
            for image in images:
                one = None if image is None else pixels[image : image + 1]
                found, expected = gpu.step(one), cpu.step(one)
                np.testing.assert_array_equal(found.logits, expected.logits)
                np.testing.assert_array_equal(found.label, expected.label)


@pytest.mark.parametrize(("flavour", "method", "k"), list(product(FLAVOURS, ("qcfs", "qffs"), (1, 4))))
@pytest.mark.parametrize("speculate", [False, True])
def test_a_batch_is_refilled(
    built: Callable[..., tuple[Path, Path]],
    pixels: np.ndarray,
    flavour: tuple[str, tuple[str, ...]],
    method: str,
    k: int,
    speculate: bool,
):
    """Answers of inputs that enter when others stop, as the CPU gives them alone."""
    source, path = built(*flavour, method=method, steps_per_call=k)
    with open_engine(source) as cpu, open_engine(path, batch=7, speculate=speculate) as gpu:
        policy = policy_from_manifest(cpu.manifest, threshold=0.6)
        expected = [infer(cpu, image[None], policy).rows[0] for image in pixels[:24]]
        for number, answer in answer_stream(gpu, pixels[:24], policy):
            np.testing.assert_array_equal(answer.logits, expected[number].logits)
            assert (answer.steps, answer.reason) == (expected[number].steps, expected[number].reason)
    assert len({answer.steps for answer in expected}) > 2


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_plan_names_its_layers(built: Callable[..., tuple[Path, Path]], flavour: tuple[str, tuple[str, ...]]):
    with open_engine(built(*flavour, method="qcfs", steps_per_call=1)[1]) as engine:
        assert json.loads(engine.layers())["Layers"]  # type: ignore[attr-defined]


def test_two_engines_at_once_and_one_after_the_other(built: Callable[..., tuple[Path, Path]], pixels: np.ndarray):
    _, path = built("rtx", (), method="qffs", steps_per_call=1)
    with ExitStack() as stack:
        engines = [stack.enter_context(open_engine(path)) for _ in range(2)]
        first = [engine.step(pixels[:1]).logits.copy() for engine in engines]
        np.testing.assert_array_equal(*first)
    with open_engine(path) as engine:
        np.testing.assert_array_equal(engine.step(pixels[:1]).logits, first[0])


def test_without_capture_the_backend_says_so(
    built: Callable[..., tuple[Path, Path]], pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    def refuse(self: object, work: object, stream: object) -> None:
        raise CudaError("pycuda has none")

    monkeypatch.setattr(bindings.Bindings, "capture", refuse)
    _, path = built("rtx", (), method="qffs", steps_per_call=1)
    with open_engine(path, cuda="bindings") as engine:
        assert engine.backend.endswith(", no CUDA graphs: pycuda has none)")
        engine.step(pixels[:1])
