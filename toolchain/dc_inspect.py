"""dc-inspect: show what a checkpoint, an exported network or a plan says about itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..runtime.cli import command_errors

LONG = 6
"""Lists with more entries than this are shortened in the table; --json shows them whole."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.version_option(package_name="dynamic-confidence")
@command_errors
def main(file: Path, as_json: bool) -> None:
    """Show what FILE (.pt, .onnx or .plan) is: method, steps, states, calibration, numerics, where it comes from.

    Works on any machine: neither a GPU nor TensorRT is needed, and torch only for a .pt.

    \b
    Examples:
      dc-inspect net.onnx
      dc-inspect net.plan --json
      dc-inspect model.pt
    """
    import json

    from .inspect_file import inspect_file

    facts = inspect_file(file)
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in _rows(facts):
        table.add_row(key, Text(value))
    Console().print(table)


def _rows(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested facts to lines such as `calibration.threshold  0.6`."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            name = key if path in ("", "manifest") else f"{path}.{key}"
            yield from _rows(inner, name)
    elif isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
        yield (
            path,
            f"{len(value)}: {_short([entry.get('input') or entry.get('name') or entry['layer'] for entry in value])}",
        )
    elif isinstance(value, (list, tuple)):
        yield path, _short(list(value))
    else:
        yield path, "-" if value is None else str(value)


def _short(items: list[Any]) -> str:
    texts = (": ".join(map(str, item)) if isinstance(item, (list, tuple)) else str(item) for item in items[:LONG])
    shown = ", ".join(texts)
    return f"{shown}, … ({len(items)})" if len(items) > LONG else shown
