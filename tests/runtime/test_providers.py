"""ONNX Runtime's providers: which options go together, and every way in which a GPU provider is not to be had."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from dynamic_confidence.calib import calibrate
from dynamic_confidence.calib.dc_calibrate import main as dc_calibrate
from dynamic_confidence.runtime import cli, plan_file
from dynamic_confidence.runtime.engine import (
    BACKENDS,
    Backend,
    CudaBinding,
    EngineOptions,
    Provider,
    StepOutput,
    open_engine,
)
from dynamic_confidence.runtime.engines import onnxruntime_session as module
from dynamic_confidence.runtime.engines.onnxruntime_session import KINDS, first_run, load_onnxruntime, start_session
from dynamic_confidence.runtime.errors import BackendMissing, DynamicConfidenceError
from dynamic_confidence.runtime.stepping import run_to_the_end

GPU_PROVIDERS = ("cuda", "tensorrt")
ALL_NAMES = [KINDS["tensorrt"].name, KINDS["cuda"].name, KINDS["cpu"].name]
# What onnxruntime-gpu 1.31.1 wrote, on machines without CUDA, without TensorRT and without a driver.
LOG = (
    "[E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] provider_bridge_ort.cc:2043 "
    "onnxruntime::Provider& onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library "
    "/site-packages/onnxruntime/capi/libonnxruntime_providers.so with error: {library}: cannot open shared object "
    "file: No such file or directory\n"
)
ON_CPU = (
    "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to the default CPU EP, but "
    "fallback to CPU EP has been explicitly disabled by the user."
)
OLD_DRIVER = (
    "cuda_call.cc:146 std::conditional_t<THRW, void, common::Status> onnxruntime::CudaCall(ERRTYPE, const char*) CUDA "
    "failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; hostname=vm ; line=355"
)
PACKAGES = "`pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'dynamic-confidence[gpu]'`"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """`machine(log, failure, active)`: onnxruntime-gpu in words. A session writes `log`, and fails or has providers."""

    def install(log: str = "", failure: str | None = None, active: list[str] | None = None) -> list[Any]:
        calls: list[Any] = []

        def session(content: bytes, options: Any, **arguments: Any) -> Any:
            calls.append((options, arguments, os.environ.get("NVIDIA_TF32_OVERRIDE")))
            os.write(2, log.encode())
            if failure is not None:
                raise RuntimeError(failure)
            return SimpleNamespace(get_providers=lambda: active)

        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL_NAMES)
        monkeypatch.setattr(onnxruntime, "set_default_logger_severity", lambda level: calls.append(level))
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcublas.so"), raising=False)
        monkeypatch.setattr(onnxruntime, "InferenceSession", session)
        monkeypatch.setattr(module, "device_target", lambda: "sm89")
        return calls

    return install


def start(provider: Provider) -> Any:
    return start_session(b"", Path("net.onnx"), EngineOptions(provider=provider))


def refused(provider: Provider) -> BackendMissing:
    with pytest.raises(BackendMissing) as caught:
        start(provider)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return caught.value


def test_the_commands_offer_what_the_engines_know():
    assert get_args(Provider) == cli.PROVIDERS == tuple(KINDS)
    assert get_args(CudaBinding) == cli.CUDA_BINDINGS
    assert get_args(Backend) == cli.BACKENDS == ("auto", *BACKENDS)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"cuda": "pycuda"}, "--cuda pycuda"),
        ({"cuda_graphs": False}, "--no-cuda-graph"),
        ({"speculate": True}, "--speculate"),
    ],
)
def test_options_of_plans_are_refused(tmp_path: Path, options: dict[str, Any], option: str):
    path = tmp_path / "my net.onnx"  # not there: the options are looked at first
    message = f"my net.onnx: {option} is for .plan files. Leave it out, or make a plan with `dc-build '{path}'`."
    with pytest.raises(DynamicConfidenceError) as caught:
        open_engine(path, **options)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("provider", GPU_PROVIDERS)
def test_cpu_threads_and_a_gpu_do_not_go_together(provider: Provider):
    message = f"--threads 2 is for --provider cpu: with {provider} every operator runs on the GPU. Leave it out."
    with pytest.raises(DynamicConfidenceError) as caught:
        open_engine("net.onnx", threads=2, provider=provider)
    assert str(caught.value) == message


@pytest.mark.parametrize("provider", GPU_PROVIDERS)
def test_a_package_without_the_provider(monkeypatch: pytest.MonkeyPatch, provider: Provider):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["AzureExecutionProvider", KINDS["cpu"].name])
    assert str(refused(provider)) == (
        f"--provider {provider}: the installed ONNX Runtime {onnxruntime.__version__} has no {KINDS[provider].name}, "
        f"only AzureExecutionProvider, CPUExecutionProvider: {PACKAGES} (on a Jetson: docs/jetson.md)."
    )


@pytest.mark.parametrize("provider", GPU_PROVIDERS)
def test_a_listed_provider_without_a_driver(machine, monkeypatch: pytest.MonkeyPatch, provider: Provider):
    calls = machine()
    monkeypatch.setattr(module, "device_target", lambda: None)
    assert str(refused(provider)) == (
        f"--provider {provider}: found no NVIDIA driver with a GPU on this machine. Install the driver (`nvidia-smi` "
        "shows whether it works), or leave out --provider."
    )
    assert calls == []


@pytest.mark.parametrize(
    ("provider", "library", "remedy"),
    [
        ("cuda", "libcublasLt.so.13", "with `pip install 'onnxruntime-gpu[cuda,cudnn]'`."),
        ("tensorrt", "libcublas.so.13", "with `pip install 'onnxruntime-gpu[cuda,cudnn]'`."),
        ("tensorrt", "libnvinfer.so.10", "install the TensorRT that this ONNX Runtime was built for, and name"),
    ],
)
@pytest.mark.parametrize("failure", [ON_CPU, "Please install TensorRT libraries as mentioned", None])
def test_a_library_that_is_missing(machine, capfd, provider: Provider, library: str, remedy: str, failure: str | None):
    """ONNX Runtime writes the reason to its log; its exception, if there is one, is of something else."""
    machine(LOG.format(library=library), failure, active=[KINDS["cpu"].name])
    message = str(refused(provider))
    assert (
        f"--provider {provider}: ONNX Runtime {onnxruntime.__version__} cannot start it ({library}: cannot" in message
    )
    assert remedy in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            OLD_DRIVER,
            "cannot start it (CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version): install "
            "a driver for this CUDA.",
        ),
        (
            ON_CPU,
            "would run a part of this network on the CPU, expected 1.21 or later, which runs all of it on the GPU: "
            f"{PACKAGES}.",
        ),
        (None, "left it out and does not say why; `dc-doctor` shows what is installed."),
    ],
)
def test_other_reasons(machine, failure: str | None, message: str):
    machine(failure=failure, active=[KINDS["cpu"].name])
    assert str(refused("cuda")) == f"--provider cuda: ONNX Runtime {onnxruntime.__version__} {message}"


def test_tensorrt_without_tensorrt_is_not_cuda(machine):
    machine(active=[KINDS["cuda"].name, KINDS["cpu"].name])
    assert "--provider tensorrt: " in str(refused("tensorrt"))


def test_a_network_that_does_not_load_is_no_missing_backend(machine):
    machine(failure="Load model from bytes failed")
    with pytest.raises(
        DynamicConfidenceError, match=r"net\.onnx: ONNX Runtime .* cannot load it: Load model"
    ) as caught:
        start("cuda")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("provider", GPU_PROVIDERS)
def test_what_a_session_is_asked_for(machine, capfd, provider: Provider):
    """No TF32, no other convolutions than sums in float32, nothing on the CPU, no second try."""
    calls = machine(log="a warning of ONNX Runtime\n", active=ALL_NAMES)
    _, backend = start(provider)
    assert backend == f"ONNX Runtime {onnxruntime.__version__}, {KINDS[provider].title}"
    severity, (options, arguments, tf32) = calls
    assert (severity, tf32) == (3, "0")
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    expected = {
        "cuda": ("CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}),
        "tensorrt": "TensorrtExecutionProvider",  # alone: nothing may slip to another one
    }
    assert arguments == {"providers": [expected[provider]], "enable_fallback": False}
    assert capfd.readouterr() == ("", "a warning of ONNX Runtime\n")


def test_a_first_call_that_fails(capfd):
    """TensorRT builds for a dynamic batch in the first call."""

    def run(binding: object) -> None:
        os.write(2, b"a word of native code\n")
        raise RuntimeError("TensorRT EP failed to create engine\nfrom network")

    message = r"^--provider tensorrt: its first call failed \(TensorRT EP failed to create engine from network\)\.$"
    with pytest.raises(BackendMissing, match=message):
        first_run(SimpleNamespace(run_with_iobinding=run), None, "tensorrt")  # type: ignore[arg-type]
    first_run(SimpleNamespace(run_with_iobinding=lambda binding: None), None, "tensorrt")  # type: ignore[arg-type]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (ModuleNotFoundError(name="onnxruntime"), "ONNX Runtime is not installed. Install it with `pip install"),
        (ModuleNotFoundError(name="flatbuffers"), "ONNX Runtime is installed without 'flatbuffers': `pip install"),
        (ImportError("libstdc++.so.6"), r"ONNX Runtime is installed but does not load (libstdc++.so.6): `pip install"),
        (
            None,
            "ONNX Runtime is installed in part only, as when one of onnxruntime and onnxruntime-gpu was removed: "
            + PACKAGES,
        ),
    ],
)
def test_an_onnxruntime_that_is_not_whole(monkeypatch: pytest.MonkeyPatch, found: ImportError | None, message: str):
    class Finder:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "onnxruntime" and found:
                raise found

    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    if found is None:
        monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with pytest.raises(BackendMissing) as caught:
        load_onnxruntime()
    assert message in str(caught.value)


def test_dc_calibrate_takes_a_provider(exported, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [KINDS["cpu"].name])
    network = tmp_path / "net.onnx"
    network.write_bytes(exported().read_bytes())
    np.savez(tmp_path / "val.npz", image=pixels, label=np.arange(64) % 4)
    arguments = [str(network), "--data", str(tmp_path / "val.npz")]
    result = CliRunner().invoke(dc_calibrate, [*arguments, "--provider", "cuda"])
    assert result.exit_code == 3
    assert "Error: --provider cuda: the installed ONNX Runtime" in result.stderr
    assert network.read_bytes() == exported().read_bytes()
    assert CliRunner().invoke(dc_calibrate, [*arguments, "--provider", "cpu", "--threads", "1"]).exit_code == 0
    assert network.read_bytes() != exported().read_bytes()


@pytest.mark.parametrize(("name", "images", "expected"), [("net.onnx", 9, 9), ("net.onnx", 99, 64), ("net.plan", 9, 4)])
def test_a_plan_is_calibrated_in_batches_that_it_takes(
    monkeypatch: pytest.MonkeyPatch, name: str, images: int, expected: int
):
    class Opened(Exception):
        pass

    def opened(path: Path, batch: int) -> None:
        raise Opened(batch)

    monkeypatch.setattr(calibrate, "open_engine", opened)
    monkeypatch.setattr(plan_file, "largest_batch", lambda path: 4)
    with pytest.raises(Opened, match=str(expected)):
        calibrate.trace_from_file(Path(name), np.zeros((images, 1, 12, 12), np.uint8), np.arange(images), "data")


def copied(output: StepOutput) -> dict[str, np.ndarray]:
    return {name: values.copy() for name, values in output._asdict().items() if values is not None}


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("provider", "method", "k", "batch"), list(product(GPU_PROVIDERS, ("qcfs", "qffs"), (1, 4), (1, 7)))
)
def test_a_gpu_gives_the_bits_of_the_cpu(
    exported: Callable[..., Path], pixels: np.ndarray, provider: Provider, method: str, k: int, batch: int
):
    if KINDS[provider].name not in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {KINDS[provider].name}: pip install onnxruntime-gpu")
    path, images = exported(method=method, steps_per_call=k, count_spikes=True), pixels[: 2 * batch]
    with open_engine(path, batch=batch) as cpu, open_engine(path, batch=batch, provider=provider) as gpu:
        for start_at in (0, batch, 0):  # the third time: a reset after other images changes nothing
            part = images[start_at : start_at + batch]
            for found, expected in zip(run_to_the_end(gpu, part, 1.0), run_to_the_end(cpu, part, 1.0), strict=True):
                np.testing.assert_array_equal(found, expected)
        cpu_outputs, gpu_outputs = [], []
        for engine, outputs in ((cpu, cpu_outputs), (gpu, gpu_outputs)):
            engine.reset(2.0)
            engine.step(images[:batch])
            outputs.append(copied(engine.step()))
            engine.refill(np.array([batch - 1]), images[:1])
            outputs.append(copied(engine.step()))
        for found, expected in zip(gpu_outputs, cpu_outputs, strict=True):
            for name in ("logits", "label", "spikes"):
                np.testing.assert_array_equal(found[name], expected[name])
            np.testing.assert_allclose(found["confidence"], expected["confidence"], rtol=1e-5)
