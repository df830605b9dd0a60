"""The ONNX Runtime engine, on CPU or GPU: buffers bound once, two sets of states swapped, no copy per step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..engine import EngineOptions, StepOutput, check_input, check_open, check_refill, check_steps, no_image
from ..manifest import Manifest
from ..onnx_file import check_form, check_signature, read_onnx
from ..signature import shape_at
from ..variants import chosen_call_sizes, manifest_at, variant
from .onnxruntime_blocks import block_size
from .onnxruntime_nchwc import model_in_blocks
from .onnxruntime_session import check_options, first_run, start_session

if TYPE_CHECKING:
    import onnx
    import onnxruntime

FIRST = 2
"""Index of the binding that reads the initial values."""


class OnnxRuntimeEngine:
    """Runs an exported .onnx on the CPU, or with provider cuda or tensorrt on a GPU. See `runtime.engine.Engine`.

    Each size of call is a session of its own (on a GPU there is one); they share the buffers. On the CPU their graphs
    are rewritten first where that pays; `backend` ends in the layout then (`NCHW16c`).

    A state's input and output never share a buffer (that is silently wrong when the graph reads the input after it
    wrote the output), so there are two sets of state buffers and two bindings: set 0 -> 1, then 1 -> 0. A third one
    reads the initial values, which nothing writes, into set 0; so a reset copies no states either.
    On a GPU the states never leave it but for a refill: per call only the outputs come back, and pixels go there when
    they are new.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        check_options(path, options)
        model, whole = read_onnx(path)
        if options.provider != "cpu":
            check_form(path, whole, "the CPU", f"Leave out --provider {options.provider}")
        self.batch = batch = options.batch
        sizes = chosen_call_sizes(whole, options, several=options.provider == "cpu")
        self.manifest = manifest = manifest_at(whole, sizes)
        variants = {size: variant(model, whole, size) for size in sizes}
        for network, described in variants.values():
            check_signature(path, network, described)
        networks, block = _in_blocks(variants, options)
        # Before the buffers: it says what is missing here.
        sessions = {}
        for size, network in networks.items():
            sessions[size], self.backend = start_session(network.SerializeToString(), path, options, block=block)
        device = "cpu" if options.provider == "cpu" else "cuda"
        self._pixels = _Buffer(np.zeros(shape_at(manifest.input.shape, batch), np.uint8), device)
        self._scale = _Buffer(np.ones((), np.float32), device)
        shapes = [shape_at(state.shape, batch) for state in manifest.states]
        self._states = [[_Buffer(np.empty(shape, np.float32), device) for shape in shapes] for _ in range(2)]
        # One buffer per value, as large as the largest state: reading it under several shapes is harmless.
        largest = max((int(np.prod(shape)) for shape in shapes), default=0)
        initial = {state.initial: np.full(largest, state.initial, np.float32) for state in manifest.states}
        self._initial = {value: _Buffer(values, device) for value, values in initial.items()}
        self._calls: dict[int | None, _Call] = {}
        for size, session in sessions.items():
            self._calls[size] = self._call(session, variants[size][1])
        self._calls[None] = default = self._calls[manifest.steps_per_call]
        self._session: onnxruntime.InferenceSession | None = default.session
        if options.provider != "cpu":
            first_run(default.session, default.bindings[FIRST], options.provider)
        self.reset(manifest.calibration.scale)

    def __enter__(self) -> OnnxRuntimeEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The bindings hold raw pointers into our buffers: they go before the buffers do.
        self._calls.clear()
        self._session = None
        self._states.clear()
        self._initial.clear()

    def reset(self, scale: float) -> None:
        self._scale.write(np.array(scale, np.float32))
        self._next, self._has_image = FIRST, False

    def step(self, pixels: np.ndarray | None = None, steps: int | None = None) -> StepOutput:
        call = self._calls.get(steps) or self._checked_call(steps)
        if pixels is not None:
            check_input(pixels, self._pixels.shape)
            self._pixels.write(np.ascontiguousarray(pixels))
            self._has_image = True
        elif not self._has_image:
            raise no_image()
        call.runs[self._next]()
        self._next = 1 if self._next == 0 else 0
        return call.result

    def refill(self, rows: np.ndarray, pixels: np.ndarray) -> None:
        check_open(self._session, "refill")
        check_refill(self, rows, pixels)
        if not self._has_image:
            raise no_image()
        if not len(rows):
            return
        self._pixels.put((..., rows, *3 * [slice(None)]), pixels)  # for all K steps of a call, where there are such
        # After a first call that failed there is nothing to put back: the next one reads the initial values again.
        if self._next != FIRST:
            for state, buffer in zip(self.manifest.states, self._states[self._next], strict=True):
                buffer.put(rows, state.initial)

    def _checked_call(self, steps: int | None) -> _Call:
        """The call of so many steps. Raises: DynamicConfidenceError that says why there is none."""
        check_open(self._session, "step")
        check_steps(self, steps)
        return self._calls[steps]

    def _call(self, session: onnxruntime.InferenceSession, manifest: Manifest) -> _Call:
        """Make the outputs of a session and its three bindings, by the manifest of its graph."""
        outputs = {o.name: np.empty(shape_at(o.shape, self.batch), o.dtype) for o in manifest.outputs}
        first = [self._initial[state.initial] for state in manifest.states]
        pairs = ((self._states[0], self._states[1]), (self._states[1], self._states[0]), (first, self._states[0]))
        bindings = [self._bind(session, sources, targets, outputs) for sources, targets in pairs]
        runs = [partial(session.run_with_iobinding, one) for one in bindings]
        return _Call(session, bindings, runs, StepOutput(**outputs))

    def _bind(
        self,
        session: onnxruntime.InferenceSession,
        sources: list[_Buffer],
        targets: list[_Buffer],
        outputs: dict[str, np.ndarray],
    ) -> onnxruntime.IOBinding:
        manifest, binding = self.manifest, session.io_binding()
        self._pixels.bind(binding.bind_input, manifest.input.name, self._pixels.shape)
        self._scale.bind(binding.bind_input, manifest.scale_input, ())
        for state, source, target in zip(manifest.states, sources, targets, strict=True):
            source.bind(binding.bind_input, state.input, target.shape)
            target.bind(binding.bind_output, state.output, target.shape)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return binding


class _Call(NamedTuple):
    """What runs a call of one size."""

    session: onnxruntime.InferenceSession
    bindings: list[onnxruntime.IOBinding]
    """From state set 0 to 1, from 1 to 0, and from the initial values to 0."""
    runs: list[Callable[[], None]]
    """The same, ready to run."""
    result: StepOutput


class _Buffer:
    """Memory on the device that computes, at one address for as long as it lives.

    What lies elsewhere would be copied when it is bound, and never again.
    """

    def __init__(self, values: np.ndarray, device: str) -> None:
        import onnxruntime

        self.shape, self._type, self._device = values.shape, values.dtype.type, device
        self._host = values if device == "cpu" else None  # there the OrtValue is this very memory
        self._memory = onnxruntime.OrtValue.ortvalue_from_numpy(values, device, 0)

    def write(self, values: np.ndarray) -> None:
        """Copy values of the same shape and type to the device."""
        self._memory.update_inplace(values)

    def put(self, index: Any, values: Any) -> None:
        """Assign to a part as numpy does; from a GPU the whole goes to the host for that, and back."""
        host = self._memory.numpy() if self._host is None else self._host
        host[index] = values
        if self._host is None:
            self.write(host)

    def bind(self, bind_one: Any, name: str, shape: tuple[int, ...]) -> None:
        """Bind the first elements, as many as the shape has."""
        bind_one(name, self._device, 0, self._type, shape, self._memory.data_ptr())


def _in_blocks(
    variants: Mapping[int, tuple[onnx.ModelProto, Manifest]], options: EngineOptions
) -> tuple[dict[int, onnx.ModelProto], int | None]:
    """The graph of each size of call, and the block that all of them are laid out in; None: as they were exported.

    All or none, since they share their states.
    """
    plain = {size: network for size, (network, _) in variants.items()}
    block = block_size() if options.provider == "cpu" and options.optimize else None
    if block is None:
        return plain, None
    rewritten = {size: model_in_blocks(*of, options.batch, block) for size, of in variants.items()}
    found = {size: network for size, network in rewritten.items() if network is not None}
    return (found, block) if len(found) == len(plain) else (plain, None)
