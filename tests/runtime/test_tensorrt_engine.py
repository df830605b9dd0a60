"""The engine of plans: what it says before a GPU is needed, how its parts fit, and on a GPU the CPU's bits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from memory_network import PlainNetwork, answer_of, manifest_of, scribbles_first, tensors_of
from queued_memory import ADDRESS, STREAM, QueuedMemory

from dynamic_confidence.runtime.cuda.errors import CudaError
from dynamic_confidence.runtime.engine import open_engine
from dynamic_confidence.runtime.engines import tensorrt as module
from dynamic_confidence.runtime.engines.device_buffers import Layout, layout_from_manifest
from dynamic_confidence.runtime.errors import BackendMissing, DynamicConfidenceError
from dynamic_confidence.runtime.gpu import device_target
from dynamic_confidence.runtime.plan_file import EngineIdentity, Sidecar, json_from_sidecar, sidecar_path

MANIFEST = manifest_of([([3], 0.5), ([2, 2], 0.0)], spikes=True)
VERSION = "1.7.1.116"
COMMAND = r"Build it again with `dc-build \S*net\.onnx -o \S*net\.plan --flavour rtx --target sm86,sm89 --batch 4"


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """The header of a plan and its sidecar; nothing here executes the rest."""
    content = b"vtrt" + bytes(20) + bytes(map(int, VERSION.split("."))) + b"the engine"
    sha256 = hashlib.sha256(content).hexdigest()
    identity = EngineIdentity("rtx", VERSION, ("sm86", "sm89"), 4, "net.onnx", "0" * 64, sha256)
    path = tmp_path / "net.plan"
    path.write_bytes(content)
    sidecar_path(path).write_bytes(json_from_sidecar(Sidecar(MANIFEST, identity)))
    return path


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT and its Runtime must not be reached."""

    def load(flavour: str) -> None:
        raise AssertionError("TensorRT was imported")

    monkeypatch.setattr(module, "load_library", load)


def test_the_hash_comes_first(untouched: None, plan: Path):
    plan.write_bytes(plan.read_bytes() + b"!")
    with pytest.raises(DynamicConfidenceError, match=r"are not the plan that net\.plan\.json describes"):
        open_engine(plan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"provider": "tensorrt"}, r"net\.plan: provider tensorrt is for \.onnx files"),
        ({"threads": 1}, r"net\.plan: threads 1 is for \.onnx files"),
        ({"optimize": False}, r"net\.plan: optimize False is for \.onnx files"),
        (
            {"batch": 5},
            r"net\.plan: batch 5, but it was built for 4 at most\. Build it again with .* --batch 5 --force`",
        ),
    ],
)
def test_then_come_the_options(untouched: None, plan: Path, monkeypatch: pytest.MonkeyPatch, options, message: str):
    monkeypatch.setattr(module, "open_cuda", lambda choice: pytest.fail("CUDA was reached"))
    with pytest.raises(DynamicConfidenceError, match=message) as caught:
        open_engine(plan, **options)
    assert caught.value.exit_code == 2


def test_no_gpu_is_said_before_anything_of_tensorrt(rtx, plan: Path, monkeypatch: pytest.MonkeyPatch):
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")

    def construct(*arguments: object) -> None:
        pytest.fail("a Runtime was made")

    monkeypatch.setattr(rtx, "Runtime", construct)
    monkeypatch.setattr(module, "load_library", lambda flavour: pytest.fail("TensorRT was imported"))
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (runtime.cudaError_t.cudaErrorNoDevice, None))
    with pytest.raises(BackendMissing, match="found no NVIDIA GPU") as caught:
        open_engine(plan)
    assert caught.value.exit_code == 3


@pytest.mark.skipif(device_target() is not None, reason="this machine has a GPU")
def test_this_machine_without_a_gpu(untouched: None, plan: Path):
    """The same with the real packages: nothing is replaced but TensorRT."""
    with pytest.raises(BackendMissing, match=r"found no NVIDIA (driver|GPU)|needs cuda-bindings or pycuda") as caught:
        open_engine(plan)
    assert caught.value.exit_code == 3


def on_a_queue(monkeypatch: pytest.MonkeyPatch, cuda: QueuedMemory, **library: Any) -> None:
    """A queue in the place of CUDA; TensorRT is only its version."""

    @contextmanager
    def opened(choice: str) -> Iterator[QueuedMemory]:
        yield cuda

    trt = SimpleNamespace(**{"__version__": VERSION, "ComputeCapability": SimpleNamespace(SM89=1)} | library)
    monkeypatch.setattr(module, "open_cuda", opened)
    monkeypatch.setattr(module, "load_library", lambda flavour: trt)


def test_another_release(monkeypatch: pytest.MonkeyPatch, plan: Path):
    on_a_queue(monkeypatch, QueuedMemory(), __version__="1.8.0.5")
    with pytest.raises(
        DynamicConfidenceError, match=rf"installed is 1\.8\.0\.5, and a plan runs with its own .*{COMMAND}"
    ):
        open_engine(plan)


def test_another_gpu(monkeypatch: pytest.MonkeyPatch, plan: Path):
    cuda = QueuedMemory()
    cuda.target = "sm90"
    on_a_queue(monkeypatch, cuda)
    with pytest.raises(DynamicConfidenceError, match=r"this GPU is sm90 \(host memory\)\. .*--target sm80\+ --batch 4"):
        open_engine(plan)
    cuda.target = "sm75"
    on_a_queue(monkeypatch, cuda, ComputeCapability=SimpleNamespace(SM75=1))
    with pytest.raises(DynamicConfidenceError, match=r"this GPU is sm75 \(host memory\)\. .*--target sm75 --batch 4"):
        open_engine(plan)
    assert cuda.made == []


class TestOnAQueue:
    """The engine without TensorRT and CUDA: only how its parts are put together."""

    @pytest.fixture
    def cuda(self, monkeypatch: pytest.MonkeyPatch) -> QueuedMemory:
        cuda = QueuedMemory()
        on_a_queue(monkeypatch, cuda)

        @contextmanager
        def contexts(trt, path, plan, layout: Layout, address: int, stream: int, device_memory: Any) -> Iterator[Any]:
            assert (address, stream) == (ADDRESS, STREAM)
            cuda.alive.append("contexts")

            def enqueue(direction: int) -> None:
                cuda.give(lambda: scribbles_first(tensors_of(layout, direction, cuda.memory)))

            try:
                yield SimpleNamespace(enqueue=enqueue, require_capturable=lambda: None)
            finally:
                assert cuda.alive.pop() == "contexts"

        monkeypatch.setattr(module, "execution_contexts", contexts)
        return cuda

    @pytest.mark.parametrize("speculate", [False, True])
    def test_steps(self, cuda: QueuedMemory, plan: Path, speculate: bool):
        plain = PlainNetwork(MANIFEST, layout_from_manifest(MANIFEST, 2), MANIFEST.calibration.scale)
        with open_engine(plan, batch=2, speculate=speculate) as engine:
            assert engine.batch == 2
            assert engine.manifest == MANIFEST
            assert engine.backend == "TensorRT-RTX 1.7.1.116 on host memory (queue 1.0, CUDA graphs)"
            given = len(cuda.queue)
            for call in range(MANIFEST.max_steps):
                pixels = np.full((2, 1, 2, 3), 9, np.uint8) if call == 0 else None
                found, expected = engine.step(pixels), answer_of(plain(None if call else 9))
                for name, values in found._asdict().items():
                    np.testing.assert_array_equal(values, expected[name])
            # The pixels, and for each call the network and the copy of its answers: nothing beyond the last step.
            assert len(cuda.queue) - given == 1 + 2 * MANIFEST.max_steps
            assert cuda.alive[-2:] == ["graph 4", "graph 5"]
            assert cuda.alive.index("contexts") == len(cuda.alive) - 3
        assert cuda.alive == []

    @pytest.mark.parametrize("speculate", [False, True])
    def test_refills(self, cuda: QueuedMemory, plan: Path, speculate: bool):
        """One row gets another image, the other goes on; an engine that guessed has to guess no more."""
        plain = PlainNetwork(MANIFEST, layout_from_manifest(MANIFEST, 2), MANIFEST.calibration.scale)
        with open_engine(plan, batch=2, speculate=speculate) as engine:
            for call in range(MANIFEST.max_steps):
                if call in (1, 4, 5):
                    engine.refill(np.array([call % 2]), np.full((1, 1, 2, 3), 50 + call, np.uint8))
                    plain.refill([call % 2], 50 + call)
                found = engine.step(np.full((2, 1, 2, 3), 9, np.uint8) if call == 0 else None)
                for name, values in answer_of(plain(None if call else 9)).items():
                    np.testing.assert_array_equal(getattr(found, name), values)
            with pytest.raises(DynamicConfidenceError, match=r"rows \[2\]: expected whole numbers from 0 to 1, "):
                engine.refill(np.array([2]), np.zeros((1, 1, 2, 3), np.uint8))

    def test_a_refill_that_fails_needs_a_reset(self, cuda: QueuedMemory, plan: Path):
        pixels = np.full((2, 1, 2, 3), 9, np.uint8)
        with open_engine(plan, batch=2) as engine:
            expected = engine.step(pixels).logits.copy()
            cuda.fails_at = cuda.calls + 1
            with pytest.raises(CudaError, match="as the test asked"):
                engine.refill(np.array([0]), pixels[:1])
            with pytest.raises(DynamicConfidenceError, match=r"failed or was interrupted: call reset\(\) before step"):
                engine.step()
            engine.reset(MANIFEST.calibration.scale)
            np.testing.assert_array_equal(engine.step(pixels).logits, expected)

    @pytest.mark.parametrize(
        ("captures", "graphs", "said"),
        [(True, False, "queue 1.0, no CUDA graphs)"), (False, True, "queue 1.0, no CUDA graphs: this queue has none)")],
    )
    def test_without_graphs(self, cuda: QueuedMemory, plan: Path, captures: bool, graphs: bool, said: str):
        cuda.captures = captures
        with open_engine(plan, cuda_graphs=graphs) as engine:
            assert engine.backend.endswith(said)

    def test_a_closed_engine_says_so(self, cuda: QueuedMemory, plan: Path):
        with open_engine(plan) as engine:
            logits = engine.step(np.zeros((1, 1, 2, 3), np.uint8)).logits
            kept = logits.copy()
        with pytest.raises(
            DynamicConfidenceError, match=r"this engine is closed: call step\(\) inside its `with` block"
        ):
            engine.step()
        with pytest.raises(DynamicConfidenceError, match=r"this engine is closed: call reset\(\) inside its `with` bl"):
            engine.reset(1.0)
        with pytest.raises(DynamicConfidenceError, match=r"this engine is closed: call refill\(\) inside its `with` b"):
            engine.refill(np.array([0]), np.zeros((1, 1, 2, 3), np.uint8))
        np.testing.assert_array_equal(logits, kept)
        assert cuda.alive == []

    def test_a_construction_that_fails_leaves_nothing(self, cuda: QueuedMemory, plan: Path):
        with open_engine(plan, cuda_graphs=False):
            calls = cuda.calls
        for number in range(1, calls + 1):
            cuda.calls, cuda.fails_at, cuda.queue, cuda.done = 0, number, [], 0
            with pytest.raises(CudaError, match="as the test asked"):
                open_engine(plan, cuda_graphs=False)
            assert cuda.alive == []
