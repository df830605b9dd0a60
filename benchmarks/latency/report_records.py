"""Which records a report shows: what a file says it is decides how it is checked and which page it makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...runtime.errors import DynamicConfidenceError
from ..record import read_record
from ..table2 import page as table2_page
from ..table2.record import Table2Record, require_settings
from . import report_page
from .record import LatencyRecord, require_samples
from .report_parts import Page

KNOWN = LatencyRecord | Table2Record
TITLE = "a record of dc-bench or of Table 2, of version 1"
AGAIN = (
    "Measure one with `dc-bench net.onnx --data DIR -o record.json`, or with "
    "`python -m dynamic_confidence.benchmarks.table2 -o table2.json`."
)


def page_of_files(paths: Sequence[Path]) -> tuple[Page, str]:
    """Read records and make their page; the text says what is on it: `2 runs of 1 record`.

    Raises: DynamicConfidenceError for what is no record, one that holds nothing to show, or records of two kinds.
    """
    latency: list[LatencyRecord] = []
    table2: list[Table2Record] = []
    for path in paths:
        record = read_record(path, KNOWN, TITLE, AGAIN)
        if isinstance(record, Table2Record):
            require_settings(path, record)
            table2.append(record)
        else:
            require_samples(path, record)
            latency.append(record)
    if latency and table2:
        raise DynamicConfidenceError(
            f"{len(latency)} of these {len(paths)} records are of dc-bench, {len(table2)} of Table 2: a page shows one "
            "kind, expected records of the same. Call dc-report once for each."
        )
    if table2:
        return table2_page.page_of(table2), _counted(sum(len(one.cells) for one in table2), "setting", len(table2))
    return report_page.page_of(latency), _counted(sum(len(one.runs) for one in latency), "run", len(latency))


def _counted(parts: int, part: str, records: int) -> str:
    return f"{parts} {part}{'s' * (parts > 1)} of {records} record{'s' * (records > 1)}"
