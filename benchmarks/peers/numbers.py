"""What the tables say of one network and method, computed from the raw samples of its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..latency.statistics import added_us
from .eager import NAME as REFERENCE
from .floor import floor_ms, rates
from .quantised import NAME as QUANTISED


@dataclass(frozen=True)
class Row:
    """One candidate; times are medians in ms per time step, or per pass of the quantised network."""

    name: str
    wall_ms: float
    cpu_ms: float
    ratio: float
    """How many times faster than the demo's way: the median of the ratios of each round, wall time."""
    ratio_range: tuple[float, float]
    cpu_ratio: float
    to_floor: float
    """Times the floor of its precision."""
    steps_per_pass: float
    """Time steps in the time of one pass of the faster quantised network: exit earlier than that to be faster."""
    one_pass: bool
    equal: bool | None
    ours: bool


def rows_of(cell: dict[str, Any]) -> list[Row]:
    """All that was measured, in the record's order."""
    found = [row for row in cell["rows"] if row["status"] == "measured"]
    reference = next(row for row in found if row["name"] == REFERENCE)
    one_pass = min(np.median(row["wall_ms"]) for row in found if row["name"].startswith(QUANTISED))
    rate = limit_rates(cell)
    rows = []
    for row in found:
        wall, cpu = (_per_step(row, key, cell["steps"]) for key in ("wall_ms", "cpu_ms"))
        ratios = _per_step(reference, "wall_ms", cell["steps"]) / wall
        per_read = row["steps_per_call"] or (1 if row["one_pass"] else cell["steps"])
        states = 0 if row["one_pass"] else cell["states"]
        floor = floor_ms({**cell, "states": states}, rate, row["precision"], per_read)
        rows.append(
            Row(
                name=row["name"],
                wall_ms=float(np.median(wall)),
                cpu_ms=float(np.median(cpu)),
                ratio=float(np.median(ratios)),
                ratio_range=(float(ratios.min()), float(ratios.max())),
                cpu_ratio=float(np.median(_per_step(reference, "cpu_ms", cell["steps"]) / cpu)),
                to_floor=float(np.median(wall)) / floor,
                steps_per_pass=float(one_pass / np.median(wall)),
                one_pass=row["one_pass"],
                equal=row["equal"],
                ours=row["ours"],
            )
        )
    return rows


def limit_rates(cell: dict[str, Any]) -> dict[str, float]:
    """Operations per second in fp32 and int8, and bytes per second of a copy."""
    return rates(
        {
            limit["name"]: (limit["kind"], limit["amount"], float(np.median(limit["wall_ms"])))
            for limit in cell["limits"]
        }
    )


def loop_us(cell: dict[str, Any]) -> float:
    """Microseconds per time step that the stepping loop adds, between the calls, to one that only calls the engine."""
    loop = cell["stepping_loop"]
    return added_us(loop["loop_us"], loop["bare_us"])


def once_us(cell: dict[str, Any]) -> float:
    """Microseconds per inference that it adds before the first call and after the last."""
    loop = cell["stepping_loop"]
    return added_us(loop["loop_once_us"], loop["bare_once_us"])


def best(rows: Sequence[Row], *beginnings: str) -> Row | None:
    """The fastest time step of those whose name begins so; None where there is none."""
    found = [row for row in rows if row.name.startswith(beginnings) and not row.one_pass]
    return min(found, key=lambda row: row.wall_ms, default=None)


def over_steps(cell: dict[str, Any], name: str) -> list[tuple[int, float]]:
    """How long a whole inference of a candidate takes, in ms, for each T that was measured."""
    points = [(part["steps"], part["wall_ms"]) for part in cell["over_steps"] if part["name"] == name]
    points += [(cell["steps"], row["wall_ms"]) for row in cell["rows"] if row["name"] == name and "wall_ms" in row]
    return [(steps, float(np.median(samples))) for steps, samples in sorted(points, key=lambda point: point[0])]


def line(points: Sequence[tuple[int, float]]) -> tuple[float, float, float]:
    """Fit ms = intercept + slope · T by least squares: intercept, slope, and the largest error over the largest ms."""
    steps, ms = np.array(points, float).T
    slope, intercept = np.polyfit(steps, ms, 1)
    return float(intercept), float(slope), float(np.abs(intercept + slope * steps - ms).max() / ms.max())


def _per_step(row: dict[str, Any], key: str, steps: int) -> np.ndarray:
    return np.asarray(row[key]) / (1 if row["one_pass"] else steps)
