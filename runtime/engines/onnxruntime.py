"""The ONNX Runtime engine, on CPU or GPU: buffers bound once, two sets of states swapped, no copy per step."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine import EngineOptions, StepOutput
from ..errors import DynamicConfidenceError
from ..manifest import Dim, Manifest
from ..onnx_file import read_onnx
from .onnxruntime_session import check_options, first_run, start_session

if TYPE_CHECKING:
    import onnxruntime

FIRST = 2
"""Index of the binding that reads the initial values."""


class OnnxRuntimeEngine:
    """Runs an exported .onnx on the CPU, or with provider cuda or tensorrt on a GPU. See `runtime.engine.Engine`.

    A state's input and output never share a buffer (that is silently wrong when the graph reads the input after it
    wrote the output), so there are two sets of state buffers and two bindings: set 0 -> 1, then 1 -> 0. A third one
    reads the initial values, which nothing writes, into set 0; so a reset copies no states either.
    On a GPU the states never leave it: per call only the outputs come back, and pixels go there when they are new.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        check_options(path, options)
        model, self.manifest = read_onnx(path)
        self.batch = batch = options.batch
        session, self.backend = start_session(model.SerializeToString(), path, options)
        _check_signature(session, self.manifest, path)
        self._session: onnxruntime.InferenceSession | None = session
        manifest = self.manifest
        device = "cpu" if options.provider == "cpu" else "cuda"
        self._pixels = _Buffer(np.zeros(_shape(manifest.input.shape, batch), np.uint8), device)
        self._scale = _Buffer(np.ones((), np.float32), device)
        shapes = [_shape(state.shape, batch) for state in manifest.states]
        self._states = [[_Buffer(np.empty(shape, np.float32), device) for shape in shapes] for _ in range(2)]
        # One buffer per value, as large as the largest state: reading it under several shapes is harmless.
        largest = max((int(np.prod(shape)) for shape in shapes), default=0)
        initial = {state.initial: np.full(largest, state.initial, np.float32) for state in manifest.states}
        self._initial = {value: _Buffer(values, device) for value, values in initial.items()}
        self._outputs = {o.name: np.empty(_shape(o.shape, batch), o.dtype) for o in manifest.outputs}
        self._result = StepOutput(**{name: self._outputs.get(name) for name in StepOutput._fields})  # type: ignore[arg-type]
        first = [self._initial[state.initial] for state in manifest.states]
        pairs = ((self._states[0], self._states[1]), (self._states[1], self._states[0]), (first, self._states[0]))
        self._bindings = [self._bind(session, sources, targets) for sources, targets in pairs]
        if options.provider != "cpu":
            first_run(session, self._bindings[FIRST], options.provider)
        self.reset(manifest.calibration.scale)

    def __enter__(self) -> OnnxRuntimeEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The bindings hold raw pointers into our buffers: they go before the buffers do.
        self._bindings.clear()
        self._session = None
        self._states.clear()
        self._initial.clear()

    def reset(self, scale: float) -> None:
        self._scale.write(np.array(scale, np.float32))
        self._next, self._has_image = FIRST, False

    def step(self, pixels: np.ndarray | None = None) -> StepOutput:
        if self._session is None:
            raise DynamicConfidenceError("this engine is closed: call step() inside its `with` block.")
        if pixels is not None:
            if pixels.shape != self._pixels.shape or pixels.dtype != np.uint8:
                raise DynamicConfidenceError(
                    f"input {pixels.dtype} of shape {list(pixels.shape)}: this engine was opened for uint8 pixels "
                    f"{list(self._pixels.shape)}."
                )
            self._pixels.write(np.ascontiguousarray(pixels))
            self._has_image = True
        elif not self._has_image:
            raise DynamicConfidenceError("no image since the reset: give step() the pixels in its first call.")
        self._session.run_with_iobinding(self._bindings[self._next])
        self._next = 1 if self._next == 0 else 0
        return self._result

    def _bind(
        self, session: onnxruntime.InferenceSession, sources: list[_Buffer], targets: list[_Buffer]
    ) -> onnxruntime.IOBinding:
        manifest, binding = self.manifest, session.io_binding()
        self._pixels.bind(binding.bind_input, manifest.input.name, self._pixels.shape)
        self._scale.bind(binding.bind_input, manifest.scale_input, ())
        for state, source, target in zip(manifest.states, sources, targets, strict=True):
            source.bind(binding.bind_input, state.input, target.shape)
            target.bind(binding.bind_output, state.output, target.shape)
        for name, array in self._outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return binding


class _Buffer:
    """Memory on the device that computes, at one address for as long as it lives.

    What lies elsewhere would be copied when it is bound, and never again.
    """

    def __init__(self, values: np.ndarray, device: str) -> None:
        import onnxruntime

        self.shape, self._type, self._device = values.shape, values.dtype.type, device
        self._memory = onnxruntime.OrtValue.ortvalue_from_numpy(values, device, 0)

    def write(self, values: np.ndarray) -> None:
        """Copy values of the same shape and type to the device."""
        self._memory.update_inplace(values)

    def bind(self, bind_one: Any, name: str, shape: tuple[int, ...]) -> None:
        """Bind the first elements, as many as the shape has."""
        bind_one(name, self._device, 0, self._type, shape, self._memory.data_ptr())


def _shape(shape: tuple[Dim, ...], batch: int) -> tuple[int, ...]:
    return tuple(batch if dim == "N" else int(dim) for dim in shape)


def _check_signature(session: onnxruntime.InferenceSession, manifest: Manifest, path: Path) -> None:
    expected = {manifest.input.name: manifest.input.shape, manifest.scale_input: ()}
    expected |= {state.input: state.shape for state in manifest.states}
    results = {state.output: state.shape for state in manifest.states} | {o.name: o.shape for o in manifest.outputs}
    for what, nodes, wanted in (
        ("inputs", session.get_inputs(), expected),
        ("outputs", session.get_outputs(), results),
    ):
        found = {node.name: tuple(node.shape) for node in nodes}
        if found != wanted:
            odd = sorted(set(found.items()) ^ set(wanted.items()))[0]
            raise DynamicConfidenceError(
                f"{path}: the graph's {what} are not those of its manifest: '{odd[0]}' {list(odd[1])} is on one side "
                "only. Export the network again with `dc-export model.pt`."
            )
