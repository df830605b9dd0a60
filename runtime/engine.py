"""What an engine is, and which engine opens which file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Protocol

import numpy as np

from .errors import DynamicConfidenceError
from .manifest import Manifest
from .network_file import by_suffix

ENGINES = {".onnx": "onnxruntime:OnnxRuntimeEngine", ".plan": "tensorrt:TensorRTEngine"}
"""Suffix of a network file -> `module:Class` in `runtime/engines/`, imported when such a file is opened."""
Provider = Literal["cpu", "cuda", "tensorrt"]
CudaBinding = Literal["auto", "bindings", "pycuda"]


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is opened; one that is asked for what it cannot do says so."""

    batch: int = 1
    threads: int | None = None
    """CPU threads, for .onnx files; None: the backend's choice."""
    optimize: bool = True
    """Graph optimisations, for .onnx files."""
    provider: Provider = "cpu"
    """What ONNX Runtime runs a .onnx file on."""
    cuda: CudaBinding = "auto"
    """Python package that speaks to CUDA, for .plan files."""
    cuda_graphs: bool = True
    """Capture each step as a CUDA graph, for .plan files."""
    speculate: bool = False
    """Start the next step before the host has looked at this one, for .plan files."""

    def __post_init__(self) -> None:
        for name, value in (("batch", self.batch), ("threads", self.threads)):
            if value is not None and value < 1:
                raise DynamicConfidenceError(f"{name} {value}: expected at least 1.")


class StepOutput(NamedTuple):
    """What one call returns for its K steps: views into the engine's buffers, valid until the next call."""

    logits: np.ndarray
    """float32 `[K, N, class]`, accumulated since the reset."""
    confidence: np.ndarray
    """float32 `[K, N]`"""
    label: np.ndarray
    """int64 `[K, N]`, argmax of the logits."""
    spikes: np.ndarray | None
    """float32 `[K, N, layer]`, spikes of either sign; None when the network was exported without them."""
    net_spikes: np.ndarray | None = None
    """float32 `[K, N, layer]`, positive spikes less negative ones; None when the network does not count them."""


class Engine(Protocol):
    """Runs an exported network, one call of K steps at a time, on a fixed batch; owns its buffers."""

    manifest: Manifest
    batch: int
    backend: str
    """What runs the network, for people: `ONNX Runtime 1.31.1, CPU`."""

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def reset(self, scale: float) -> None:
        """Put every state to its initial value, forget the image, and take another `scale` (alpha * temperature)."""
        ...

    def step(self, pixels: np.ndarray | None = None) -> StepOutput:
        """Advance K steps. `pixels` are copied in and stay until the next reset, whose first call needs some."""
        ...


def open_engine(
    path: str | Path,
    *,
    batch: int = 1,
    threads: int | None = None,
    optimize: bool = True,
    provider: Provider = "cpu",
    cuda: CudaBinding = "auto",
    cuda_graphs: bool = True,
    speculate: bool = False,
) -> Engine:
    """Open the engine that runs this file; use it in a `with` block. None of the options changes a result.

    Raises: DynamicConfidenceError for a file of an unknown kind, a broken one or an option that its engine does not
    have, BackendMissing without the library or the device that it needs.
    """
    path = Path(path)
    options = EngineOptions(batch, threads, optimize, provider, cuda, cuda_graphs, speculate)
    module, name = by_suffix(ENGINES, path).split(":")
    return getattr(import_module(f".engines.{module}", __package__), name)(path, options)
