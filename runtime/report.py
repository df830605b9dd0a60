"""How `dc-run` shows its records: JSON lines for programs, a table and a summary for people."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence

import click

from .cli import progress
from .engine import Engine
from .exit_policy import ExitPolicy
from .manifest import Schedule
from .run import Record


def print_json(records: Iterable[Record]) -> int:
    """Print one JSON object per line as they come; return how many inputs failed."""
    failed = 0
    for record in records:
        failed += "error" in record
        click.echo(_printable(json.dumps(record, ensure_ascii=False)))
    return failed


def print_table(records: Iterable[Record], engine: Engine, policy: ExitPolicy, rows: int, calls: Sequence[int]) -> int:
    """Print the first `rows` answers, every failure, and a summary; return how many inputs failed.

    `calls`: the time steps of one call after another, the last repeated.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def say(sentence: str) -> None:
        # Not wrapped: what is piped into a file or a search stays on one line.
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    table = Table("input", "answer", "confidence", "steps", "ms", "exit")
    for column in table.columns[2:5]:
        column.justify = "right"
    table.columns[0].overflow = "fold"
    answered, failed, started = [], 0, time.perf_counter()
    for record in progress(records, "answering"):
        if "error" in record:
            failed += 1
            click.echo(f"Error: {record['error']}", err=True)
            continue
        answered.append(record)
        if len(answered) <= rows:
            numbers = f"{record['confidence']:.3f}", str(record["steps"]), f"{record['ms']:.2f}"
            # As Text: a path or a class name may hold what rich would take for markup.
            table.add_row(Text(_printable(record["input"])), Text(record["name"]), *numbers, record["exit"])
    seconds = time.perf_counter() - started
    console = Console()
    if answered and rows > 0:
        console.print(table)
        if len(answered) > rows:
            say(f"… and {len(answered) - rows} more (--rows {len(answered)} or --json shows them)")
    if answered:
        say(f"{_summary(answered, policy, seconds)}, on {engine.backend}{_taken(calls)}")
    late = [record["ms"] for record in answered if record.get("late")]
    if late:
        say(
            f"{len(late)} of {len(answered)} missed the deadline of {policy.deadline_ms:g} ms "
            f"(longest: {max(late):.2f} ms): "
            "a call runs to its end. Use --batch 1, fewer steps per call (`dc-export -K`) or a smaller network."
        )
    if answered and policy.threshold >= 1.0 and engine.manifest.calibration.data is None:
        say(
            f"{engine.manifest.name} is not calibrated: its inputs run all their steps. `dc-calibrate` finds the "
            "threshold, or pass --threshold."
        )
    return failed


def _printable(text: str) -> str:
    """Escape the bytes of a path that are no UTF-8 (`\\udcff`, which JSON reads back as they were)."""
    return text.encode(errors="backslashreplace").decode()


def other_tuning(tuned: Schedule | None, backend: str, threads: int | None) -> str | None:
    """Say so where a schedule was tuned for another engine, or another number of threads (None: its choice)."""
    if tuned is None or (tuned.engine, tuned.threads) == (backend, threads):
        return None
    return (
        f"The schedule was tuned on {tuned.engine}{_on(tuned.threads)}, and this is {backend}{_on(threads)}: the "
        "answers are the same, but another schedule may be faster (`dc-tune`)."
    )


def _on(threads: int | None) -> str:
    return ", threads of its choice" if threads is None else f", {threads} thread{'s' * (threads > 1)}"


def _taken(calls: Sequence[int]) -> str:
    """How many time steps the calls take, unless each takes one."""
    *first, last = calls
    if first:
        return f", in calls of {', '.join(map(str, first))} and then {last} time steps, as tuned"
    return f", {last} steps per call" if last > 1 else ""


def _summary(answered: list[Record], policy: ExitPolicy, seconds: float) -> str:
    steps = sum(r["steps"] for r in answered) / len(answered)
    ms = sum(r["ms"] for r in answered) / len(answered)
    judged = [r["label"] == r["truth"] for r in answered if "truth" in r]
    accuracy = f", accuracy {100 * sum(judged) / len(judged):.2f} % of {len(judged)}" if judged else ""
    saved = 100 * (1 - steps / policy.max_steps)
    many = "inputs, on average" if len(answered) > 1 else "input"
    return (
        f"{len(answered)} {many}: {steps:.2f} of {policy.max_steps} time steps ({saved:.1f} % saved), {ms:.2f} ms "
        f"until the answer, {len(answered) / seconds:.0f} inputs/s with reading{accuracy}"
    )
