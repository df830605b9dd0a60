"""The OpenVINO engine, for .onnx files on x86 and Arm CPUs: the states stay inside the model."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine import EngineOptions, StepOutput, check_input, check_open, check_refill, check_steps, no_image
from ..errors import DynamicConfidenceError
from ..interrupts import held_back
from ..manifest import Manifest
from ..onnx_file import check_form, check_signature, read_onnx
from ..signature import shape_at
from ..variants import chosen_call_sizes, variant
from .onnxruntime_session import check_options
from .openvino_model import KEEP, model_from_onnx
from .packages import load_package

if TYPE_CHECKING:
    import openvino as ov

OTHER = "Leave out --backend openvino"
SETTINGS: dict[str, Any] = {
    # By itself it computes in bfloat16 where the processor can, and takes a core for each of its threads.
    "INFERENCE_PRECISION_HINT": "f32",
    "ENABLE_CPU_PINNING": False,
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
}


def load_openvino() -> Any:
    """Import OpenVINO, without its telemetry. Raises: BackendMissing when it is not there, or not whole."""
    with _without_telemetry():
        return load_package("openvino", "OpenVINO", "openvino")


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """Hide the package that makes every import of OpenVINO known to its makers.

    It is installed along, forks a process that calls Google Analytics, and writes an identity into the home folder.
    OpenVINO does without it where it is missing.
    """
    name, absent = "openvino_telemetry", object()
    before: Any = sys.modules.get(name, absent)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is absent:
            del sys.modules[name]
        else:
            sys.modules[name] = before


def version_of(openvino: Any) -> str:
    """`2026.4.1` of `2026.4.1-22982-e213a147257-releases/2026/4`."""
    return openvino.__version__.partition("-")[0]


class OpenVinoEngine:
    """Runs an exported .onnx on the CPU. See `runtime.engine.Engine`.

    Inputs and outputs are numpy arrays that the model reads and writes in place. The states are variables of the model;
    the input `keep` says for which inputs of the batch the next call starts from their initial values.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        check_options(path, options)
        _check_own_options(options)
        model, whole = read_onnx(path)
        _check_graph(path, whole)
        (size,) = chosen_call_sizes(whole, options, several=False)
        network, self.manifest = variant(model, whole, size)
        manifest, self.batch = self.manifest, options.batch
        check_signature(path, network, manifest)
        openvino = load_openvino()
        version = version_of(openvino)
        self.backend = f"OpenVINO {version}, CPU"
        settings = SETTINGS | ({} if options.threads is None else {"INFERENCE_NUM_THREADS": options.threads})
        try:
            with held_back():
                rewritten = model_from_onnx(network, manifest, self.batch)
                compiled = openvino.Core().compile_model(rewritten, "CPU", settings)
        except RuntimeError as error:
            raise DynamicConfidenceError(
                f"{path}: OpenVINO {version} cannot load it: {error}. {OTHER}, or export the network again with "
                "`dc-export model.pt`."
            ) from error
        _check_kernels(path, compiled)
        self._pixels = np.zeros(shape_at(manifest.input.shape, self.batch), np.uint8)
        self._scale = np.ones((), np.float32)
        self._keep = np.zeros((self.batch, 1, 1, 1), np.float32)
        outputs = {o.name: np.empty(shape_at(o.shape, self.batch), o.dtype) for o in manifest.outputs}
        self._result = StepOutput(**outputs)
        request: ov.InferRequest = compiled.create_infer_request()
        inputs = {manifest.input.name: self._pixels, manifest.scale_input: self._scale, KEEP: self._keep}
        for name, array in (inputs | outputs).items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        self._request: ov.InferRequest | None = request
        self.reset(manifest.calibration.scale)

    def __enter__(self) -> OpenVinoEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._request = None

    def reset(self, scale: float) -> None:
        self._scale[...] = scale
        self._keep.fill(0.0)
        self._has_image = False

    def step(self, pixels: np.ndarray | None = None, steps: int | None = None) -> StepOutput:
        request = check_open(self._request, "step")
        check_steps(self, steps)
        if pixels is not None:
            check_input(pixels, self._pixels.shape)
            np.copyto(self._pixels, pixels)
            self._has_image = True
        elif not self._has_image:
            raise no_image()
        request.infer(share_outputs=True)
        self._keep.fill(1.0)
        return self._result

    def refill(self, rows: np.ndarray, pixels: np.ndarray) -> None:
        check_open(self._request, "refill")
        check_refill(self, rows, pixels)
        if not self._has_image:
            raise no_image()
        self._pixels[..., rows, :, :, :] = pixels  # for all K steps of a call, where there are such
        self._keep[rows] = 0.0


def _check_own_options(wanted: EngineOptions) -> None:
    if wanted.provider != "cpu":
        raise DynamicConfidenceError(
            f"--provider {wanted.provider} is ONNX Runtime's, OpenVINO runs on the CPU. {OTHER}, or --provider."
        )
    if not wanted.optimize:
        raise DynamicConfidenceError("optimize=False: OpenVINO always optimises. Use backend='onnxruntime'.")


def _check_graph(path: Path, manifest: Manifest) -> None:
    if manifest.numerics.precision == "fp16":
        raise DynamicConfidenceError(f"{path}: its precision is fp16, OpenVINO's engine takes fp32 and int8. {OTHER}.")
    check_form(path, manifest, "ONNX Runtime", OTHER)


def _check_kernels(path: Path, compiled: ov.CompiledModel) -> None:
    """Refuse a Winograd convolution, which computes with fractions: sums would not be exact (contract.md)."""
    for node in compiled.get_runtime_model().get_ops():
        kernel = node.get_rt_info()["primitiveType"].astype(str)
        if "wino" in kernel.lower():
            raise DynamicConfidenceError(
                f"{path}: on this processor OpenVINO computes '{node.get_friendly_name()}' with the kernel {kernel}, "
                f"which is not exact. {OTHER}."
            )
