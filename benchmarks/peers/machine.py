"""The machine that a record was made on, one core of it, and how busy it was."""

from __future__ import annotations

import os
from typing import Any

import click

from ...runtime.errors import DynamicConfidenceError
from ...runtime.load import BUSY, used_share
from ..processor import flags, governor
from ..record import machine, versions

LIBRARIES = ("openvino", "numba", "spikingjelly")
"""Beside those of every record."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


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
    found = {key: value for key, value in machine().items() if key != "commit"}
    return {
        **found,
        **versions(LIBRARIES),
        "flags": flags(),
        "pinned_to": len(cores),
        "governor": governor(cores),
    }


def load() -> float | None:
    """Processes that wanted to run in the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def warn_if_busy() -> None:
    """Say on stderr when other processes use this machine."""
    busy = used_share()
    if busy is not None and busy > BUSY:
        click.secho(
            f"Warning: this machine is busy ({busy:.0%} of all cores): the timings will not be those of an idle one. "
            "Wait until nothing else runs.",
            fg="yellow",
            err=True,
        )
