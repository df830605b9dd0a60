"""The machine that a record was made on: what two records must have in common to be compared."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from pathlib import Path

from ...runtime.load import used_share
from ..processor import ROOT, clock_mhz, flags, governor, processor
from ..record import commit, versions
from .nvml import open_nvml
from .record import Gpu, Machine

LIBRARIES = (
    "dynamic-confidence",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "numba",
    "tensorrt",
    "tensorrt-rtx",
)


def described(*, on_gpu: bool, root: Path = ROOT) -> Machine:
    """Describe this machine; `root` is where /proc and /sys are. The GPU is asked only where it runs an engine."""
    cores = pinned_cores()
    return Machine(
        processor=processor(root),
        flags=flags(root),
        cores=os.cpu_count() or 1,
        pinned_to=cores,
        governor=governor(cores, root),
        clock_mhz=clock_mhz(cores, root),
        load_per_core=used_share(root / "proc"),
        system=f"{platform.system()} {platform.machine()}",
        power_mode=power_mode(root),
        gpu=_gpu() if on_gpu else None,
        python=platform.python_version(),
        libraries=versions(LIBRARIES),
        commit=commit(),
        date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    )


def pinned_cores() -> list[int]:
    """The cores that this process is kept to; none where it may use all of them, or the system cannot tell."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0))
    return allowed if len(allowed) < (os.cpu_count() or 1) else []


def power_mode(root: Path = ROOT) -> str | None:
    """Of a Jetson; None on other machines, or where it does not tell."""
    if not (root / "etc/nv_tegra_release").exists() or shutil.which("nvpmodel") is None:
        return None
    asked = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True)
    return None if asked.returncode else " ".join(asked.stdout.split())


def _gpu() -> Gpu | None:
    nvml = open_nvml()
    if nvml is None:
        return None
    memory = nvml.memory()
    return Gpu(
        name=nvml.name() or "unknown",
        driver=nvml.driver() or "unknown",
        memory_mb=0.0 if memory is None else memory.total / 1e6,
        clock_mhz=nvml.clock_mhz(),
    )
