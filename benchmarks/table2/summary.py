"""Table 2 in short, as Markdown: what the README shows of a record."""

from __future__ import annotations

from ..markdown_table import markdown_table
from . import settings
from .page import summary_row
from .record import Table2Record

HEADER = (
    "setting",
    "T → steps",
    "fastest engine",
    "all steps, ms",
    "with early exit, ms",
    "one pass of the quantised network, ms",
    "the paper's V100, ms",
)


def summary(record: Table2Record) -> str:
    rows = []
    for setting in settings.SETTINGS:
        row = summary_row(setting, record.cells.get(setting.name))
        title, steps, exits, _, engine, fixed, with_exit, one_pass, *v100 = row
        rows.append((title, f"{steps} → {exits}", engine, fixed, with_exit, one_pass, " → ".join(v100)))
    return markdown_table(HEADER, rows)
