"""The tables of a record, as Markdown: nothing stands in them that is not computed from it."""

from __future__ import annotations

from typing import Any

from ..markdown_table import markdown_table
from .numbers import Row, best, limit_rates, line, loop_us, once_us, over_steps, rows_of

SUMMARY = {
    "SpikingJelly": ("SpikingJelly",),
    "ours, ONNX Runtime fp32": ("ours, ONNX Runtime fp32",),
    "ours, ONNX Runtime int8": ("ours, ONNX Runtime int8",),
    "ours, OpenVINO fp32": ("ours, OpenVINO fp32",),
    "ours, OpenVINO int8": ("ours, OpenVINO int8",),
    "ours, events fp32": ("ours, events fp32",),
    "ours, events int8": ("ours, events int8",),
    "the fastest of ours": ("ours",),
}
"""Title -> how the names of its candidates begin."""
ADDED = {"added by the stepping loop, µs per step": loop_us, "added once per inference, µs": once_us}
"""Title -> what it shows of a cell."""
SUMMARY_TITLE = (
    "Times faster than the demo's way, wall time per time step, QCFS / QFFS; of each kind the fastest K, mode or form."
)


def page(record: dict[str, Any], picture: str) -> str:
    """All tables of a record, and the picture of this name."""
    cells = list(record["results"]["cells"].values())
    return "\n\n".join(
        (
            "# Ours beside its peers",
            _made_from(record, cells),
            f"## In short\n\n{SUMMARY_TITLE}",
            summary(record),
            "## How many times faster than the demo's way\n\nWall time per time step; medians of the ratios of each "
            "round. The quantised network makes one pass and no time steps: its ratio is that of a step of the demo's "
            "way to one of its passes.",
            _ratios(cells),
            *(_cell(cell) for cell in cells),
            f"## Cost over size and over T\n\n![Cost over size and T]({picture})",
        )
    )


def _made_from(record: dict[str, Any], cells: list[dict[str, Any]]) -> str:
    setting, computer = record["results"]["setting"], record["results"]["machine"]
    versions = ", ".join(
        f"{name} {computer[name]}" for name in ("torch", "onnxruntime", "openvino", "numba", "spikingjelly", "numpy")
    )
    loads = [load for cell in cells for load in cell["load_average"] if load is not None]
    lines = [
        f"{computer['processor']} ({', '.join(computer['flags']) or 'flags not readable'}), {computer['system']}, "
        f"{setting['threads']} thread(s)"
        + (f" pinned to {computer['pinned_to']} core(s)" if computer["pinned_to"] else ", not pinned")
        + f", governor {computer['governor']}. Python {computer['python']}, {versions}. "
        f"Commit {', '.join(sorted({cell['commit'] for cell in cells}))}. "
        f"Load average {min(loads):.1f} to {max(loads):.1f}." * bool(loads),
    ]
    if setting["quick"]:
        lines.append("**Measured with `--quick`: too few rounds to quote a number from.**")
    return "\n\n".join(lines)


def summary(record: dict[str, Any]) -> str:
    """The table in short, which the README shows too: a column per network, methods side by side."""
    networks: dict[str, list[dict[str, Any]]] = {}
    for cell in record["results"]["cells"].values():
        networks.setdefault(cell["network"], []).append(cell)

    def ratio(cell: dict[str, Any], beginnings: tuple[str, ...]) -> str:
        row = best(rows_of(cell), *beginnings)
        return "–" if row is None else f"{row.ratio:.2f}"

    lines = [
        (title, *(" / ".join(ratio(cell, beginnings) for cell in cells) for cells in networks.values()))
        for title, beginnings in SUMMARY.items()
    ]
    lines += [
        (title, *(" / ".join(f"{added(cell):.0f}" for cell in cells) for cells in networks.values()))
        for title, added in ADDED.items()
    ]
    return markdown_table(["", *networks], lines)


def _header(cells: list[dict[str, Any]]) -> list[str]:
    return ["", *(f"{cell['network']}, {cell['method']}" for cell in cells)]


def _ratios(cells: list[dict[str, Any]]) -> str:
    found = [{row.name: row for row in rows_of(cell)} for cell in cells]
    missing = [{row["name"]: row["status"] for row in cell["rows"]} for cell in cells]
    names = dict.fromkeys(row["name"] for cell in cells for row in cell["rows"])

    def text(name: str, rows: dict[str, Row], status: dict[str, str]) -> str:
        return f"{rows[name].ratio:.2f}" if name in rows else status.get(name, "–")

    first = ("the demo's way, ms per step", *(f"{next(iter(rows.values())).wall_ms:.3g}" for rows in found))
    body = ((name, *(text(name, *pair) for pair in zip(found, missing, strict=True))) for name in names)
    return markdown_table(_header(cells), [first, *body])


def _cell(cell: dict[str, Any]) -> str:
    rate = limit_rates(cell)
    rows = rows_of(cell)
    lines = [
        f"## {cell['network']}, {cell['method']}",
        f"{cell['macs_per_step'] / 1e6:,.1f} million multiply-accumulates per dense step, {cell['weights']:,} weights, "
        f"{cell['neurons']:,} neurons, of which {cell['spike_rate']:.1%} spike per step. T = {cell['steps']}, "
        f"{cell['rounds']} rounds, medians known to ± {cell['largest_spread']:.1%}. The machine's limits in the same "
        f"run: {rate['fp32'] / 1e9:.1f} GFLOP/s, int8 {rate['int8'] / 1e9:.0f} GOP/s, copying {rate['copy'] / 1e9:.1f} "
        f"GB/s. The stepping loop adds {loop_us(cell):.1f} µs per step and {once_us(cell):.0f} µs once per inference.",
        markdown_table(
            ("", "ms per step", "CPU ms", "ratio", "min – max", "CPU ratio", "× floor", "steps per pass", "same bits"),
            (_cells(row) for row in rows),
        ),
        *_notes(cell),
    ]
    return "\n\n".join(line for line in lines if line)


def _cells(row: Row) -> tuple[str, ...]:
    low, high = row.ratio_range
    return (
        row.name + " (one pass)" * row.one_pass,
        f"{row.wall_ms:.3f}",
        f"{row.cpu_ms:.3f}",
        f"{row.ratio:.2f}",
        f"{low:.2f} – {high:.2f}",
        f"{row.cpu_ratio:.2f}",
        f"{row.to_floor:.2f}",
        "–" if row.one_pass else f"{row.steps_per_pass:.2f}",
        {True: "yes", False: "**no**", None: "–"}[row.equal],
    )


def _notes(cell: dict[str, Any]) -> list[str]:
    notes = [
        f"- {row['name']}: {row['status']} ({row['reason']})." for row in cell["rows"] if row["status"] != "measured"
    ]
    for name in dict.fromkeys([*(part["name"] for part in cell["over_steps"])]):
        intercept, slope, error = line(over_steps(cell, name))
        notes.append(
            f"- {name} over T: {slope:.3f} ms per step and {round(intercept, 3) + 0.0:.3f} ms per inference, a "
            f"straight line to {error:.1%}."
        )
    return ["\n".join(notes)]
