"""The picture of Table 2: milliseconds per image of every setting, at fixed T and with Dynamic Confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..latency.svg import COLOUR, inline_svg, printable


class Bar(NamedTuple):
    """One setting; milliseconds, None where there is nothing to show."""

    name: str
    fixed: float
    projected: float | None
    """With Dynamic Confidence, …"""
    measured: float | None
    """… one of the two."""
    one_pass: float | None
    v100: float | None
    v100_exit: float | None


MARKERS = {
    "fixed": ("fixed T", "s", "without", True),
    "projected": ("with DC, projected", "o", "with", False),
    "measured": ("with DC, measured", "o", "with", True),
    "one_pass": ("one pass", "^", "bound", True),
    "v100": ("V100, fixed T", "s", "muted", False),
    "v100_exit": ("V100, with DC", "o", "muted", False),
}
"""Field of `Bar` -> what it is called, its marker, its colour (a role of the page) and whether it is filled."""


def latencies_picture(key: str, title: str, description: str, bars: Sequence[Bar]) -> str:
    """One row per setting, on a logarithmic axis; a line joins fixed T and Dynamic Confidence."""

    def draw(axes: Any) -> None:
        for row, bar in enumerate(bars):
            for one, other in ((bar.fixed, bar.measured or bar.projected), (bar.v100, bar.v100_exit)):
                if one is not None and other is not None:
                    axes.plot([one, other], [row, row], "-", color=COLOUR["muted"], linewidth=1, zorder=1)
        for field, (label, marker, role, filled) in MARKERS.items():
            found = [(getattr(bar, field), row) for row, bar in enumerate(bars) if getattr(bar, field) is not None]
            if found:
                colour = COLOUR[role]
                face = colour if filled else "none"
                axes.plot(
                    *zip(*found, strict=True), marker, color=colour, markerfacecolor=face, markersize=7, label=label
                )
        axes.set_yticks(range(len(bars)), [printable(bar.name, 32) for bar in bars], fontsize=8)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xscale("log")
        axes.set_xlim(*_decades([ms for bar in bars for ms in bar[1:] if ms is not None]))
        axes.xaxis.set_major_formatter(lambda ms, _: f"{ms:,g}")
        axes.xaxis.set_minor_formatter(lambda *_: "")
        axes.set(xlabel="ms per image")
        axes.legend(loc="lower center", bbox_to_anchor=(0.25, 1.0), ncols=2, columnspacing=1)

    return inline_svg(key, title, description, draw, (4.4, 1.7 + 0.3 * len(bars)))


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """Whole powers of ten around them, which are the numbers at the axis."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return 10.0**low, 10.0 ** max(high, low + 1)
