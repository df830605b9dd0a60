"""CUDA through cuda-bindings, which is the CUDA runtime API in Python."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from .errors import CudaError, broken_package, no_device, unusable_driver

MODULE = "cuda.bindings.runtime"


def load() -> ModuleType | None:
    """Import the runtime API; None where it is not installed. Raises: BackendMissing for one that does not load."""
    try:
        return import_module(MODULE)
    except ModuleNotFoundError as error:
        if MODULE.startswith(str(error.name)):
            return None
        raise broken_package("cuda-bindings", error) from error
    except ImportError as error:
        raise broken_package("cuda-bindings", error) from error


@contextmanager
def opened(runtime: Any) -> Iterator[Bindings]:
    """Open the first GPU. Raises: BackendMissing without a driver that fits or without a GPU."""
    root = runtime.__name__.rpartition(".")[0]
    package = f"cuda-bindings {import_module(root).__version__}"
    code, _ = runtime.cudaGetDeviceCount()
    if code == runtime.cudaError_t.cudaErrorInsufficientDriver:
        raise unusable_driver(package)
    if code == runtime.cudaError_t.cudaErrorNoDevice:
        raise no_device(_text(runtime, code))
    # The primary context, which belongs to the process and outlives this block.
    yield Bindings(runtime, package)


class Bindings:
    """See `Cuda`."""

    def __init__(self, runtime: Any, package: str) -> None:
        self._runtime, self.package = runtime, package
        self._call("cudaGetDeviceCount")
        self._call("cudaSetDevice", 0)
        name: bytes = self._call("cudaGetDeviceProperties", 0).name
        self.device = name.partition(b"\0")[0].decode()
        capability = (
            runtime.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor,
            runtime.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor,
        )
        self.target = "sm" + "".join(str(self._call("cudaDeviceGetAttribute", number, 0)) for number in capability)

    @contextmanager
    def device_memory(self, size: int) -> Iterator[int]:
        with self._owned("cudaFree", self._call("cudaMalloc", size)) as address:
            yield int(address)

    def pinned_memory(self, size: int) -> np.ndarray:
        address = self._call("cudaMallocHost", size)
        block = (ctypes.c_uint8 * size).from_address(int(address))
        weakref.finalize(block, self._runtime.cudaFreeHost, address)
        return np.frombuffer(memoryview(block), np.uint8)

    @contextmanager
    def stream(self) -> Iterator[Any]:
        made = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        with self._owned("cudaStreamDestroy", made) as stream:
            yield stream

    def handle(self, stream: Any) -> int:
        return int(stream)

    @contextmanager
    def event(self) -> Iterator[Any]:
        made = self._call("cudaEventCreateWithFlags", self._runtime.cudaEventDisableTiming)
        with self._owned("cudaEventDestroy", made) as event:
            yield event

    def copy_to_device(self, target: int, source: np.ndarray, stream: Any) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source.ctypes.data, source.nbytes, kind, stream)

    def copy_to_host(self, target: np.ndarray, source: int, stream: Any) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.ctypes.data, source, target.nbytes, kind, stream)

    def copy_on_device(self, target: int, source: int, size: int, stream: Any) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def record(self, event: Any, stream: Any) -> None:
        self._call("cudaEventRecord", event, stream)

    def wait(self, event: Any) -> None:
        self._call("cudaEventSynchronize", event)

    def synchronize(self, stream: Any) -> None:
        self._call("cudaStreamSynchronize", stream)

    @contextmanager
    def capture(self, work: Callable[[], None], stream: Any) -> Iterator[Any]:
        runtime = self._runtime
        # Thread-local: what other threads of the process do with CUDA does not end the capture.
        self._call("cudaStreamBeginCapture", stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            try:
                work()
            except BaseException:  # whatever it was, the stream must leave the capture
                code, graph = runtime.cudaStreamEndCapture(stream)
                if code == runtime.cudaError_t.cudaSuccess:
                    runtime.cudaGraphDestroy(graph)
                raise
            with self._owned("cudaGraphDestroy", self._call("cudaStreamEndCapture", stream)) as graph:
                executable = self._call("cudaGraphInstantiate", graph, 0)
        except BaseException:
            runtime.cudaGetLastError()  # or the next library that asks takes this failure for its own
            raise
        with self._owned("cudaGraphExecDestroy", executable) as captured:
            yield captured

    def launch(self, graph: Any, stream: Any) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *values = getattr(self._runtime, name)(*arguments)
        if code != self._runtime.cudaError_t.cudaSuccess:
            raise CudaError(f"{name} failed: {_text(self._runtime, code)}")
        return values[0] if values else None

    @contextmanager
    def _owned(self, release: str, thing: Any) -> Iterator[Any]:
        """Release it at the end; while an error passes through, that error is the one to tell."""
        try:
            yield thing
        except BaseException:
            getattr(self._runtime, release)(thing)
            raise
        self._call(release, thing)


def _text(runtime: Any, code: Any) -> str:
    """`out of memory (cudaErrorMemoryAllocation)`"""
    return f"{runtime.cudaGetErrorString(code)[1].decode()} ({code.name})"
