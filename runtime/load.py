"""How busy this machine is, for whoever measures time on it."""

from __future__ import annotations

import os

BUSY = 0.25
"""Load per core from which on other work is likely to disturb a measurement."""


def load_per_core() -> float | None:
    """Processes that wanted to run in the last minute, per core; None where the system does not tell."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else None
