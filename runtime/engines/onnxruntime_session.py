"""Start an ONNX Runtime session on the provider that was asked for, or say why it cannot: never on another one."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..engine import EngineOptions, Provider
from ..errors import BackendMissing, DynamicConfidenceError
from ..gpu import device_target
from ..tensorrt_library import one_line
from .packages import load_package

if TYPE_CHECKING:
    import onnxruntime

# Both packages own the folder onnxruntime/: to remove one of two breaks the other, so both go.
GPU_PACKAGE = "`pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'dynamic-confidence[gpu]'`"
CUDA_LIBRARIES = "install CUDA's libraries and cuDNN with `pip install 'onnxruntime-gpu[cuda,cudnn]'`"
TENSORRT_LIBRARIES = (
    "install the TensorRT that this ONNX Runtime was built for, and name the folder of its libraries in LD_LIBRARY_PATH"
)


class Kind(NamedTuple):
    name: str
    """What ONNX Runtime calls the provider."""
    title: str


KINDS: dict[Provider, Kind] = {
    "cpu": Kind("CPUExecutionProvider", "CPU"),
    "cuda": Kind("CUDAExecutionProvider", "CUDA"),
    "tensorrt": Kind("TensorrtExecutionProvider", "TensorRT"),
}
EXACT = {
    # Sums in float32 are exact in any order (contract.md, Exactness); what is left out is what does not sum in float32,
    # or transforms first: TF32 and, among cuDNN's algorithms, Winograd and FFT, which the other searches may choose.
    # DEFAULT keeps to cuDNN's fallback list; that this is enough, the tests on a GPU have to show.
    "use_tf32": "0",
    "cudnn_conv_algo_search": "DEFAULT",
}
"""Options of the CUDA provider."""
# The words of ONNX Runtime 1.31.1, in its log or its exception; all of them were seen.
_NOT_LOADED = re.compile(r"with error: (.+)")
_NO_CUDA = re.compile(r"(CUDA failure \d+: .+?) ;")
_ON_CPU = "assigned to the default CPU EP"


def load_onnxruntime() -> Any:
    """Import ONNX Runtime, without its telemetry. Raises: BackendMissing when it is not there, or not whole.

    By itself it keeps a log of its use, meant for its makers, in the home and temporary folders (1.31.1).
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    onnxruntime = load_package("onnxruntime", "ONNX Runtime", "cpu")
    if not hasattr(onnxruntime, "InferenceSession"):
        raise BackendMissing(
            "ONNX Runtime is installed in part only, as when one of onnxruntime and onnxruntime-gpu was removed: "
            f"{GPU_PACKAGE}, with [cpu] instead of [gpu] where there is no NVIDIA GPU."
        )
    return onnxruntime


def check_options(path: Path, wanted: EngineOptions) -> None:
    """Raise DynamicConfidenceError for an option that an .onnx file or the provider does not have."""
    for option, asked in (
        (f"--cuda {wanted.cuda}", wanted.cuda != "auto"),
        ("--no-cuda-graph", not wanted.cuda_graphs),
        ("--speculate", wanted.speculate),
    ):
        if asked:
            raise DynamicConfidenceError(
                f"{path}: {option} is for .plan files. Leave it out, or make a plan with "
                f"`{shlex.join(['dc-build', str(path)])}`."
            )
    if wanted.threads is not None and wanted.provider != "cpu":
        raise DynamicConfidenceError(
            f"--threads {wanted.threads} is for --provider cpu: with {wanted.provider} every operator runs on the GPU. "
            "Leave it out."
        )


def start_session(
    content: bytes, path: Path, wanted: EngineOptions, *, block: int | None = None
) -> tuple[onnxruntime.InferenceSession, str]:
    """Start a session for the bytes of a model on `wanted.provider`; return it and what runs it, for people.

    From bytes, not from the path, which is for messages: a session that knows no path cannot read other files. `block`:
    the model is laid out in blocks of so many channels already (`onnxruntime_nchwc`), to run node by node as it stands.
    Raises: BackendMissing when the provider cannot run here, DynamicConfidenceError for what it cannot load.
    """
    onnxruntime = load_onnxruntime()
    kind = KINDS[wanted.provider]
    backend = f"ONNX Runtime {onnxruntime.__version__}, {kind.title}"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if wanted.threads is not None:
        options.intra_op_num_threads = wanted.threads
    if not wanted.optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if block is not None:
        backend += f", NCHW{block}c"
        # All but the optimisations of layouts.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if wanted.provider != "tensorrt":
        # No int8 convolution there takes our form, so its weights are unpacked once, not in every call: measured on a
        # ResNet-20 as 1.08 instead of 1.58 ms (fp32: 1.02). The sums are the same integers.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    providers: list[Any] = [kind.name]
    if wanted.provider == "cpu":
        # About the order of the nodes in the file, layer by layer; the default one goes step by step, past the cache.
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        return _session(onnxruntime, content, path, options, providers), backend

    _check_machine(onnxruntime, wanted.provider)
    # Read by cuBLAS, cuDNN and TensorRT when they load: the provider's own option alone gives way where a convolution
    # has no kernel without tensor cores, and the TensorRT provider has none.
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    onnxruntime.set_default_logger_severity(3)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # TensorRT alone: with CUDA behind it, it could hand over every operator, and nobody would know.
    providers = [kind.name if wanted.provider == "tensorrt" else (kind.name, EXACT)]
    session, failure = None, None
    with _native_log() as log:
        # CUDA from pip lies where only this function looks. It prints what it does not find; the log says so, too.
        with contextlib.redirect_stdout(io.StringIO()):
            getattr(onnxruntime, "preload_dlls", lambda: None)()
        try:
            session = _session(onnxruntime, content, path, options, providers)
        except DynamicConfidenceError as error:
            failure = error
    if session is None or kind.name not in session.get_providers():
        raise _fault(onnxruntime, wanted.provider, log[0], failure) from failure
    sys.stderr.write(log[0])
    return session, backend


def first_run(session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding, provider: Provider) -> None:
    """Run once on a GPU: its first call compiles, and TensorRT builds its engine there, which may fail.

    Raises: as `start_session`.
    """
    refused: Exception | None = None
    with _native_log() as log:
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # noqa: BLE001 — ONNX Runtime has no class of its own for what a provider refuses
            refused = error
    if refused is not None:
        failure = BackendMissing(f"--provider {provider}: its first call failed ({one_line(str(refused))}).")
        raise _fault(load_onnxruntime(), provider, log[0], failure) from refused
    sys.stderr.write(log[0])


def _session(
    onnxruntime: Any, content: bytes, path: Path, options: Any, providers: list[Any]
) -> onnxruntime.InferenceSession:
    try:
        # enable_fallback: without it the Python side prints, and tries again with other providers.
        return onnxruntime.InferenceSession(content, options, providers=providers, enable_fallback=False)
    except Exception as error:
        raise DynamicConfidenceError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it: {error}. "
            "Export the network again with `dc-export model.pt`."
        ) from error


def _check_machine(onnxruntime: Any, provider: Provider) -> None:
    """What can be known before ONNX Runtime tries: is the provider built in, is there a GPU at all?"""
    available = onnxruntime.get_available_providers()
    if KINDS[provider].name not in available:
        raise BackendMissing(
            f"--provider {provider}: the installed ONNX Runtime {onnxruntime.__version__} has no "
            f"{KINDS[provider].name}, only {', '.join(available)}: {GPU_PACKAGE} (on a Jetson: docs/jetson.md)."
        )
    if device_target() is None:
        raise BackendMissing(
            f"--provider {provider}: found no NVIDIA driver with a GPU on this machine. Install the driver "
            "(`nvidia-smi` shows whether it works), or leave out --provider."
        )


def _fault(
    onnxruntime: Any, provider: Provider, log: str, failure: DynamicConfidenceError | None
) -> DynamicConfidenceError:
    """Why the provider is not in the session: from the log, where its library did not load, or from the exception."""
    text = f"{log}\n{failure}"
    start = f"--provider {provider}: ONNX Runtime {onnxruntime.__version__}"
    if found := _NOT_LOADED.search(text):
        remedy = TENSORRT_LIBRARIES if found[1].startswith("libnv") else CUDA_LIBRARIES
        return BackendMissing(f"{start} cannot start it ({found[1]}): {remedy}.")
    if found := _NO_CUDA.search(text):
        return BackendMissing(f"{start} cannot start it ({found[1]}): install a driver for this CUDA.")
    if _ON_CPU in text:
        return BackendMissing(
            f"{start} would run a part of this network on the CPU, expected 1.21 or later, which runs all of it on the "
            f"GPU: {GPU_PACKAGE}."
        )
    return failure or BackendMissing(f"{start} left it out and does not say why; `dc-doctor` shows what is installed.")


@contextlib.contextmanager
def _native_log() -> Iterator[list[str]]:
    """Catch what native code writes to stderr meanwhile (in the whole process); it is in the list afterwards.

    ONNX Runtime says only there why a provider did not start; its Python package has no other way to get at it.
    """
    log: list[str] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        file.seek(0)
        log.append(file.read())
