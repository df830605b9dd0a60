"""Cost per time step over the size of the network, and cost of an inference over T, from a record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .numbers import best, over_steps, rows_of

SHOWN = {
    "demo's way": "#57606a",
    "eager PyTorch, tuned": "#9a6700",
    "QCFS authors' way": "#6f42c1",
    "SpikingJelly": "#8b1a1a",
    "ours, ONNX Runtime fp32": "#1f6feb",
    "ours, ONNX Runtime int8": "#d9822b",
    "ours, OpenVINO int8": "#2e7d32",
    "ours, events int8": "#111111",
}
"""How the names of candidates begin, of which the fastest is shown -> colour."""
COLOURS = tuple(SHOWN.values())
METHODS = ("qcfs", "qffs")


def draw(record: dict[str, Any], path: Path) -> None:
    """Write the picture as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = list(record["results"]["cells"].values())
    figure, (*sizes, steps) = pyplot.subplots(1, 3, figsize=(14.0, 4.6), layout="constrained")
    for axis, method in zip(sizes, METHODS, strict=True):
        _over_size(axis, [cell for cell in cells if cell["method"] == method])
        axis.set_title(method)
    _over_steps(steps, cells)
    for axis in (*sizes, steps):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.has_data():  # a record may hold one method
            axis.legend(fontsize=7)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _over_size(axis: Any, cells: list[dict[str, Any]]) -> None:
    """A line per kind of candidate; both axes logarithmic, so what is linear has the slope 1."""
    found = [(cell["macs_per_step"] / 1e6, rows_of(cell)) for cell in cells]
    for beginning, colour in SHOWN.items():
        points = sorted((size, row.wall_ms) for size, rows in found if (row := best(rows, beginning)) is not None)
        if points:
            axis.loglog(*zip(*points, strict=True), "o-", color=colour, markersize=4, linewidth=1, label=beginning)
    axis.set(xlabel="million multiply-accumulates per dense step", ylabel="ms per time step")


def _over_steps(axis: Any, cells: list[dict[str, Any]]) -> None:
    """Shares of the longest inference, so that all networks have one pair of axes: linear cost is the diagonal."""
    axis.plot((0, 1), (0, 1), "--", color=COLOURS[0], linewidth=0.8, label="linear")
    named: set[str] = set()
    for cell in cells:
        names = dict.fromkeys(part["name"] for part in cell["over_steps"])
        for name, colour, marker in zip(names, (COLOURS[0], COLOURS[4]), "ox", strict=False):
            steps, ms = zip(*over_steps(cell, name), strict=True)
            label = name if name not in named else None
            named.add(name)
            axis.plot([t / steps[-1] for t in steps], [x / ms[-1] for x in ms], marker, color=colour, label=label)
    axis.set(xlabel="time steps, of T", ylabel="ms per inference, of that of T steps", xlim=(0, None), ylim=(0, None))
