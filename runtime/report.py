"""How `dc-run` shows its records: JSON lines for programs, a table and a summary for people."""

from __future__ import annotations

import json
from collections.abc import Iterable

import click

from .cli import progress
from .manifest import Manifest
from .run import Record
from .stepping import ExitPolicy


def print_json(records: Iterable[Record]) -> int:
    """Print one JSON object per line as they come; return how many inputs failed."""
    failed = 0
    for record in records:
        failed += "error" in record
        click.echo(_printable(json.dumps(record, ensure_ascii=False)))
    return failed


def print_table(records: Iterable[Record], manifest: Manifest, policy: ExitPolicy, rows: int) -> int:
    """Print the first `rows` answers, every failure, and a summary; return how many inputs failed."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("input", "answer", "confidence", "steps", "ms", "exit")
    for column in table.columns[2:5]:
        column.justify = "right"
    table.columns[0].overflow = "fold"
    answered, failed = [], 0
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
    console = Console()
    if answered:
        console.print(table)
        if len(answered) > rows:
            console.print(
                f"… and {len(answered) - rows} more (--rows {len(answered)} or --json shows them)", markup=False
            )
        console.print(_summary(answered, policy), highlight=False, markup=False)
    if policy.threshold >= 1.0 and manifest.calibration.data is None:
        console.print(
            "Not calibrated: every input ran all its steps. `dc-calibrate NET.onnx --data DIR` finds the threshold, or "
            "pass --threshold.",
            highlight=False,
            markup=False,
        )
    return failed


def _printable(text: str) -> str:
    """Escape the bytes of a path that are no UTF-8 (`\\udcff`, which JSON reads back as they were)."""
    return text.encode(errors="backslashreplace").decode()


def _summary(answered: list[Record], policy: ExitPolicy) -> str:
    steps = sum(r["steps"] for r in answered) / len(answered)
    ms = sum(r["ms"] for r in answered) / len(answered)
    judged = [r["label"] == r["truth"] for r in answered if "truth" in r]
    accuracy = f", accuracy {100 * sum(judged) / len(judged):.2f} % of {len(judged)}" if judged else ""
    saved = 100 * (1 - steps / policy.max_steps)
    return (
        f"{len(answered)} inputs: {steps:.2f} of {policy.max_steps} time steps on average ({saved:.1f} % saved), "
        f"{ms:.2f} ms per input{accuracy}"
    )
