"""What this machine can run a network with, piece by piece, and what to install for the rest."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Literal

from .engine import EngineOptions, Provider
from .engines.events import load_numba
from .engines.onnxruntime_session import KINDS, load_onnxruntime, start_session
from .engines.openvino import load_openvino, version_of
from .errors import BackendMissing, DynamicConfidenceError
from .gpu import cuda_version, device_target, load_driver
from .plan_file import LIBRARIES, Flavour
from .tensorrt_library import MODULES, load_library

State = Literal["ok", "missing", "broken"]
BASE = ("click", "msgspec", "numpy", "onnx", "Pillow", "rich")
_NOT_USABLE: dict[State, str] = {"missing": "not installed", "broken": "installed, cannot be used"}
CUDA_PACKAGES = {"cuda-bindings": "bindings", "pycuda": "pycuda"}
"""Package -> our module in `runtime/cuda/` that loads it."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    name: str
    state: State
    found: str
    remedy: str = ""
    """What to do about it, as a sentence that can stand alone; none where another finding says it."""


NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "cpu": (("onnxruntime",), ("provider cpu",)),
    "openvino": (("openvino",),),
    "events": (("numba",),),
    "cuda": (("onnxruntime",), ("driver",), ("gpu",), ("provider cuda",)),
    "tensorrt": (("driver",), ("gpu",), (LIBRARIES["tensorrt"],), tuple(CUDA_PACKAGES)),
    "rtx": (("driver",), ("gpu",), (LIBRARIES["rtx"],), tuple(CUDA_PACKAGES)),
}
"""Way to run a network -> the findings that must be ok; of several in one place, one is enough."""


def diagnose(root: Path = Path("/")) -> list[Finding]:
    """Look at this machine; `root` is where /proc and /etc are. Nothing is installed, changed or sent."""
    return [
        Finding("python", "ok", f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        _base(),
        Finding("processor", "ok", _processor(root)),
        *_jetson(root),
        *_gpu(root),
        *_onnxruntime(),
        _openvino(),
        _numba(),
        *(_tensorrt(flavour) for flavour in LIBRARIES),
        *(_cuda_package(name) for name in CUDA_PACKAGES),
    ]


def missing_for(way: str, findings: list[Finding]) -> Finding | None:
    """The first finding that keeps this machine from running networks this way (`NEEDS`); None when it can."""
    by_name = {finding.name: finding for finding in findings}
    for alternatives in NEEDS[way]:
        looked = [by_name[name] for name in alternatives]
        if not any(finding.state == "ok" for finding in looked):
            return looked[0]
    return None


def _base() -> Finding:
    versions: list[str] = []
    for package in BASE:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            return Finding(
                "packages", "broken", f"no {package}", f"Install {package} with `pip install dynamic-confidence`."
            )
    return Finding("packages", "ok", ", ".join(versions))


def _processor(root: Path) -> str:
    """Its name where Linux tells it (not on every ARM), and how many cores this process may use."""
    lines = (line.partition(":") for line in _read(root / "proc/cpuinfo").splitlines())
    names = (value.strip() for key, _, value in lines if key.strip() in ("model name", "Model"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{next(names, platform.machine())}, {cores} cores"


def _jetson(root: Path) -> Iterator[Finding]:
    """Nothing on other machines."""
    release = _read(root / "etc/nv_tegra_release").partition(", GCID")[0].removeprefix("# ")
    if not release:
        return
    yield Finding("jetson", "ok", f"{_read(root / 'proc/device-tree/model').rstrip(chr(0))}, L4T {release}")
    if shutil.which("nvpmodel") is None:
        yield Finding("power mode", "missing", "no nvpmodel here", "Ask for the power mode outside of the container.")
        return
    asked = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True)
    if asked.returncode:
        found = f"nvpmodel ended with {asked.returncode}"
        yield Finding("power mode", "broken", found, "Ask for the power mode with `sudo nvpmodel -q`.")
    else:
        yield Finding("power mode", "ok", " ".join(asked.stdout.split()))


def _gpu(root: Path) -> Iterator[Finding]:
    driver = load_driver()
    if driver is None:
        remedy = "Install the NVIDIA driver, or start the container with the GPU (`docker run --gpus all …`)."
        yield Finding("driver", "missing", "no libcuda.so.1", remedy)
        yield Finding("gpu", "missing", "no driver to ask")
        return
    module = _read(root / "proc/driver/nvidia/version").partition("\n")[0]
    cuda = f"CUDA {cuda_version(driver) or '0.0'}"
    yield Finding("driver", "ok", ", ".join(filter(None, [cuda, module])))
    target, name = device_target(), ctypes.create_string_buffer(256)
    if target is None:
        remedy = "Look for the GPU with `nvidia-smi`; the variable CUDA_VISIBLE_DEVICES may hide it."
        yield Finding("gpu", "missing", "the driver shows none", remedy)
        return
    driver.cuDeviceGetName(name, len(name), 0)
    yield Finding("gpu", "ok", f"{name.value.decode()}, {target}")


def _onnxruntime() -> Iterator[Finding]:
    try:
        onnxruntime = load_onnxruntime()
    except BackendMissing as error:
        state = _absent("onnxruntime")
        yield Finding("onnxruntime", state, _NOT_USABLE[state], str(error))
        return
    available = onnxruntime.get_available_providers()
    yield Finding("onnxruntime", "ok", f"{onnxruntime.__version__}, with {', '.join(available)}")
    for provider in KINDS:
        yield _provider(provider, KINDS[provider].name in available)


def _provider(provider: Provider, listed: bool) -> Finding:
    """That it is listed says little: start it, on a network of one operator."""
    name = f"provider {provider}"
    try:
        start_session(_smallest_network(), Path("one operator"), EngineOptions(provider=provider))
    except DynamicConfidenceError as error:
        found = "listed, does not start" if listed else "not in this package"
        return Finding(name, "broken" if listed else "missing", found, str(error))
    return Finding(name, "ok", "starts")


def _smallest_network() -> bytes:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one_operator", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def _openvino() -> Finding:
    try:
        openvino = load_openvino()
    except BackendMissing as error:
        state = _absent("openvino")
        return Finding("openvino", state, _NOT_USABLE[state], str(error))
    devices = openvino.Core().available_devices
    found = f"{version_of(openvino)}, with {', '.join(devices) or 'no device'}"
    if "CPU" not in devices:
        remedy = "Install OpenVINO again, whole, with `pip install --force-reinstall openvino`."
        return Finding("openvino", "broken", found, remedy)
    return Finding("openvino", "ok", found)


def _numba() -> Finding:
    try:
        numba = load_numba()
    except BackendMissing as error:
        state = _absent("numba")
        return Finding("numba", state, _NOT_USABLE[state], str(error))
    return Finding("numba", "ok", numba.__version__)


def _tensorrt(flavour: Flavour) -> Finding:
    try:
        library = load_library(flavour)
    except BackendMissing as error:
        state = _absent(MODULES[flavour])
        return Finding(LIBRARIES[flavour], state, _NOT_USABLE[state], str(error))
    return Finding(LIBRARIES[flavour], "ok", library.__version__)


def _cuda_package(name: str) -> Finding:
    ours = import_module(f".cuda.{CUDA_PACKAGES[name]}", __package__)
    try:
        module = ours.load()
    except BackendMissing as error:
        return Finding(name, "broken", "does not load", str(error))
    if module is None:
        # pycuda must be compiled, and nothing needs it where cuda-bindings is there.
        remedy = "" if name == "pycuda" else f"Install {name} with `pip install {name}`: plans need it, or pycuda."
        return Finding(name, "missing", "not installed", remedy)
    package = import_module(module.__name__.rpartition(".")[0])
    return Finding(name, "ok", package.VERSION_TEXT if name == "pycuda" else package.__version__)


def _absent(module: str) -> State:
    """Is what cannot be loaded not there, or there and broken?"""
    try:
        return "broken" if util.find_spec(module) else "missing"
    except (ModuleNotFoundError, ValueError):  # its parent is not there; or set to None
        return "missing"


def _read(path: Path) -> str:
    """The text of a file of the system; empty where there is none that may be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
