"""Which package speaks to CUDA, what is said when it, the driver or the GPU is missing, and the names that are used."""

from __future__ import annotations

import ast
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dynamic_confidence.runtime import cuda as package
from dynamic_confidence.runtime.cuda import IMPLEMENTATIONS, bindings, errors, open_cuda, pycuda
from dynamic_confidence.runtime.cuda.errors import CudaError
from dynamic_confidence.runtime.errors import BackendMissing, DynamicConfidenceError

NAMES = ("cuda", "cuda.bindings", "cuda.bindings.runtime", "pycuda", "pycuda.driver")


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def runtime() -> Any:
    return pytest.importorskip(
        "cuda.bindings.runtime", reason="cuda-bindings is not installed: pip install cuda-bindings"
    )


def refused(choice: str, message: str) -> None:
    with pytest.raises(BackendMissing, match=message) as caught, open_cuda(choice):
        pass
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("bindings", r"^cuda-bindings is not installed: `pip install cuda-bindings`\.$"),
        ("pycuda", r"^pycuda is not installed: `pip install pycuda` \(it is compiled and needs the CUDA toolkit\)\.$"),
        (
            "auto",
            r"^a plan needs cuda-bindings or pycuda, found neither: `pip install cuda-bindings`\.$",
        ),
    ],
)
def test_no_package(nothing_installed: None, choice: str, message: str):
    refused(choice, message)


def test_an_unknown_package():
    message = "cuda 'cupy': expected one of auto, bindings, pycuda"
    with pytest.raises(DynamicConfidenceError, match=message), open_cuda("cupy"):
        pass


def test_the_list_names_the_modules():
    assert tuple(m.__name__.rpartition(".")[2] for m in (bindings, pycuda)) == IMPLEMENTATIONS
    assert {path.stem for path in Path(package.__path__[0]).glob("*.py")} == {*IMPLEMENTATIONS, "__init__", "errors"}


@pytest.mark.parametrize(("here", "expected"), [((1, 1), "bindings"), ((0, 1), "pycuda")])
def test_the_choice(monkeypatch: pytest.MonkeyPatch, here: tuple[int, int], expected: str):
    for module, there in zip((bindings, pycuda), here, strict=True):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, "load", lambda there=there: object() if there else None)
        monkeypatch.setattr(module, "opened", lambda library, name=name: nullcontext(name))
    with open_cuda() as cuda:
        assert cuda == expected
    with open_cuda("pycuda") as cuda:
        assert cuda == "pycuda"


@pytest.mark.parametrize(
    ("name", "program", "choice", "message"),
    [
        (
            "cuda.bindings.runtime",
            "import part_of_no_release",
            "bindings",
            "cuda-bindings is installed but does not load",
        ),
        (
            "cuda.bindings.runtime",
            "raise ImportError('libx.so')",
            "bindings",
            r"does not load \(libx\.so\): `pip install --force-reinstall cuda-bindings`\.",
        ),
        ("pycuda.driver", "import part_of_no_release", "pycuda", "pycuda is installed but does not load"),
        (
            "pycuda.driver",
            "raise ImportError('libx.so')",
            "pycuda",
            r"not load \(libx\.so\): `pip install --force-reinstall pycuda`\.",
        ),
        ("pycuda.driver", "raise ImportError('libcuda.so.1: no')", "pycuda", "found no NVIDIA driver"),
    ],
)
def test_a_package_that_does_not_load(
    nothing_installed: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    program: str,
    choice: str,
    message: str | None,
):
    folder = tmp_path
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        folder = folder / part
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        monkeypatch.delitem(sys.modules, ".".join(parts[: index + 1]))
    (folder / f"{parts[-1]}.py").write_text(program)
    monkeypatch.delitem(sys.modules, name)
    if parts[0] == "cuda" and len(parts) == 2:
        monkeypatch.delitem(sys.modules, "cuda.bindings")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(errors, "load_driver", lambda: None)
    if message is None:
        loaded = bindings.load()
        assert loaded is not None
        assert loaded.__name__ == name
    else:
        refused(choice, message)
    for module in [module for module in sys.modules if module.startswith(parts[0])]:
        monkeypatch.delitem(sys.modules, module)


DRIVERS = [
    (None, "^found no NVIDIA driver .no libcuda.so.1., which a plan needs: install it, or run the .onnx on the CPU"),
    (
        object(),
        r"^the NVIDIA driver is too old for the CUDA of cuda-bindings \d+\.\d+.*: install a newer driver, or an",
    ),
]


@pytest.mark.parametrize(("driver", "message"), DRIVERS, ids=["none", "old"])
def test_bindings_without_a_driver_that_fits(runtime, monkeypatch: pytest.MonkeyPatch, driver: object, message: str):
    insufficient = runtime.cudaError_t.cudaErrorInsufficientDriver
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (insufficient, None))
    monkeypatch.setattr(errors, "load_driver", lambda: driver)
    refused("bindings", message)


def test_bindings_without_a_gpu(runtime, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (runtime.cudaError_t.cudaErrorNoDevice, None))
    refused(
        "bindings", r"^found no NVIDIA GPU \(no CUDA-capable device is detected \(cudaErrorNoDevice\)\), which a plan"
    )


def test_bindings_with_a_device_that_does_not_work(runtime, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (runtime.cudaError_t.cudaErrorUnknown, None))
    refused(
        "bindings", r"^cudaGetDeviceCount failed: unknown error \(cudaErrorUnknown\)\. Open the engine again; if that"
    )


def test_every_call_is_checked(runtime):
    """On a machine without a driver the real calls refuse; with one, this call refuses nonsense."""
    cuda = object.__new__(bindings.Bindings)
    cuda._runtime = runtime
    with pytest.raises(CudaError, match=r"^cudaEventSynchronize failed: .* \(cudaError\w+\)\. "):
        cuda._call("cudaEventSynchronize", runtime.cudaEvent_t(0))


def test_a_gpu_that_is_full():
    error = CudaError("cudaMalloc failed: out of memory (cudaErrorMemoryAllocation)")
    assert str(error).endswith("(cudaErrorMemoryAllocation). Use a smaller batch, or close what else uses the GPU.")
    assert error.exit_code == 3


def pycuda_driver(**changed: Any) -> ModuleType:
    """The names of pycuda.driver that say how many GPUs there are; none of them does anything."""
    driver = ModuleType("pycuda.driver")
    device = type("Device", (), {"count": staticmethod(lambda: 0)})
    vars(driver).update({"Error": RuntimeError, "Device": device, "init": lambda: None} | changed)
    return driver


def test_pycuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch):
    def refuse() -> None:
        raise RuntimeError("cuInit failed: no device")

    monkeypatch.setattr(pycuda, "load", pycuda_driver)
    refused("pycuda", r"^found no NVIDIA GPU \(pycuda counts 0\), which a plan needs: is one hidden by CUDA_VISIBLE")
    monkeypatch.setattr(pycuda, "load", lambda: pycuda_driver(init=refuse))
    refused("pycuda", r"^found no NVIDIA GPU \(cuInit failed: no device\), which a plan needs")


def test_pycuda_has_no_graphs_and_says_why_a_call_failed(monkeypatch: pytest.MonkeyPatch):
    def refuse(size: int) -> None:
        raise RuntimeError("cuMemAlloc failed: out of memory")

    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(VERSION_TEXT="2026.1"))
    device = SimpleNamespace(name=lambda: "a GPU", compute_capability=lambda: (8, 7))
    cuda = pycuda.PyCuda(pycuda_driver(mem_alloc=refuse), device)
    assert (cuda.package, cuda.device, cuda.target) == ("pycuda 2026.1", "a GPU", "sm87")
    with pytest.raises(CudaError, match=r"^cuMemAlloc failed: out of memory\. Use a smaller batch"):
        cuda.device_memory(8).__enter__()
    with pytest.raises(CudaError) as caught:
        cuda.capture(lambda: None, None)
    assert caught.value.reason == "pycuda has none"
    with pytest.raises(CudaError, match="pycuda has no CUDA graphs to launch"):
        cuda.launch(None, None)


def test_the_names_of_cuda_python(runtime):
    """Every name of CUDA in the module is one of the installed bindings."""
    source = Path(bindings.__file__).read_text(encoding="utf-8")
    used = {
        text
        for node in ast.walk(ast.parse(source))
        for text in (node.attr if isinstance(node, ast.Attribute) else getattr(node, "value", None),)
        if isinstance(text, str) and re.fullmatch(r"cuda[A-Z]\w+", text)
    }
    assert {"cudaGetDeviceCount", "cudaStreamCaptureModeThreadLocal", "cudaGraphInstantiate", "cudaFreeHost"} <= used
    enums = [runtime.cudaError_t, runtime.cudaDeviceAttr, runtime.cudaMemcpyKind, runtime.cudaStreamCaptureMode]
    known = set(dir(runtime)).union(*map(dir, enums))
    assert used <= known, used - known


def test_the_names_of_pycuda():
    """The two implementations have the same methods."""

    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(bindings.Bindings) == public(pycuda.PyCuda) == public(package.Cuda) != set()
