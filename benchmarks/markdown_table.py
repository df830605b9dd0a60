"""A table in Markdown, for the pages that are made from records."""

from __future__ import annotations

from collections.abc import Iterable


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return the table. Raises: ValueError for a row with more or fewer cells than there are headings."""
    names = list(header)
    lines = [names, ["---"] * len(names), *map(list, rows)]
    if any(len(cells) != len(names) for cells in lines):
        raise ValueError(f"rows of {sorted({len(cells) for cells in lines})} cells under {len(names)} headings")
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
