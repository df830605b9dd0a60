"""The whole report as a `Page`: what was found first, then every run, then how it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .cautions import cautions
from .record import LatencyRecord
from .report_compare import Numbered, comparison, numbered
from .report_machines import differences, method, network_table
from .report_parts import Page, Part, Section, Text
from .report_pictures import pictures
from .report_tables import cost_table, spike_tables, step_table, table_2
from .report_text import headline, percent

TITLE = "Latency with and without Dynamic Confidence"


def page_of(records: Sequence[LatencyRecord]) -> Page:
    """Make the page of one record or several, whose runs all have samples. Raises: ValueError for no record."""
    if not records:
        raise ValueError("a report needs a record")
    runs = numbered(records)
    headlines, warnings = [], [*differences(records)]
    sections = [comparison(runs, records)] if len(runs) > 1 else []
    rest = iter(runs)
    for place, record in enumerate(records, start=1):
        own = [next(rest) for _ in record.runs]
        soonest = min(own, key=lambda one: one.found.with_exit.mean)
        sentence = headline(soonest.run, soonest.found)
        if len(records) == 1:
            headlines.append(sentence)
            warnings += cautions(record)
            sections += _sections(record, own, "", 2, in_short=len(runs) > 1)
        else:
            name = f"record {place}"
            headlines.append(f"{name.capitalize()}: {sentence}")
            warnings += [f"{name.capitalize()}: {text}" for text in cautions(record)]
            sections += [_chapter(record, name), *_sections(record, own, f", {name}", 3, in_short=True)]
    return Page(TITLE, tuple(headlines), tuple(warnings), tuple(sections))


def _chapter(record: LatencyRecord, name: str) -> Section:
    machine = record.machine
    about = Text(f"{record.data.images} images of {record.data.title} on {machine.processor}, {machine.date}.")
    return Section(_marked(name.capitalize(), record.complete), (about,))


def _sections(
    record: LatencyRecord, runs: Sequence[Numbered], where: str, level: int, *, in_short: bool
) -> Iterator[Section]:
    for one in runs:
        yield Section(_marked(one.name, one.run.complete), tuple(_run(one, in_short)), level)
    yield Section(f"Machine and method{where}", method(record), level)


def _marked(title: str, complete: bool) -> str:
    return title if complete else f"{title} (incomplete)"


def _run(one: Numbered, in_short: bool) -> Iterator[Part]:
    run, found = one.run, one.found
    if not run.complete:
        yield Text(f"This run is incomplete ({run.failure or 'it was stopped'}): what follows is what there is.", True)
    if in_short:  # else it stands at the top of the page already
        yield Text(headline(run, found))
    yield table_2(run, found)
    ratio = found.with_over_without
    yield Text(
        f"Early exit saves {percent(found.saving_steps)} % of the time steps and {percent(found.saving_ms)} % of the "
        f"milliseconds. Round by round, the time with early exit is {ratio.median:.3f} of the time without, "
        f"± {percent(ratio.spread, 2)} % (median, half its 95 % interval)."
    )
    yield from pictures(run, found)
    yield step_table(run)
    yield from spike_tables(run.evaluation)
    yield cost_table(run)
    yield network_table(run)
