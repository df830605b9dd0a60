"""Table 2 as a `Page`: what was measured on a machine, or on several, beside what the paper reports of a V100."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from ...calib.exits import saving
from ..latency.report_parts import Page, Part, Picture, Section, Table, Text
from ..latency.report_text import NOTHING, number, percent
from ..latency.statistics import spread
from . import settings
from .cautions import cautions, differences, machine_table
from .picture import Bar, latencies_picture
from .record import Absent, Cell, Row, Series, Table2Record, WithExit, exits_by_precision
from .settings import PaperSetting

TITLE = "Table 2 of the paper, measured anew"
FOOTER = (
    "Every number on this page comes from the records and from the paper (arXiv 2303.10276); “not known” is one "
    "of the paper's that we could not find, and nothing stands in its place."
)
UNKNOWN = "not known"
NOT_MEASURED = "not measured"
SUMMARY_HEADER = (
    "setting",
    "T",
    "steps with DC",
    "spike rate, %",
    "fastest engine",
    "fixed T, ms",
    "with DC, ms",
    "one pass, ms",
    "V100: fixed T, ms",
    "V100: with DC, ms",
)
TESTED_HEADER = (
    "precision",
    "all steps, %",
    "with DC, %",
    "threshold",
    "mean steps",
    "steps saved, %",
    "images timed",
    "their mean steps",
)
ENGINES_HEADER = ("engine", "fixed T, ms", "min – max", "ms per step", "with DC, ms", "one pass, ms", "steps per pass")


def page_of(records: Sequence[Table2Record]) -> Page:
    """Make the page of one record or several, each with a setting. Raises: ValueError for no record."""
    if not records:
        raise ValueError("a page needs a record")
    headlines, warnings = [], [*differences(records)]
    summaries, details, machines = [], [], []
    for place, record in enumerate(records, start=1):
        before, after = (f"Record {place}: ", f", record {place}") if len(records) > 1 else ("", "")
        headlines += [f"{before}{text}" for text in _headlines(record)]
        warnings += [f"{before}{text}" for text in cautions(record)]
        summaries.append(Section(f"In short{after}", tuple(_in_short(record))))
        details += [Section(f"{_title(one)}{after}", tuple(_setting(one, cell))) for one, cell in _measured(record)]
        machines.append(Section(f"Machine and method{after}", (machine_table(record),)))
    sections = (*summaries, Section("How to read it", (_reading(),)), *details, *machines)
    return Page(TITLE, tuple(headlines), tuple(warnings), sections, FOOTER)


def projected(fixed_ms: float, setting: PaperSetting) -> float | None:
    """What Dynamic Confidence would take with the paper's exits; None where those are not known.

    fixed · mean steps / T
    """
    return None if setting.mean_steps is None else fixed_ms * setting.mean_steps / setting.steps


def median(series: Series) -> float:
    """Milliseconds, wall time."""
    return float(np.median(series.wall_ms))


def fastest(rows: Iterable[Row]) -> Row:
    """At fixed T."""
    return min(rows, key=lambda row: median(row.fixed))


def _measured(record: Table2Record) -> list[tuple[PaperSetting, Cell]]:
    """In the order of the table."""
    return [(setting, record.cells[setting.name]) for setting in settings.SETTINGS if setting.name in record.cells]


def _headlines(record: Table2Record) -> Iterator[str]:
    """Those settings of which the paper's milliseconds are known; with `--quick`, or for none, how many there are."""
    full = () if record.quick else _measured(record)
    known = [(setting, cell) for setting, cell in full if setting.v100_ms and setting.v100_exit_ms]
    for setting, cell in known:
        row = fastest(cell.rows)
        yield (
            f"{_title(setting)}: {number(median(row.fixed))} ms per image for all {setting.steps} time steps "
            f"({row.name}), with Dynamic Confidence {_with_exit(row, setting, ' ms')}; in the paper "
            f"{_published(setting.v100_ms)} and {_published(setting.v100_exit_ms)} ms on a V100."
        )
    if not known:
        yield (
            f"{len(_measured(record))} of the {len(settings.SETTINGS)} settings of the paper's Table 2, measured on "
            f"{record.machine.processor}."
        )


def _in_short(record: Table2Record) -> Iterator[Part]:
    rows = tuple(summary_row(one, record.cells.get(one.name)) for one in settings.SETTINGS)
    yield Table("Milliseconds per image (batch 1), here and in the paper", SUMMARY_HEADER, rows)
    if all(cell.model is None for cell in record.cells.values()):
        yield Text(
            "All weights of this record are random, so what Dynamic Confidence takes is projected. Measure it with a "
            "trained network: `python -m dynamic_confidence.benchmarks.table2 --model model.pt=DATA -o record.json`"
        )
    bars = [_bar(setting, cell) for setting, cell in _measured(record)]
    largest = max(bars, key=lambda bar: bar.fixed)
    yield Picture(
        "Milliseconds per image, setting by setting",
        "The fastest engine at fixed T, and how far Dynamic Confidence shortens it; hollow: projected. Each step to "
        f"the right is ten times slower. The slowest setting is {largest.name}: {number(largest.fixed)} ms.",
        partial(latencies_picture, bars=bars),
    )
    notes = tuple((_title(setting), setting.note) for setting in settings.SETTINGS if setting.note)
    if notes:
        yield Table("Of the paper's numbers", ("setting", "note"), notes, words=True)


def summary_row(setting: PaperSetting, cell: Cell | None) -> tuple[str, ...]:
    steps = UNKNOWN if setting.mean_steps is None else f"{setting.mean_steps:g}"
    v100 = _published(setting.v100_ms), _published(setting.v100_exit_ms)
    if cell is None:
        return (_title(setting), str(setting.steps), steps, *[NOT_MEASURED] * 5, *v100)
    row, one_pass = fastest(cell.rows), _fastest_pass(cell)
    if row.with_exit is not None:
        steps = f"{row.with_exit.tested.mean_steps:.2f} (here)"
    here = number(median(row.fixed)), _with_exit(row, setting), NOTHING if one_pass is None else number(one_pass)
    return (_title(setting), str(setting.steps), steps, percent(cell.spike_rate), row.name, *here, *v100)


def _fastest_pass(cell: Cell) -> float | None:
    return min((median(row.one_pass) for row in cell.rows if row.one_pass is not None), default=None)


def _with_exit(row: Row, setting: PaperSetting, unit: str = "") -> str:
    """Milliseconds, and whether they were measured."""
    if row.with_exit is not None:
        return f"{number(median(row.with_exit.series))}{unit} (measured)"
    found = projected(median(row.fixed), setting)
    return UNKNOWN if found is None else f"{number(found)}{unit} (projected)"


def _bar(setting: PaperSetting, cell: Cell) -> Bar:
    row = fastest(cell.rows)
    here = None if row.with_exit is None else median(row.with_exit.series)
    return Bar(
        name=_title(setting),
        fixed=median(row.fixed),
        projected=projected(median(row.fixed), setting) if here is None else None,
        measured=here,
        one_pass=_fastest_pass(cell),
        v100=setting.v100_ms,
        v100_exit=setting.v100_exit_ms,
    )


def _reading() -> Table:
    low, high = settings.LIKELY_RATES
    rows = (
        (
            "fixed T",
            "One image, batch 1, from the reset to the answer after all T steps of the paper, one step per call. "
            "Medians; the engines of a setting took turns in one process, image by image, the order reversed in every "
            "second round, and all of one precision gave the same logits, bit for bit.",
        ),
        (
            "with DC, projected",
            "With Dynamic Confidence: fixed T times the paper's mean steps over T, since random weights have nothing "
            "to be sure of; cost is linear in the steps.",
        ),
        (
            "with DC, measured",
            "On a trained network. The threshold comes from calibration images; accuracy and mean steps from test "
            "images; the time from some of these that stop after about as many steps.",
        ),
        (
            "one pass",
            "The quantised network before conversion, on the same backend: one pass, no time steps. The short table "
            "has the fastest engine at fixed T, and the fastest one pass.",
        ),
        (
            "steps per pass",
            "How many time steps fit into one pass: early exit is faster than the quantised network where it needs "
            "fewer steps on average.",
        ),
        ("V100", "The paper's milliseconds per image, batch 1, its Python loop included."),
        (
            "spike rate",
            "Of the neurons, in a mean step. Random networks have settled normalisations and quantisers, so that they "
            f"spike about as trained ones do ({low:.0%} to {high:.0%}). What sparsity gains depends on that rate.",
        ),
    )
    return Table("What the columns mean", ("column", "meaning"), rows, words=True)


def _title(setting: PaperSetting) -> str:
    network = settings.NETWORKS[setting.network]
    return f"{network.title}, {network.data}, {setting.method.upper()}"


def _setting(setting: PaperSetting, cell: Cell) -> Iterator[Part]:
    widest = max(spread(row.fixed.wall_ms) for row in cell.rows)
    yield Text(
        f"{_weights(cell)}; {' × '.join(map(str, cell.input))} values, {cell.macs_per_step / 1e6:,.1f} million "
        f"multiply-accumulates per dense step, {cell.weights:,} weights, {cell.neurons:,} neurons, of which "
        f"{percent(cell.spike_rate)} % spike per step. T = {cell.steps}; {len(cell.rows[0].fixed.wall_ms)} rounds, "
        f"medians known to ± {percent(widest)} %."
    )
    rows = [_engine(row, setting, cell) for row in cell.rows]
    if setting.v100_ms is not None:
        per_step = number(setting.v100_ms / setting.steps)
        paper = _published(setting.v100_ms), NOTHING, per_step, _published(setting.v100_exit_ms)
        rows.append(("the paper, V100", *paper, NOTHING, NOTHING))
    yield Table("Milliseconds per image, engine by engine", ENGINES_HEADER, tuple(rows))
    if exits := exits_by_precision(cell):
        rows = [(precision, *_tested(found, cell)) for precision, found in exits.items()]
        yield Table("Accuracy with early exit, and after all steps", TESTED_HEADER, tuple(rows))
    if cell.absent:
        absent = tuple(map(_absent, cell.absent))
        yield Table("Engines that were not measured", ("engine", "why"), absent, words=True)


def _weights(cell: Cell) -> str:
    model = cell.model
    if model is None:
        return f"Random weights, {cell.width} channels in the first stage"
    return (
        f"Trained: {model.title} (SHA-256 {model.sha256[:12]}…), exits calibrated on {model.calibration_images:,} "
        f"images of {model.data} and tested on {model.test_images:,} others"
    )


def _tested(exits: WithExit, cell: Cell) -> tuple[str, ...]:
    tested = exits.tested
    return (
        percent(tested.fixed_accuracy),
        percent(tested.accuracy),
        f"{exits.threshold:.3f}",
        f"{tested.mean_steps:.2f}",
        percent(saving(tested.mean_steps, cell.steps)),
        f"{len(exits.exit_steps)}",
        f"{np.mean(exits.exit_steps):.2f}",
    )


def _engine(row: Row, setting: PaperSetting, cell: Cell) -> tuple[str, ...]:
    fixed = median(row.fixed)
    one_pass = None if row.one_pass is None else median(row.one_pass)
    return (
        f"{row.name} ({row.backend})",
        number(fixed),
        f"{number(min(row.fixed.wall_ms))} – {number(max(row.fixed.wall_ms))}",
        number(fixed / cell.steps),
        _with_exit(row, setting),
        NOTHING if one_pass is None else number(one_pass),
        NOTHING if one_pass is None else f"{one_pass / (fixed / cell.steps):.2f}",
    )


def _absent(absent: Absent) -> tuple[str, str]:
    return absent.name, f"{absent.status}: {' '.join(absent.reason.split()).rstrip('.')}"


def _published(value: float | None) -> str:
    return UNKNOWN if value is None else number(value)
