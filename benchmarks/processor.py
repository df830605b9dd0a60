"""The processor that something was measured on: its name, the instructions that decide, and its clock."""

from __future__ import annotations

import platform
from pathlib import Path

ROOT = Path("/")
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


def processor(root: Path = ROOT) -> str:
    """Its name, or that of the board, where Linux tells it; `root` is where /proc and /sys are."""
    lines = (line.partition(":") for line in _read(root / "proc/cpuinfo").splitlines())
    names = (value.strip() for key, _, value in lines if key.strip() in ("model name", "Model"))
    return next(names, platform.processor() or "unknown")


def flags(root: Path = ROOT) -> list[str]:
    """Those of `TELLING` that it has."""
    lines = _read(root / "proc/cpuinfo").splitlines()
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return [flag for flag in TELLING if flag in line.split()]


def governor(cores: list[int], root: Path = ROOT) -> str:
    """What decides the clock of the first of these cores, or of core 0."""
    return _frequency("scaling_governor", cores, root) or "not readable"


def clock_mhz(cores: list[int], root: Path = ROOT) -> float | None:
    """Of the first of these cores, or of core 0, now; None where the system does not tell."""
    khz = _frequency("scaling_cur_freq", cores, root)
    if khz:
        return int(khz) / 1e3
    clocks = [line for line in _read(root / "proc/cpuinfo").splitlines() if line.startswith("cpu MHz")]
    first = cores[0] if cores else 0
    return float(clocks[first].partition(":")[2]) if first < len(clocks) else None


def _frequency(name: str, cores: list[int], root: Path) -> str:
    core = cores[0] if cores else 0
    return _read(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/{name}").strip()


def _read(path: Path) -> str:
    """The text of a file of the system; empty where there is none that may be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
