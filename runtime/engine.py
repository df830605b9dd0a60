"""What an engine is, and which engine opens which file."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from .errors import DynamicConfidenceError
from .manifest import Manifest
from .network_file import by_suffix, read_manifest

ENGINES = {".onnx": "onnxruntime:OnnxRuntimeEngine", ".plan": "tensorrt:TensorRTEngine"}
"""Suffix of a network file -> `module:Class` in `runtime/engines/`, imported when such a file is opened."""
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "events": "numba"}
"""Backend of .onnx files -> the package that it needs."""
BACKENDS = {"onnxruntime": ENGINES[".onnx"], "openvino": "openvino:OpenVinoEngine", "events": "events:EventsEngine"}
"""What runs .onnx files -> the same."""
Backend = Literal["auto", "onnxruntime", "openvino", "events"]
Provider = Literal["cpu", "cuda", "tensorrt"]
CudaBinding = Literal["auto", "bindings", "pycuda"]
T = TypeVar("T")
X86 = ("x86_64", "AMD64")
OPENVINO_NEURONS = {"fp32": 2**16, "int8": 2**15}
"""In all steps of a call; below that ONNX Runtime, which does less beside computing, is as fast or faster."""
EVENTS_CHANNELS = {"fp32": 16, "int8": 64}
"""A spike adds as many weights at a time as there are channels: with fewer, finding it costs more than they save."""


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
    backend: Backend = "auto"
    """What runs a .onnx file; auto: what is fastest here (`onnx_backend`)."""
    call_sizes: tuple[int, ...] = ()
    """Which K of a .onnx file that has several; none: as `variants.chosen_call_sizes` says."""

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
    spikes: np.ndarray | None = None
    """float32 `[K, N, layer]`, spikes of either sign; None when the network was exported without them."""
    net_spikes: np.ndarray | None = None
    """float32 `[K, N, layer]`, positive spikes less negative ones; None when the network does not count them."""


class Engine(Protocol):
    """Runs an exported network, one call of K steps at a time, on a fixed batch; owns its buffers."""

    manifest: Manifest
    """The network's, with the `call_sizes` that this engine has."""
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

    def step(self, pixels: np.ndarray | None = None, steps: int | None = None) -> StepOutput:
        """Advance K = `steps` steps, one of the manifest's `call_sizes`; None: its `steps_per_call`.

        `pixels` are copied in and stay until the next reset, whose first call needs some.
        """
        ...

    def refill(self, rows: np.ndarray, pixels: np.ndarray) -> None:
        """Start other inputs in these places of the batch, between two calls; the others go on undisturbed.

        The states of `rows` take their initial values, and their images become `pixels`, which are copied in and, like
        those of `step`, stay until the next reset. What the last call returned stays valid until the next one.
        Shapes: rows int `[n]`, each once, 0 … batch - 1, in any order, n = 0 too; pixels uint8 `[n, channel, y, x]`:
        still images, shown in every step, also by a network that takes an image per step.
        Raises: DynamicConfidenceError for what does not fit (`check_refill`), and before the first call of a reset.
        """
        ...


def check_open(runs: T | None, method: str) -> T:
    """Return what runs the network, or raise a DynamicConfidenceError where a closed engine has let it go."""
    if runs is None:
        raise DynamicConfidenceError(f"this engine is closed: call {method}() inside its `with` block.")
    return runs


def check_steps(engine: Engine, steps: int | None) -> None:
    """Raise a DynamicConfidenceError unless the engine has a call of so many steps."""
    if steps is None:
        return
    sizes = engine.manifest.call_sizes
    if steps not in sizes:
        raise DynamicConfidenceError(
            f"a call of {steps} steps: this engine ({engine.backend}) was opened for {', '.join(map(str, sizes))}. "
            "Name the calls that it shall have: open_engine(..., call_sizes=(1, 4))."
        )


def check_input(pixels: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise a DynamicConfidenceError unless the pixels of a step are of the engine's shape and type."""
    if pixels.shape != shape or pixels.dtype != np.uint8:
        opened = f"this engine was opened for uint8 pixels {list(shape)}"
        raise DynamicConfidenceError(f"input {pixels.dtype} of shape {list(pixels.shape)}: {opened}.")


def check_refill(engine: Engine, rows: np.ndarray, pixels: np.ndarray) -> None:
    """Raise a DynamicConfidenceError unless `rows` are places of the batch, each once, with an image for each."""
    places = rows.tolist()
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not set(places) <= set(range(engine.batch)):
        raise DynamicConfidenceError(
            f"rows {places}: expected whole numbers from 0 to {engine.batch - 1}, since the batch is {engine.batch}."
        )
    if len(set(places)) < len(places):
        raise DynamicConfidenceError(f"rows {places}: expected each place of the batch once.")
    wanted = len(places), *engine.manifest.input.preprocessing.shape
    if pixels.shape != wanted or pixels.dtype != np.uint8:
        raise DynamicConfidenceError(
            f"input {pixels.dtype} of shape {list(pixels.shape)} for {len(places)} rows: expected uint8 pixels "
            f"{list(wanted)}."
        )


def no_image() -> DynamicConfidenceError:
    return DynamicConfidenceError("no image since the reset: give step() the pixels in its first call.")


def interrupted(method: str) -> DynamicConfidenceError:
    return DynamicConfidenceError(f"the last call failed or was interrupted: call reset() before {method}().")


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
    backend: Backend = "auto",
    call_sizes: tuple[int, ...] = (),
) -> Engine:
    """Open the engine that runs this file; use it in a `with` block. None of the options changes a result.

    Raises: DynamicConfidenceError for a file of an unknown kind, a broken one or an option that its engine does not
    have, BackendMissing without the library or the device that it needs.
    """
    path = Path(path)
    options = EngineOptions(batch, threads, optimize, provider, cuda, cuda_graphs, speculate, backend, call_sizes)
    entry = by_suffix(ENGINES, path)
    if path.suffix != ".onnx":
        return _opened(entry, path, options)
    chosen = onnx_backend(path, options)
    try:
        return _opened(BACKENDS[chosen], path, options)
    except DynamicConfidenceError:
        # What others choose for the user must not keep a file from running that ONNX Runtime takes.
        if options.backend != "auto" or chosen == "onnxruntime" or find_spec("onnxruntime") is None:
            raise
    return _opened(BACKENDS["onnxruntime"], path, options)


def _opened(entry: str, path: Path, options: EngineOptions) -> Engine:
    module, name = entry.split(":")
    return getattr(import_module(f".engines.{module}", __package__), name)(path, options)


def holds_several(path: Path, options: EngineOptions) -> bool:
    """Whether what would open this .onnx file can make calls of several sizes, in any order."""
    return options.provider == "cpu" and onnx_backend(path, options) in ("onnxruntime", "events")


def onnx_backend(path: Path, options: EngineOptions) -> str:
    """Choose what runs a .onnx file: the name in `BACKENDS`; auto takes what was measured to be faster.

    Only on an x86 processor, for an exact network, where no answer depends on the choice; Arm is not measured.
    - events: one thread, half of the neurons or more in layers of at least `EVENTS_CHANNELS` channels. Time per step of
      OpenVINO / events at the same K on one Zen 4 core with 10 … 26 % of the neurons spiking: 1.2 … 2.8 (fp32) and
      1.3 … 2.2 (int8) there, 0.6 … 1.2 for int8 with fewer channels (docs/peers_table.md).
    - OpenVINO: at least `OPENVINO_NEURONS` in all steps of a call. Time per step of ONNX Runtime / OpenVINO: 0.9 … 1.3
      (fp32) and 1.8 … 4 (int8) above; below, what OpenVINO does beside computing is dear (docs/adr/0009-openvino.md).
    ONNX Runtime has the options other than batch, threads and call sizes; it and events hold several sizes. A schedule
    runs on what it was tuned on. What is not installed is not chosen.
    """
    if options.backend != "auto":
        return options.backend
    plain = EngineOptions(batch=options.batch, threads=options.threads, call_sizes=options.call_sizes)
    installed = {name for name, package in PACKAGES.items() if find_spec(package) is not None}
    if options != plain or installed <= {"onnxruntime"}:
        return "onnxruntime"
    manifest = read_manifest(path)
    if manifest.numerics.precision == "fp16" or manifest.numerics.form != "conv":
        return "onnxruntime"
    if "onnxruntime" not in installed:
        return next(name for name in BACKENDS if name in installed)
    if manifest.schedule is not None and options.batch == 1 and not options.call_sizes:
        tuned_on = manifest.schedule.engine.replace(" ", "").lower()
        if found := [name for name in BACKENDS if name in installed and tuned_on.startswith(name)]:
            return found[0]
    if not manifest.numerics.exact or platform.machine() not in X86:
        return "onnxruntime"
    # Membranes start at one half, counters and sums at zero.
    layers = [tuple(map(int, state.shape[1:])) for state in manifest.states if state.initial]
    neurons = sum(map(math.prod, layers))
    channels = EVENTS_CHANNELS[manifest.numerics.precision]
    wide = sum(math.prod(shape) for shape in layers if shape[0] >= channels)
    if "events" in installed and wide >= neurons / 2 > 0 and options.threads == 1:
        return "events"
    steps, *others = options.call_sizes or (manifest.steps_per_call,)
    large = neurons * steps >= OPENVINO_NEURONS[manifest.numerics.precision]
    return "openvino" if large and not others and "openvino" in installed else "onnxruntime"
