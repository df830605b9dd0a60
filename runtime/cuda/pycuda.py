"""CUDA through pycuda, which some Jetsons have; it has no stream capture, so there are no CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from .errors import CudaError, broken_package, no_device, unusable_driver

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING in cuda.h, for which pycuda has no name


def load() -> ModuleType | None:
    """Import pycuda's driver API; None where it is not installed.

    Raises: BackendMissing for one that does not load, which on a machine without a driver is the driver's fault.
    """
    try:
        return import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        if error.name in ("pycuda", "pycuda.driver"):
            return None
        raise broken_package("pycuda", error) from error
    except ImportError as error:
        raise (unusable_driver("pycuda") if "libcuda.so" in str(error) else broken_package("pycuda", error)) from error


@contextmanager
def opened(driver: Any) -> Iterator[PyCuda]:
    """Open the first GPU. Raises: BackendMissing without a driver or a GPU."""
    try:
        driver.init()
        count = driver.Device.count()
    except driver.Error as error:
        raise no_device(str(error)) from error
    if count == 0:
        raise no_device("pycuda counts 0")
    device = driver.Device(0)
    # The context that TensorRT is in too; never `pycuda.autoinit`, which makes another.
    context = device.retain_primary_context()
    context.push()
    try:
        yield PyCuda(driver, device)
    finally:
        # Not detached: memory that still has views keeps the context, and the last of them releases it.
        driver.Context.pop()


class PyCuda:
    """See `Cuda`."""

    def __init__(self, driver: Any, device: Any) -> None:
        self._driver = driver
        self.package = f"pycuda {import_module('pycuda').VERSION_TEXT}"
        self.device = device.name()
        self.target = "sm" + "".join(map(str, device.compute_capability()))

    @contextmanager
    def device_memory(self, size: int) -> Iterator[int]:
        allocation = self._call(self._driver.mem_alloc, size)
        try:
            yield int(allocation)
        finally:
            allocation.free()

    def pinned_memory(self, size: int) -> np.ndarray:
        return self._call(self._driver.pagelocked_empty, size, np.uint8)

    @contextmanager
    def stream(self) -> Iterator[Any]:
        yield self._call(self._driver.Stream, _NON_BLOCKING)  # destroyed with its last reference

    def handle(self, stream: Any) -> int:
        return stream.handle

    @contextmanager
    def event(self) -> Iterator[Any]:
        yield self._call(self._driver.Event, self._driver.event_flags.DISABLE_TIMING)

    def copy_to_device(self, target: int, source: np.ndarray, stream: Any) -> None:
        self._call(self._driver.memcpy_htod_async, target, source, stream)

    def copy_to_host(self, target: np.ndarray, source: int, stream: Any) -> None:
        self._call(self._driver.memcpy_dtoh_async, target, source, stream)

    def copy_on_device(self, target: int, source: int, size: int, stream: Any) -> None:
        self._call(self._driver.memcpy_dtod_async, target, source, size, stream)

    def record(self, event: Any, stream: Any) -> None:
        self._call(event.record, stream)

    def wait(self, event: Any) -> None:
        self._call(event.synchronize)

    def synchronize(self, stream: Any) -> None:
        self._call(stream.synchronize)

    def capture(self, work: Callable[[], None], stream: Any) -> AbstractContextManager[Any]:
        raise CudaError("pycuda has none")

    def launch(self, graph: Any, stream: Any) -> None:
        raise CudaError("pycuda has no CUDA graphs to launch")

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.Error as error:  # "cuMemAlloc failed: out of memory"
            raise CudaError(str(error)) from error
