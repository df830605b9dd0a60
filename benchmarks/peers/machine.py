"""The machine that a record was made on, one core of it, and how busy it was."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from ...runtime.errors import DynamicConfidenceError
from ..record import machine

LIBRARIES = ("openvino", "numba", "spikingjelly")
"""Beside those of every record."""
TELLING = (
    "avx2",
    "fma",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
"""Processor flags that decide which kernels run."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
BUSY = 0.5
"""Load average beside our own from which on the timings are not to be trusted."""


def pin(threads: int) -> list[int]:
    """Keep this process, and every pool of threads that a library starts later, to so many cores; return which.

    To be called before torch or numpy is imported. No cores: this system cannot pin.
    Raises: DynamicConfidenceError for more threads than the process may use cores.
    """
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    if not hasattr(os, "sched_setaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0))
    if threads > len(allowed):
        raise DynamicConfidenceError(
            f"--threads {threads}: this process may use {len(allowed)} cores, expected at most as many threads."
        )
    os.sched_setaffinity(0, allowed[:threads])
    return allowed[:threads]


def described(cores: list[int]) -> dict[str, Any]:
    """What two records must have in common to be compared: processor, its flags, versions, cores."""
    from importlib import metadata

    found = {key: value for key, value in machine().items() if key != "commit"}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = "not installed"
    return {**found, "flags": _flags(), "pinned_to": len(cores), "governor": _governor(cores)}


def load() -> float | None:
    """Processes that wanted to run in the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def warn_if_busy() -> None:
    """Say on stderr when other processes use this machine."""
    busy = load()
    if busy is not None and busy > BUSY:
        click.secho(
            f"Warning: the load average is {busy:.1f}: other processes use this machine, and the timings will not be "
            "those of an idle one. Wait until they have ended.",
            fg="yellow",
            err=True,
        )


def _flags() -> list[str]:
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return [flag for flag in TELLING if flag in line.split()]


def _governor(cores: list[int]) -> str:
    core = cores[0] if cores else 0
    return _read(Path(f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor")).strip() or "not readable"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
