"""Which functions of CUDA are called with what, and that each resource goes, also when something fails in between.

The functions are recorded, not run: what CUDA makes of them is in test_on_gpu.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dynamic_confidence.runtime.cuda.bindings import Bindings
from dynamic_confidence.runtime.cuda.errors import CudaError

STREAM = "stream"


class Recorded:
    """The names and numbers of the installed bindings, and functions that only note their arguments."""

    def __init__(self, runtime: Any) -> None:
        self.real, self.calls, self.fails = runtime, [], {}
        self.answers: dict[str, Any] = {"cudaMalloc": 4096}

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.real, name)
        if isinstance(real, type) or not callable(real) or name == "cudaGetErrorString":
            return real

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            return self.fails.get(name, self.real.cudaError_t.cudaSuccess), self.answers.get(name, f"of {name}")

        return call

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.calls]


@pytest.fixture
def runtime() -> Recorded:
    return Recorded(
        pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed: pip install cuda-bindings")
    )


@pytest.fixture
def cuda(runtime: Recorded) -> Any:
    cuda = object.__new__(Bindings)
    cuda._runtime = runtime
    return cuda


def test_copies(cuda: Any, runtime: Recorded):
    array = np.zeros((2, 3), np.float32)
    cuda.copy_to_device(8, array, STREAM)
    cuda.copy_to_host(array, 16, STREAM)
    cuda.copy_on_device(8, 16, 5, STREAM)
    kind = runtime.real.cudaMemcpyKind
    assert runtime.calls == [
        ("cudaMemcpyAsync", 8, array.ctypes.data, 24, kind.cudaMemcpyHostToDevice, STREAM),
        ("cudaMemcpyAsync", array.ctypes.data, 16, 24, kind.cudaMemcpyDeviceToHost, STREAM),
        ("cudaMemcpyAsync", 8, 16, 5, kind.cudaMemcpyDeviceToDevice, STREAM),
    ]


def test_the_order(cuda: Any, runtime: Recorded):
    cuda.record("event", STREAM)
    cuda.wait("event")
    cuda.synchronize(STREAM)
    cuda.launch("graph", STREAM)
    assert runtime.calls == [
        ("cudaEventRecord", "event", STREAM),
        ("cudaEventSynchronize", "event"),
        ("cudaStreamSynchronize", STREAM),
        ("cudaGraphLaunch", "graph", STREAM),
    ]


def test_every_resource_is_released(cuda: Any, runtime: Recorded):
    with cuda.device_memory(5) as address, cuda.stream() as stream, cuda.event() as event:
        assert (address, stream, event) == (4096, "of cudaStreamCreateWithFlags", "of cudaEventCreateWithFlags")
        made = len(runtime.calls)
    assert runtime.calls[:made] == [
        ("cudaMalloc", 5),
        ("cudaStreamCreateWithFlags", runtime.real.cudaStreamNonBlocking),
        ("cudaEventCreateWithFlags", runtime.real.cudaEventDisableTiming),
    ]
    assert runtime.calls[made:] == [("cudaEventDestroy", event), ("cudaStreamDestroy", stream), ("cudaFree", 4096)]


def test_an_error_on_the_way_is_the_one_told(cuda: Any, runtime: Recorded):
    runtime.fails["cudaFree"] = runtime.real.cudaError_t.cudaErrorIllegalAddress
    with pytest.raises(ZeroDivisionError), cuda.device_memory(5):
        raise ZeroDivisionError
    assert runtime.names == ["cudaMalloc", "cudaFree"]
    with (
        pytest.raises(CudaError, match=r"cudaFree failed: .*illegal.* \(cudaErrorIllegalAddress\)"),
        cuda.device_memory(5),
    ):
        pass


def test_a_graph(cuda: Any, runtime: Recorded):
    with cuda.capture(lambda: cuda.synchronize("work"), STREAM) as graph:
        assert graph == "of cudaGraphInstantiate"
        assert runtime.calls == [
            ("cudaStreamBeginCapture", STREAM, runtime.real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal),
            ("cudaStreamSynchronize", "work"),
            ("cudaStreamEndCapture", STREAM),
            ("cudaGraphInstantiate", "of cudaStreamEndCapture", 0),
            ("cudaGraphDestroy", "of cudaStreamEndCapture"),
        ]
    assert runtime.calls[-1] == ("cudaGraphExecDestroy", "of cudaGraphInstantiate")


@pytest.mark.parametrize("invalidated", [True, False])
def test_work_that_fails_ends_the_capture(cuda: Any, runtime: Recorded, invalidated: bool):
    def work() -> None:
        if invalidated:
            runtime.fails["cudaStreamEndCapture"] = runtime.real.cudaError_t.cudaErrorStreamCaptureInvalidated
        raise CudaError("the first one")

    with pytest.raises(CudaError, match="the first one"), cuda.capture(work, STREAM):
        pass
    destroyed = [] if invalidated else ["cudaGraphDestroy"]
    assert runtime.names == ["cudaStreamBeginCapture", "cudaStreamEndCapture", *destroyed, "cudaGetLastError"]


def test_a_capture_that_is_found_invalid_at_its_end(cuda: Any, runtime: Recorded):
    runtime.fails["cudaStreamEndCapture"] = runtime.real.cudaError_t.cudaErrorStreamCaptureInvalidated
    with pytest.raises(CudaError, match=r"cudaStreamEndCapture failed: .*cudaErrorStreamCaptureInvalidated"):
        cuda.capture(lambda: None, STREAM).__enter__()
    assert runtime.names[-1] == "cudaGetLastError"


def test_a_graph_that_cannot_be_instantiated(cuda: Any, runtime: Recorded):
    runtime.fails["cudaGraphInstantiate"] = runtime.real.cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(CudaError, match=r"cudaGraphInstantiate failed: out of memory .*Use a smaller batch"):
        cuda.capture(lambda: None, STREAM).__enter__()
    assert runtime.names[-2:] == ["cudaGraphDestroy", "cudaGetLastError"]
