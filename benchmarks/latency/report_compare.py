"""All runs of all records beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from .accuracy_curves import pareto_front
from .figures import comparison_picture
from .record import LatencyRecord, Pair, Run
from .report_machines import one_machine
from .report_parts import Part, Picture, Section, Table
from .report_text import file_name, number, percent, run_name
from .statistics import Summary, ratio, summary

HEADER = (
    "run",
    "T",
    "steps",
    "steps saved, %",
    "right, all steps, %",
    "right, %",
    "ms, all steps",
    "ms",
    "ms saved, %",
    "median ms",
    "95th percentile, ms",
)


class Numbered(NamedTuple):
    """A run, and how the page calls it."""

    name: str
    run: Run
    found: Summary


def comparison(runs: Sequence[Numbered], records: Sequence[LatencyRecord]) -> Section:
    """Every run in one table and one picture, and the runs whose inferences took turns."""
    rows = tuple(_row(one) for one in runs)
    table = Table("Every run with Dynamic Confidence, and with all steps where it says so", HEADER, rows)
    parts: list[Part] = [table, *_in_turn(runs, records)]
    if one_machine(records):
        parts.append(_picture(runs))
    return Section("Comparison", tuple(parts))


def _row(one: Numbered) -> tuple[str, ...]:
    found = one.found
    return (
        one.name,
        str(found.steps),
        number(found.mean_steps),
        percent(found.saving_steps),
        percent(found.accuracy_without_exit, 2),
        percent(found.accuracy, 2),
        number(found.without_exit.mean),
        number(found.with_exit.mean),
        percent(found.saving_ms),
        number(found.with_exit.p50),
        number(found.with_exit.p95),
    )


def _in_turn(runs: Sequence[Numbered], records: Sequence[LatencyRecord]) -> Iterator[Table]:
    """The times of one run over those of another, of pairs that were measured in the same minutes."""
    rows, first = [], 0
    for record in records:
        names = [one.name for one in runs[first : first + len(record.runs)]]
        first += len(record.runs)
        rows += [_pair(names, pair) for pair in record.pairs]
    if rows:
        yield Table(
            "Measured in turn: time of the one over that of the other, median of the rounds ± half its 95 % interval",
            ("", "all steps", "Dynamic Confidence"),
            tuple(rows),
        )


def _pair(names: Sequence[str], pair: Pair) -> tuple[str, ...]:
    found = (ratio(per_round) for per_round in (pair.without_exit, pair.with_exit))
    texts = (f"{one.median:.3f} ± {percent(one.spread, 2)} %" for one in found)
    return f"{names[pair.second]} over {names[pair.first]}", *texts


def _picture(runs: Sequence[Numbered]) -> Picture:
    slow = [(one.found.without_exit.mean, one.found.accuracy_without_exit) for one in runs]
    fast = [(one.found.with_exit.mean, one.found.accuracy) for one in runs]
    front = pareto_front([*slow, *fast])
    soonest = min(runs, key=lambda one: one.found.with_exit.mean)
    return Picture(
        "Accuracy against latency of every run",
        f"Soonest on average: {soonest.name}, {number(soonest.found.with_exit.mean)} ms with "
        f"{percent(soonest.found.accuracy)} % right. The line joins the runs that no faster one matches in accuracy.",
        partial(comparison_picture, without=slow, with_exit=fast, front=front),
    )


def numbered(records: Sequence[LatencyRecord]) -> list[Numbered]:
    """Every run under a name of its own: counted where there are several."""
    runs = [run for record in records for run in record.runs]
    return [
        Numbered(f"{f'{place}. ' * (len(runs) > 1)}{run_name(run)}, {file_name(run)}", run, summary(run))
        for place, run in enumerate(runs, start=1)
    ]
