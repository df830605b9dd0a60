"""How busy this machine is, for whoever measures time on it."""

from __future__ import annotations

import os
import time
from pathlib import Path

BUSY = 0.25
"""Share of all cores from which on other work is likely to disturb a measurement."""
WATCHED_S = 0.25


def used_share(proc: Path = Path("/proc")) -> float | None:
    """The share of all cores' time that is in use while the caller sleeps for `WATCHED_S`.

    Where the system does not tell: the load average per core, which still counts what ended a minute ago; or None.
    """
    if (before := _ticks(proc)) is not None:
        time.sleep(WATCHED_S)
        after = _ticks(proc)
        if after is not None and (passed := after[1] - before[1]) > 0:
            return (after[0] - before[0]) / passed
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else None


def _ticks(proc: Path) -> tuple[int, int] | None:
    """Used time of all cores, other virtual machines' included, and all of it; None: not to be read."""
    try:
        name, *fields = (proc / "stat").read_text().split("\n", 1)[0].split()
        # user, nice, system, idle, iowait, irq, softirq, steal; what guests use is in user already
        spent = [int(field) for field in fields[:8]]
    except (OSError, ValueError):
        return None
    if name != "cpu" or len(spent) < 5:
        return None
    return sum(spent) - spent[3] - spent[4], sum(spent)
