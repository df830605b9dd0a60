"""A latency record for a terminal: a table like the paper's Table 2, sentences, or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from .cautions import cautions
from .record import Energy, LatencyRecord, Pair, Run
from .statistics import Ratio, Summary, host_cost, ratio, summary


def facts(record: LatencyRecord) -> dict[str, Any]:
    """The statistics of a record as plain values, without the samples."""
    runs = []
    for run in record.runs:
        numbers, parts = summary(run), msgspec.to_builtins(run)
        kept = ("file", "backend", "threads", "complete", "failure", "open_ms", "first_call_ms", "network")
        more = ("throughput", "memory", "energy")
        runs.append(
            {
                **{key: parts[key] for key in kept},
                **numbers._asdict(),
                "with_exit": numbers.with_exit._asdict(),
                "without_exit": numbers.without_exit._asdict(),
                "with_over_without": numbers.with_over_without._asdict(),
                "overhead": None if (cost := host_cost(run)) is None else cost._asdict(),
                **{key: parts[key] for key in more},
            }
        )
    pairs = [
        {
            "first": pair.first,
            "second": pair.second,
            "with_exit": ratio(pair.with_exit)._asdict(),
            "without_exit": ratio(pair.without_exit)._asdict(),
        }
        for pair in record.pairs
    ]
    about = {key: msgspec.to_builtins(getattr(record, key)) for key in ("complete", "stopped", "machine", "data")}
    return {**about, "runs": runs, "pairs": pairs, "cautions": cautions(record)}


def show(record: LatencyRecord) -> None:
    """Print a table and sentences for every run."""
    from rich.console import Console

    console = Console()

    def say(sentence: str) -> None:
        # Not wrapped: what is piped into a file or a search stays on one line.
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    for run in record.runs:
        numbers = summary(run)
        console.print(_table(run, numbers))
        for sentence in _sentences(record, run, numbers):
            say(sentence)
    for pair in record.pairs:
        say(_compared(record, pair))


def _table(run: Run, numbers: Summary) -> Any:
    from rich.table import Table
    from rich.text import Text

    threads = "" if run.threads is None else f", {run.threads} thread{'s' * (run.threads > 1)}"
    table = Table("batch 1", title=Text(f"{run.file}: {run.backend}{threads}"))
    for column in ("without early exit", "with Dynamic Confidence"):
        table.add_column(column, justify="right", no_wrap=True)
    late, early = numbers.without_exit, numbers.with_exit
    table.add_row("time steps", str(numbers.steps), f"{numbers.mean_steps:.2f}")
    table.add_row("accuracy %", f"{100 * numbers.accuracy_without_exit:.2f}", f"{100 * numbers.accuracy:.2f}")
    for name, key in (("mean", "mean"), ("median", "p50"), ("95 % below", "p95"), ("99 % below", "p99")):
        table.add_row(f"ms, {name}", f"{getattr(late, key):.3f}", f"{getattr(early, key):.3f}")
    table.add_section()
    table.add_row("saved, % of the time steps", "", f"{100 * numbers.saving_steps:.1f}")
    table.add_row("saved, % of the milliseconds", "", f"{100 * numbers.saving_ms:.1f}")
    return table


def _sentences(record: LatencyRecord, run: Run, numbers: Summary) -> Iterator[str]:
    rounds = f"{numbers.rounds} round{'s' * (numbers.rounds > 1)}"
    yield (
        f"{numbers.images} images of {record.data.title}, {rounds}; opened in {run.open_ms:.0f} ms, first call "
        f"{run.first_call_ms:.1f} ms"
    )
    yield f"an answer takes {_said(numbers.with_over_without, numbers.rounds)} of its time without early exit"
    if (cost := host_cost(run)) is not None:
        yield (
            f"the stepping loop adds {cost.loop_us:.1f} us per time step to the engine's calls "
            f"({100 * cost.loop_share:.1f} % of a step) and {cost.once_us:.1f} us once per inference "
            f"({100 * cost.once_share:.1f} % of a step); a confidence on the host would take "
            f"{cost.confidence_us:.1f} us per time step ({100 * cost.confidence_share:.1f} %)"
        )
    rates = {one.early_exit: one for one in run.throughput}
    if len(rates) == 2:
        fixed, early = rates[False], rates[True]
        yield (
            f"batch {fixed.batch}: {fixed.images_per_second:.0f} images/s for all {numbers.steps} steps, "
            f"{early.images_per_second:.0f} with early exit and continuous batching "
            f"({early.images_per_second / fixed.images_per_second:.2f} times as many)"
        )
    if run.memory is not None:
        gpu = "" if run.memory.gpu is None else f"; {run.memory.gpu:.0f} MB on the GPU"
        yield (
            f"memory: {run.memory.rss_before:.0f} MB before the engine was opened, {run.memory.rss_open:.0f} MB after, "
            f"{run.memory.rss_peak:.0f} MB at most{gpu}"
        )
    if isinstance(run.energy, Energy):
        yield (
            f"energy: {1e3 * run.energy.joules_without_exit:.2f} mJ without early exit, "
            f"{1e3 * run.energy.joules_with_exit:.2f} mJ with it, per image, idle power ("
            f"{run.energy.idle_watts:.1f} W) included; {run.energy.source}"
        )
    else:
        yield f"energy: not measured: {run.energy.reason}"


def _compared(record: LatencyRecord, pair: Pair) -> str:
    """How the second of two runs that took turns does beside the first."""
    first, second = record.runs[pair.first], record.runs[pair.second]
    without, early = (_said(ratio(found), len(found)) for found in (pair.without_exit, pair.with_exit))
    return (
        f"{second.file} ({second.backend}) takes {without} times as long as {first.file} ({first.backend}) without "
        f"early exit, {early} times with it"
    )


def _said(found: Ratio, rounds: int) -> str:
    """A ratio; one round says nothing of its spread."""
    return f"{found.median:.3f}" + (f" (± {100 * found.spread:.1f} %)" if rounds > 1 else "")
