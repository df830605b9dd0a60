"""The ONNX Runtime engine: buffers bound once, two sets of states swapped, no copy per step."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine import EngineOptions, StepOutput
from ..errors import BackendMissing, DynamicConfidenceError
from ..manifest import Dim, Manifest
from ..onnx_file import read_onnx

if TYPE_CHECKING:
    import onnxruntime


class OnnxRuntimeEngine:
    """Runs an exported .onnx on the CPU. See `runtime.engine.Engine`.

    A state's input and output never share a buffer (that is silently wrong when the graph reads the input after it
    wrote the output), so there are two sets of state buffers and two bindings: set 0 -> 1, then 1 -> 0.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        model, self.manifest = read_onnx(path)
        self.batch = batch = options.batch
        session, self.backend = _session(model.SerializeToString(), path, options)
        _check_signature(session, self.manifest, path)
        self._session: onnxruntime.InferenceSession | None = session
        manifest = self.manifest
        self._input = np.zeros(_shape(manifest.input.shape, batch), np.uint8)
        self._scale = np.ones((), np.float32)
        self._states = [[np.empty(_shape(s.shape, batch), np.float32) for s in manifest.states] for _ in range(2)]
        self._outputs = {o.name: np.empty(_shape(o.shape, batch), o.dtype) for o in manifest.outputs}
        self._result = StepOutput(**{name: self._outputs.get(name) for name in StepOutput._fields})  # type: ignore[arg-type]
        self._bindings = [self._bind(session, source, 1 - source) for source in range(2)]
        self.reset(manifest.calibration.scale)

    def __enter__(self) -> OnnxRuntimeEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The bindings hold raw pointers into our buffers: they go before the buffers do.
        self._bindings.clear()
        self._session = None

    def reset(self, scale: float) -> None:
        self._scale[...] = scale
        self._source, self._has_image = 0, False
        for buffer, state in zip(self._states[0], self.manifest.states, strict=True):
            buffer.fill(state.initial)

    def step(self, pixels: np.ndarray | None = None) -> StepOutput:
        if self._session is None:
            raise DynamicConfidenceError("this engine is closed: call step() inside its `with` block.")
        if pixels is not None:
            if pixels.shape != self._input.shape or pixels.dtype != np.uint8:
                raise DynamicConfidenceError(
                    f"input {pixels.dtype} of shape {list(pixels.shape)}: this engine was opened for uint8 pixels "
                    f"{list(self._input.shape)}."
                )
            np.copyto(self._input, pixels)
            self._has_image = True
        elif not self._has_image:
            raise DynamicConfidenceError("no image since the reset: give step() the pixels in its first call.")
        self._session.run_with_iobinding(self._bindings[self._source])
        self._source = 1 - self._source
        return self._result

    def _bind(self, session: onnxruntime.InferenceSession, source: int, target: int) -> onnxruntime.IOBinding:
        manifest, binding = self.manifest, session.io_binding()

        def bind(bind_one: Any, name: str, buffer: np.ndarray) -> None:
            bind_one(name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)

        bind(binding.bind_input, manifest.input.name, self._input)
        bind(binding.bind_input, manifest.scale_input, self._scale)
        for index, state in enumerate(manifest.states):
            bind(binding.bind_input, state.input, self._states[source][index])
            bind(binding.bind_output, state.output, self._states[target][index])
        for name, buffer in self._outputs.items():
            bind(binding.bind_output, name, buffer)
        return binding


def _session(content: bytes, path: Path, wanted: EngineOptions) -> tuple[onnxruntime.InferenceSession, str]:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendMissing(
            f"{path}: ONNX Runtime is not installed. Install it with `pip install 'dynamic-confidence[cpu]'`."
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if wanted.threads is not None:
        options.intra_op_num_threads = wanted.threads
    if not wanted.optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        # From bytes, not from the path: a session that knows no path cannot read other files.
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise DynamicConfidenceError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it: {error}. "
            "Export the network again with `dc-export model.pt`."
        ) from error
    return session, f"ONNX Runtime {onnxruntime.__version__}, CPU"


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
