"""The page of a record: Table 2 on that machine, beside what the paper reports of a V100."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..markdown_table import markdown_table
from ..peers.measure import spread
from . import settings
from .record import Absent, Cell, Row, Series, Table2Record
from .settings import LIKELY_RATES, PaperSetting

UNKNOWN = "not known here"
NOT_MEASURED = "not measured"
INTRODUCTION = """\
    python -m dynamic_confidence.benchmarks.table2 -o record.json --table table2.md

The eight settings of Table 2 of the paper (arXiv 2303.10276). This page is computed from a record of that command and
from the paper's numbers; “{unknown}” is one of the paper's that we could not find, and nothing stands in its place.

- *fixed T*: milliseconds of one image, batch 1, from the reset to the answer after all T steps of the paper, one step
  per call. Medians.
- *with DC*: the same with Dynamic Confidence. **Projected**: fixed T times the paper's mean steps over T, since random
  weights have nothing to be sure of; cost is linear in the steps. **Measured**: on a trained network (`--model`), with
  the exits of its own test images.
- *one pass*: the quantised network before conversion, on the same backend: one pass, no time steps. *Steps per pass*
  is how many time steps fit into it: early exit is faster than that network where it needs fewer steps on average.
- *V100*: the paper's milliseconds per image, batch 1, its Python loop included.

Engines took turns in one process, image by image, the order reversed in every second round. All engines of one
precision gave the same logits, bit for bit. Random networks have settled normalisations and quantisers, so that they
spike about as trained ones do ({low:.0%} to {high:.0%} of the neurons per step). What sparsity gains depends on that
rate: it stands in every row."""


def page(record: Table2Record) -> str:
    """The whole page."""
    low, high = LIKELY_RATES
    measured = [(setting, record.cells[setting.name]) for setting in settings.SETTINGS if setting.name in record.cells]
    return "\n\n".join(
        (
            "# Table 2 on this machine",
            INTRODUCTION.format(unknown=UNKNOWN, low=low, high=high),
            _made_from(record),
            "## In short\n\nOf every setting the engine that is fastest at fixed T, and the fastest one pass.",
            _summary(record),
            *_notes_of_the_paper(),
            *(_cell(setting, cell) for setting, cell in measured),
        )
    )


def projected(fixed_ms: float, setting: PaperSetting) -> float | None:
    """What Dynamic Confidence would take with the paper's exits; None where those are not known.

    fixed · mean steps / T
    """
    return None if setting.mean_steps is None else fixed_ms * setting.mean_steps / setting.steps


def median(series: Series) -> float:
    """Milliseconds, wall time."""
    return float(np.median(series.wall_ms))


def _made_from(record: Table2Record) -> str:
    machine = record.machine
    loads = [load for cell in record.cells.values() for load in cell.load_average if load is not None]
    versions = ", ".join(f"{name} {version}" for name, version in machine.libraries.items())
    commits = ", ".join(sorted({cell.commit for cell in record.cells.values()})) or "none"
    lines = [
        f"{machine.processor} ({', '.join(machine.flags) or 'flags not readable'}), {machine.system}, GPU: "
        f"{machine.gpu or 'none'}, {record.threads} thread(s)"
        + (f" pinned to {machine.pinned_to} core(s)" if machine.pinned_to else ", not pinned")
        + f", governor {machine.governor}. Python {machine.python}, {versions}. Commit {commits}."
        + (f" Load average {min(loads):.1f} to {max(loads):.1f}." if loads else "")
    ]
    if record.quick:
        lines.append(
            f"**Measured with `--quick`: networks with {settings.QUICK} times fewer channels, three rounds. Not the "
            "networks of the paper: nothing here is to be quoted.**"
        )
    return "\n\n".join(lines)


def _summary(record: Table2Record) -> str:
    setting = "data", "network", "method", "T", "steps with DC", "spike per step"
    here = "engine", "fixed T, ms", "with DC, ms", "one pass, ms"
    return markdown_table(
        (*setting, *here, "V100: fixed T, ms", "V100: with DC, ms"),
        (_summary_row(one, record.cells.get(one.name)) for one in settings.SETTINGS),
    )


def _summary_row(setting: PaperSetting, cell: Cell | None) -> tuple[str, ...]:
    network = settings.NETWORKS[setting.network]
    title = (network.data, network.title, setting.method.upper(), str(setting.steps))
    steps = UNKNOWN if setting.mean_steps is None else f"{setting.mean_steps:g}"
    v100 = (_published(setting.v100_ms), _published(setting.v100_exit_ms))
    if cell is None:
        return (*title, steps, *[NOT_MEASURED] * 5, *v100)
    row = fastest(cell.rows)
    if row.with_exit is not None:
        steps = f"{np.mean(row.with_exit.exit_steps):.2f} (here)"
    passes = [median(one.one_pass) for one in cell.rows if one.one_pass is not None]
    here = (row.name, ms(median(row.fixed)), _with_exit(row, setting), ms(min(passes)) if passes else "–")
    return (*title, steps, f"{cell.spike_rate:.1%}", *here, *v100)


def fastest(rows: Iterable[Row]) -> Row:
    """At fixed T."""
    return min(rows, key=lambda row: median(row.fixed))


def _with_exit(row: Row, setting: PaperSetting) -> str:
    if row.with_exit is not None:
        return f"{ms(median(row.with_exit.series))} (measured)"
    found = projected(median(row.fixed), setting)
    return UNKNOWN if found is None else f"{ms(found)} (projected)"


def _notes_of_the_paper() -> list[str]:
    notes = [f"- {_title(setting)}: {setting.note}." for setting in settings.SETTINGS if setting.note]
    return ["Of the paper's numbers:\n\n" + "\n".join(notes)] if notes else []


def _title(setting: PaperSetting) -> str:
    network = settings.NETWORKS[setting.network]
    return f"{network.title}, {network.data}, {setting.method.upper()}"


def _cell(setting: PaperSetting, cell: Cell) -> str:
    low, high = LIKELY_RATES
    unlike = "" if low <= cell.spike_rate <= high else " **This is not what trained networks do.**"
    widest = max(spread(row.fixed.wall_ms) for row in cell.rows)
    lines = [
        f"## {_title(setting)}",
        f"{_weights(cell)}; {' × '.join(map(str, cell.input))} values, {cell.macs_per_step / 1e6:,.1f} million "
        f"multiply-accumulates per dense step, {cell.weights:,} weights, {cell.neurons:,} neurons, of which "
        f"{cell.spike_rate:.1%} spike per step.{unlike} T = {cell.steps}; {len(cell.rows[0].fixed.wall_ms)} rounds, "
        f"medians known to ± {widest:.1%}.",
        markdown_table(
            ("engine", "fixed T, ms", "min – max", "ms per step", "with DC, ms", "one pass, ms", "steps per pass"),
            (_row(row, setting, cell) for row in cell.rows),
        ),
        "\n".join(_absent(absent) for absent in cell.absent),
    ]
    return "\n\n".join(line for line in lines if line)


def _absent(absent: Absent) -> str:
    reason = " ".join(absent.reason.split()).rstrip(".")
    return f"- {absent.name}: {absent.status} ({reason})."


def _weights(cell: Cell) -> str:
    model = cell.model
    if model is None:
        return f"Random weights, {cell.width} channels in the first stage"
    return (
        f"Trained: {model.title} (SHA-256 {model.sha256[:12]}…), exits calibrated on {model.calibration_images:,} "
        f"images of {model.data} and measured on {model.test_images} others"
    )


def _row(row: Row, setting: PaperSetting, cell: Cell) -> tuple[str, ...]:
    fixed = median(row.fixed)
    one_pass = None if row.one_pass is None else median(row.one_pass)
    return (
        f"{row.name} ({row.backend})",
        ms(fixed),
        f"{ms(min(row.fixed.wall_ms))} – {ms(max(row.fixed.wall_ms))}",
        ms(fixed / cell.steps),
        _with_exit(row, setting),
        "–" if one_pass is None else ms(one_pass),
        "–" if one_pass is None else f"{one_pass / (fixed / cell.steps):.2f}",
    )


def _published(value: float | None) -> str:
    return UNKNOWN if value is None else ms(value)


def ms(value: float) -> str:
    """Three figures, and no more than microseconds."""
    if value >= 10:
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"
