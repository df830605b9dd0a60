"""dc-doctor tells apart what is not installed, what does not load and what works; its sentences name the remedy."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
from click.testing import CliRunner, Result

from dynamic_confidence.runtime import dc_doctor, doctor
from dynamic_confidence.runtime.doctor import NEEDS, Finding, diagnose, missing_for
from dynamic_confidence.runtime.engines.onnxruntime_session import KINDS
from dynamic_confidence.runtime.errors import BackendMissing


def run(*arguments: str) -> Result:
    return CliRunner().invoke(dc_doctor.main, arguments)


def named(findings: list[Finding]) -> dict[str, Finding]:
    found = {finding.name: finding for finding in findings}
    assert len(found) == len(findings)
    return found


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "load_driver", lambda: None)


@pytest.mark.usefixtures("no_driver")
def test_this_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [KINDS["cpu"].name])
    found = named(diagnose())
    assert found["python"].found.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert f"numpy {metadata.version('numpy')}, onnx {metadata.version('onnx')}, Pillow " in found["packages"].found
    assert found["processor"].found.endswith(" cores")
    assert found["driver"] == Finding(
        "driver",
        "missing",
        "no libcuda.so.1",
        "Install the NVIDIA driver, or start the container with the GPU (`docker run --gpus all …`).",
    )
    assert found["gpu"] == Finding("gpu", "missing", "no driver to ask")
    assert found["onnxruntime"].found == f"{onnxruntime.__version__}, with CPUExecutionProvider"
    assert found["provider cpu"] == Finding("provider cpu", "ok", "starts")
    for name in ("provider cuda", "provider tensorrt"):
        assert (found[name].state, found[name].found) == ("missing", "not in this package")
        assert found[name].remedy.startswith(f"--{name}: the installed ONNX Runtime")
    assert "jetson" not in found


def test_a_listed_provider_that_does_not_start_is_broken(monkeypatch: pytest.MonkeyPatch):
    session = "dynamic_confidence.runtime.engines.onnxruntime_session"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [kind.name for kind in KINDS.values()])
    monkeypatch.setattr(f"{session}.device_target", lambda: None)
    found = named(diagnose())
    assert (found["provider cuda"].state, found["provider cuda"].found) == ("broken", "listed, does not start")
    assert "found no NVIDIA driver with a GPU" in found["provider cuda"].remedy


def test_without_any_backend(monkeypatch: pytest.MonkeyPatch):
    """The base install is enough to be told what is missing."""
    for name in ("onnxruntime", "openvino", "numba", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("bindings", "pycuda"):
        monkeypatch.setattr(f"dynamic_confidence.runtime.cuda.{name}.load", lambda: None)
    found = named(diagnose())
    for name, command in (
        ("onnxruntime", "pip install 'dynamic-confidence[cpu]'"),
        ("openvino", "pip install 'dynamic-confidence[openvino]'"),
        ("numba", "pip install 'dynamic-confidence[events]'"),
        ("TensorRT", "pip install 'dynamic-confidence[trt]'` (on a Jetson it comes with JetPack)"),
        ("TensorRT-RTX", "pip install 'dynamic-confidence[rtx]'"),
    ):
        assert (found[name].state, found[name].found) == ("missing", "not installed")
        assert f"`{command}" in found[name].remedy
    assert found["pycuda"] == Finding("pycuda", "missing", "not installed", "")
    remedy = "Install cuda-bindings with `pip install cuda-bindings`: plans need it, or pycuda."
    assert found["cuda-bindings"].remedy == remedy
    assert not [name for name in found if name.startswith("provider")]
    assert missing_for("cpu", diagnose()) == found["onnxruntime"]


def test_the_real_command_on_a_base_install():
    blocked = ["onnxruntime", "openvino", "numba", "tensorrt", "tensorrt_rtx", "cuda", "pycuda", "torch"]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); "
        "from dynamic_confidence.runtime.dc_doctor import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--require", "cpu"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 3
    assert done.stderr == (
        "Error: --require cpu: onnxruntime is missing (not installed): ONNX Runtime is not installed. Install it with "
        "`pip install 'dynamic-confidence[cpu]'`.\n"
    )
    assert "- ONNX Runtime is not installed. Install it with `pip install 'dynamic-confidence[cpu]'`.\n" in done.stdout


def test_bindings_without_their_libraries_are_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`pip install tensorrt` without its index leaves such a package."""
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')\n")
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libstdc++.so.6: version not found')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("tensorrt", "onnxruntime"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = named(diagnose())
    assert found["TensorRT"].state == found["onnxruntime"].state == "broken"
    assert "has its Python bindings but not the libraries they load (libnvinfer.so.10" in found["TensorRT"].remedy
    assert "is installed but does not load (libstdc++.so.6: version not found)" in found["onnxruntime"].remedy


@pytest.mark.parametrize(
    ("devices", "state", "found", "remedy"),
    [
        (["CPU", "GPU"], "ok", "2026.4.1, with CPU, GPU", ""),
        ([], "broken", "2026.4.1, with no device", "`pip install --force-reinstall openvino`"),
    ],
)
def test_openvino_needs_its_cpu_plugin(monkeypatch: pytest.MonkeyPatch, devices, state, found, remedy):
    core = SimpleNamespace(available_devices=devices)
    library = SimpleNamespace(__version__="2026.4.1-22982-e213a147257-releases/2026/4", Core=lambda: core)
    monkeypatch.setattr(doctor, "load_openvino", lambda: library)
    finding = named(diagnose())["openvino"]
    assert (finding.state, finding.found) == (state, found)
    assert finding.remedy.endswith(f"{remedy}." if remedy else "")


def test_a_cuda_package_that_works_and_one_that_does_not(monkeypatch: pytest.MonkeyPatch):
    def broken() -> None:
        raise BackendMissing("pycuda is installed but does not load (libcuda.so.1)")

    loaders = {name: import_module(f"dynamic_confidence.runtime.cuda.{name}") for name in ("bindings", "pycuda")}
    monkeypatch.setitem(sys.modules, "fake_cuda", SimpleNamespace(__version__="13.5.0"))
    monkeypatch.setattr(loaders["bindings"], "load", lambda: SimpleNamespace(__name__="fake_cuda.runtime"))
    monkeypatch.setattr(loaders["pycuda"], "load", broken)
    found = named(diagnose())
    assert found["cuda-bindings"] == Finding("cuda-bindings", "ok", "13.5.0")
    assert found["pycuda"] == Finding(
        "pycuda", "broken", "does not load", "pycuda is installed but does not load (libcuda.so.1)"
    )


def test_a_base_package_that_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "BASE", ("numpy", "no-such-package-here"))
    assert named(diagnose())["packages"] == Finding(
        "packages",
        "broken",
        "no no-such-package-here",
        "Install no-such-package-here with `pip install dynamic-confidence`.",
    )


class Driver:
    """The calls that are made of libcuda.so.1; the names are cuda.h's."""

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13020
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: int) -> int:
        name.value = b"NVIDIA Test"
        assert ctypes.sizeof(name) == size
        return 0


def test_a_driver_with_and_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    file = tmp_path / "proc" / "driver" / "nvidia" / "version"
    file.parent.mkdir(parents=True)
    file.write_text("NVRM version: NVIDIA UNIX 580.1\nGCC version: 13\n")
    monkeypatch.setattr(doctor, "load_driver", Driver)
    monkeypatch.setattr(doctor, "device_target", lambda: "sm89")
    found = named(diagnose(tmp_path))
    assert found["driver"] == Finding("driver", "ok", "CUDA 13.2, NVRM version: NVIDIA UNIX 580.1")
    assert found["gpu"] == Finding("gpu", "ok", "NVIDIA Test, sm89")

    monkeypatch.setattr(doctor, "device_target", lambda: None)
    hidden = named(diagnose(tmp_path))["gpu"]
    assert (hidden.state, hidden.found) == ("missing", "the driver shows none")
    assert hidden.remedy == "Look for the GPU with `nvidia-smi`; the variable CUDA_VISIBLE_DEVICES may hide it."


RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'NV Power Mode: MAXN'; echo 0", Finding("power mode", "ok", "NV Power Mode: MAXN 0")),
        (
            "exit 4",
            Finding("power mode", "broken", "nvpmodel ended with 4", "Ask for the power mode with `sudo nvpmodel -q`."),
        ),
        (
            None,
            Finding("power mode", "missing", "no nvpmodel here", "Ask for the power mode outside of the container."),
        ),
    ],
)
def test_a_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, expected: Finding):
    for name, text in (
        ("etc/nv_tegra_release", RELEASE),
        ("proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0"),
        ("proc/cpuinfo", "processor\t: 0\nBogoMIPS\t: 62.50\nModel\t\t: ARMv8 of a test\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    programs = tmp_path / "bin"
    programs.mkdir()
    if script is not None:
        (programs / "nvpmodel").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "nvpmodel").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    found = named(diagnose(tmp_path))
    model = "NVIDIA Jetson AGX Orin Developer Kit, L4T R36 (release), REVISION: 4.3"
    assert found["jetson"] == Finding("jetson", "ok", model)
    assert found["processor"].found.startswith("ARMv8 of a test, ")
    assert found["power mode"] == expected


def findings(**states: str) -> list[Finding]:
    names = {name for needs in NEEDS.values() for alternatives in needs for name in alternatives}
    return [Finding(name, states.get(name.replace(" ", "_").replace("-", "_"), "ok"), "", name) for name in names]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("states", "way", "lack"),
    [
        ({}, "cpu", None),
        ({}, "rtx", None),
        ({"openvino": "missing"}, "openvino", "openvino"),
        ({"openvino": "missing"}, "cpu", None),
        ({"numba": "missing"}, "events", "numba"),
        ({"provider_cuda": "broken"}, "cuda", "provider cuda"),
        ({"provider_cuda": "broken", "driver": "missing"}, "cuda", "driver"),
        ({"provider_cuda": "broken"}, "tensorrt", None),
        ({"TensorRT": "missing"}, "tensorrt", "TensorRT"),
        ({"TensorRT": "missing"}, "rtx", None),
        ({"TensorRT_RTX": "missing"}, "rtx", "TensorRT-RTX"),
        ({"cuda_bindings": "missing"}, "rtx", None),  # pycuda is there
        ({"cuda_bindings": "missing", "pycuda": "broken"}, "rtx", "cuda-bindings"),
    ],
)
def test_what_is_needed(states: dict[str, str], way: str, lack: str | None):
    found = missing_for(way, findings(**states))
    assert (found and found.name) == lack


def test_every_need_is_looked_for(monkeypatch: pytest.MonkeyPatch):
    found = named(diagnose())
    assert tuple(NEEDS) == dc_doctor.WAYS
    assert {name for needs in NEEDS.values() for alternatives in needs for name in alternatives} <= set(found)


def test_the_command_informs(monkeypatch: pytest.MonkeyPatch):
    told = [
        Finding("python", "ok", "[3]"),
        Finding("gpu", "missing", "none", "Buy [one]."),
        Finding("x", "broken", "y"),
    ]
    monkeypatch.setattr(doctor, "diagnose", lambda: told)
    result = run()
    assert (result.exit_code, result.stderr) == (0, "")
    for text in ("python", "[3]", "missing", "broken", "- Buy [one].\n"):
        assert text in result.stdout
    assert json.loads(run("--json").stdout)[1] == {
        "name": "gpu",
        "state": "missing",
        "found": "none",
        "remedy": "Buy [one].",
    }


def test_require(monkeypatch: pytest.MonkeyPatch):
    told = findings(driver="missing")
    monkeypatch.setattr(doctor, "diagnose", lambda: told)
    assert run("--require", "cpu").exit_code == 0
    result = run("--require", "cpu", "--require", "cuda", "--json")
    assert result.exit_code == 3
    assert result.stderr == "Error: --require cuda: driver is missing (): driver\n"
    assert json.loads(result.stdout)
    assert run("--require", "gpu").exit_code == 2
