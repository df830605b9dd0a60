"""The few calls of CUDA that an engine makes, through cuda-bindings or pycuda, whichever is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np

from ..errors import BackendMissing, DynamicConfidenceError

IMPLEMENTATIONS = ("bindings", "pycuda")
"""Modules in this folder, in the order in which they are tried; each has `load` and `opened`."""


class Cuda(Protocol):
    """The first GPU of this machine, in its primary context, on the thread that opened it.

    Streams, events and graphs are whatever the package uses; they go back in where they came from. What a call of CUDA
    refuses is a CudaError. Each resource is released when its `with` block ends.
    """

    package: str
    """`cuda-bindings 13.5.0`"""
    device: str
    """Name of the GPU."""
    target: str
    """Its compute capability: `sm89`."""

    def device_memory(self, size: int) -> AbstractContextManager[int]:
        """Memory on the GPU, as its address; aligned to 256 bytes at least."""
        ...

    def pinned_memory(self, size: int) -> np.ndarray:
        """uint8 `[size]` on the host for asynchronous copies; freed when its last view is gone, so no view dangles."""
        ...

    def stream(self) -> AbstractContextManager[Any]:
        """A stream of its own, which does not wait for the default one."""
        ...

    def handle(self, stream: Any) -> int:
        """The stream as the number that other libraries take."""
        ...

    def event(self) -> AbstractContextManager[Any]: ...

    def copy_to_device(self, target: int, source: np.ndarray, stream: Any) -> None: ...

    def copy_to_host(self, target: np.ndarray, source: int, stream: Any) -> None: ...

    def copy_on_device(self, target: int, source: int, size: int, stream: Any) -> None: ...

    def record(self, event: Any, stream: Any) -> None:
        """Let the event happen when all that the stream was given so far is done."""
        ...

    def wait(self, event: Any) -> None: ...

    def synchronize(self, stream: Any) -> None: ...

    def capture(self, work: Callable[[], None], stream: Any) -> AbstractContextManager[Any]:
        """Record what `work` gives to the stream as a graph, without doing it. Raises: CudaError where it cannot."""
        ...

    def launch(self, graph: Any, stream: Any) -> None: ...


@contextmanager
def open_cuda(choice: str = "auto") -> Iterator[Cuda]:
    """Open the first GPU through the chosen package, `auto` taking the first of `IMPLEMENTATIONS` that is installed.

    Raises: BackendMissing without the package, without a driver that serves it, or without a GPU.
    """
    from . import bindings, pycuda

    if choice not in ("auto", *IMPLEMENTATIONS):
        raise DynamicConfidenceError(f"cuda '{choice}': expected one of auto, {', '.join(IMPLEMENTATIONS)}.")
    for implementation in (bindings, pycuda):
        name = implementation.__name__.rpartition(".")[2]
        library = implementation.load() if choice in ("auto", name) else None
        if library is not None:
            with implementation.opened(library) as cuda:
                yield cuda
            return
    raise BackendMissing(
        {
            "bindings": "cuda-bindings is not installed: `pip install cuda-bindings`.",
            "pycuda": "pycuda is not installed: `pip install pycuda` (it is compiled and needs the CUDA toolkit).",
            "auto": "a plan needs cuda-bindings or pycuda, found neither: `pip install cuda-bindings`.",
        }[choice]
    )
