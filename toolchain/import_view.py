"""How `dc-import` shows what becomes of each key: a table for people, a record for programs, and hints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .foreign import ImportPlan

_COLOURS = {"matched": "green", "renamed": "green", "shape": "red", "missing": "red", "unexpected": "red"}


def plan_record(plan: ImportPlan) -> dict[str, Any]:
    """Return the plan as plain values, without its weights."""
    return {
        "source": plan.source,
        "layout": plan.layout,
        "architecture": plan.architecture,
        "arguments": plan.arguments,
        "counts": plan.counts(),
        "keys": [{"status": k.status, "theirs": k.theirs, "ours": k.ours, "why": k.why} for k in plan.keys],
    }


def print_json(plan: ImportPlan, output: Path | None, error: str | None) -> None:
    """Print one JSON object: the plan, the file that was written, and what prevents the import."""
    click.echo(json.dumps({**plan_record(plan), "output": output and str(output), "error": error}, ensure_ascii=False))


def print_table(plan: ImportPlan) -> None:
    """Print one row per key."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("key", "becomes", "what", "why")
    for column in table.columns:
        column.overflow = "fold"
    for key in plan.keys:
        what = Text(key.status, style=_COLOURS.get(key.status, "yellow"))
        table.add_row(Text(key.theirs or ""), Text(key.ours or ""), what, Text(key.why))
    Console().print(table)


def summary(plan: ImportPlan) -> str:
    """Say in one line which network it is and how many keys became what."""
    counts = ", ".join(f"{number} {status}" for status, number in plan.counts().items())
    classes = plan.arguments.get("classes", "unknown")
    return (
        f"{plan.architecture} ({plan.layout} layout), {plan.arguments['activation']} activations, {classes} classes; "
        f"keys: {counts}"
    )


def hints(plan: ImportPlan, output: Path) -> list[str]:
    """Say what was left out and why, what the file does not say, and what to do next."""
    found = [f"Left out: {key.theirs} ({key.why})." for key in plan.keys if key.status == "dropped"]
    activation, form = plan.arguments["activation"], plan.arguments["form"]
    if activation == "relu" and (form == "imagenet" or plan.architecture == "vgg16"):
        found.append(
            "Its pools took the maximum; here they average, as spiking networks do. So its accuracy is far lower as it "
            "stands: it is a start for fine-tuning."
        )
    if activation == "relu":
        found.append(f"Quantise it next: dc-train --from {output} --activation lsq --bits 2 --data … -o quantised.pt")
    if activation == "qcfs":
        found.append(f"A checkpoint does not say the number of time steps either: dc-export {output} -T …")
    return found
