"""Which TensorRT builds a plan, for which GPUs, and what is said when one of them is not there."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from dynamic_confidence.runtime.errors import BackendMissing, DynamicConfidenceError
from dynamic_confidence.runtime.plan_file import PORTABLE
from dynamic_confidence.toolchain import plan_backend
from dynamic_confidence.toolchain.plan_backend import open_backend


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever machine the tests run on."""
    monkeypatch.setattr(plan_backend, "device_target", lambda: None)


@pytest.mark.parametrize("flavour", ["rtx", "tensorrt"])
def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, flavour: str):
    name, extra = {"rtx": ("tensorrt_rtx", "rtx"), "tensorrt": ("tensorrt", "trt")}[flavour]
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendMissing, match=rf"is not installed: `pip install 'dynamic-confidence\[{extra}\]'`"):
        open_backend(flavour)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("raise ImportError('libnvinfer.so.10: cannot open')", r"bindings but not the libraries .*libnvinfer\.so\.10"),
        ("raise OSError('libnvinfer.so.10: cannot open')", r"bindings but not the libraries they load \(libnvinfer"),
        ("import tensorrt_of_no_release", "is installed without its part 'tensorrt_of_no_release'"),
        ("", r"the module tensorrt found is not TensorRT \(no Builder in it\)"),
        ("__version__ = '8.6.1'\nclass Builder: pass", r"TensorRT 8\.6\.1 is installed, expected 10\.0 or later"),
        ("__version__ = '10.3.0'\nclass Builder: pass", "TensorRT needs an NVIDIA GPU and its driver to build, found"),
    ],
    ids=["import error", "os error", "part missing", "not it", "old", "no driver"],
)
def test_a_library_that_does_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str):
    (tmp_path / "tensorrt.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(BackendMissing, match=message):
        open_backend("tensorrt")
    sys.modules.pop("tensorrt", None)


class ComputeCapability:
    SM86 = SM89 = SM120 = None


def install(monkeypatch: pytest.MonkeyPatch, *names: str, gpu: str | None) -> None:
    """Stand-ins for the libraries, on a machine with this GPU."""
    for name in ("tensorrt", "tensorrt_rtx"):
        stand_in: ModuleType | None = None
        if name in names:
            stand_in = ModuleType(name)
            vars(stand_in).update(Builder=object, ComputeCapability=ComputeCapability, __version__="10.0.1")
        monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.setattr(plan_backend, "device_target", lambda: gpu)


@pytest.mark.parametrize(
    ("installed", "gpu", "flavour", "targets", "expected"),
    [
        (("tensorrt", "tensorrt_rtx"), None, "auto", (), ("rtx", (PORTABLE,))),
        (("tensorrt", "tensorrt_rtx"), "sm89", "auto", (), ("tensorrt", ("sm89",))),
        (("tensorrt", "tensorrt_rtx"), "sm89", "auto", ("current",), ("tensorrt", ("sm89",))),
        (("tensorrt", "tensorrt_rtx"), "sm89", "auto", ("sm86",), ("rtx", ("sm86",))),
        (("tensorrt", "tensorrt_rtx"), "sm89", "rtx", ("sm120", "current"), ("rtx", ("sm89", "sm120"))),
        (("tensorrt_rtx",), "sm89", "auto", (), ("rtx", (PORTABLE,))),
        (("tensorrt_rtx",), "sm89", "auto", ("current",), ("rtx", ("sm89",))),
        (("tensorrt",), "sm87", "auto", ("sm87",), ("tensorrt", ("sm87",))),
    ],
)
def test_the_choice(monkeypatch: pytest.MonkeyPatch, installed, gpu, flavour, targets, expected):
    install(monkeypatch, *installed, gpu=gpu)
    backend = open_backend(flavour, targets)
    assert (backend.flavour, backend.targets) == expected


@pytest.mark.parametrize(
    ("gpu", "flavour", "targets", "error", "message"),
    [
        (None, "rtx", ("current",), BackendMissing, r"target current: found no NVIDIA GPU .* one of sm86, sm89, sm120"),
        (None, "rtx", ("sm90",), DynamicConfidenceError, r"target sm90: TensorRT-RTX 10\.0\.1 builds for sm86, sm89"),
        ("sm90", "rtx", ("current",), DynamicConfidenceError, "target sm90: TensorRT-RTX"),
        (None, "rtx", (PORTABLE, "sm89"), DynamicConfidenceError, r"or sm80\+ alone\. Choose among them"),
        ("sm87", "tensorrt", ("sm89",), DynamicConfidenceError, r"for the GPU of this machine only \(sm87\)\. Build"),
        (None, "trt", (), DynamicConfidenceError, "flavour 'trt': expected one of auto, tensorrt, rtx"),
    ],
)
def test_a_target_that_cannot_be(monkeypatch: pytest.MonkeyPatch, gpu, flavour, targets, error, message):
    install(monkeypatch, "tensorrt", "tensorrt_rtx", gpu=gpu)
    with pytest.raises(error, match=message):
        open_backend(flavour, targets)
