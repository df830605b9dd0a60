"""What an engine is, and which engine opens which file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol

import numpy as np

from .errors import DynamicConfidenceError
from .manifest import Manifest
from .network_file import by_suffix

ENGINES = {".onnx": "onnxruntime:OnnxRuntimeEngine"}
"""Suffix of a network file -> `module:Class` in `runtime/engines/`, imported when such a file is opened."""


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


class Engine(Protocol):
    """Runs an exported network, one call of K steps at a time, on a fixed batch; owns its buffers."""

    manifest: Manifest
    batch: int

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


def open_engine(path: str | Path, *, batch: int = 1, threads: int | None = None, optimize: bool = True) -> Engine:
    """Open the engine that runs this file; use it in a `with` block.

    `threads` is the number of CPU threads (None: the backend's choice); `optimize=False` switches the backend's graph
    optimisations off. Neither changes a result.

    Raises: DynamicConfidenceError for a file of an unknown kind or a broken one, BackendMissing without its library.
    """
    path = Path(path)
    if batch < 1:
        raise DynamicConfidenceError(f"batch {batch}: expected at least 1.")
    if threads is not None and threads < 1:
        raise DynamicConfidenceError(f"threads {threads}: expected at least 1.")
    module, name = by_suffix(ENGINES, path).split(":")
    engine = getattr(import_module(f".engines.{module}", __package__), name)
    return engine(path, batch=batch, threads=threads, optimize=optimize)
