"""`python -m dynamic_confidence.benchmarks.peers`: what a time step costs, ours and everybody else's, in one run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from ...runtime.cli import command_errors
from ...runtime.errors import DynamicConfidenceError

STUDY, MODULE = "peers", "dynamic_confidence.benchmarks.peers"


@click.command()
@click.option("--only", multiple=True, help="A network, or NETWORK/METHOD. [default: all]")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Cores to be pinned to.")
@click.option("--seconds", type=float, default=120.0, show_default=True, help="For timing one network and method.")
@click.option("--quick", is_flag=True, help="Three rounds: to see that all works, not to quote.")
@click.option("--from-record", is_flag=True, help="Measure nothing: only write the table of the record.")
@click.option("--table", type=click.Path(path_type=Path), help="Write the tables (.md), and a picture beside them.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The record (.json).")
@command_errors
def main(
    only: tuple[str, ...],
    threads: int,
    seconds: float,
    quick: bool,
    from_record: bool,
    table: Path | None,
    output: Path,
) -> None:
    """Measure a time step of every network by every method, ours and its peers', interleaved.

    Each network and method is one run, in a process of its own, and one entry of the record; run again after it was
    stopped, the command goes on with those that are missing. Run it on a machine with nothing else to do.

    \b
    Examples:
      python -m dynamic_confidence.benchmarks.peers -o peers.json --table peers_table.md
      python -m dynamic_confidence.benchmarks.peers --only resnet20/qcfs --quick -o quick.json
    """
    from .machine import pin

    if from_record and table is None:
        raise DynamicConfidenceError("--from-record writes nothing but a table: name it with --table.")
    if not from_record:
        cores = pin(threads)
        _measure(only, threads, seconds, quick, cores, output)
    if table is not None:
        _write_table(_read(output), table)


def _measure(only: tuple[str, ...], threads: int, seconds: float, quick: bool, cores: list[int], output: Path) -> None:
    """Measure what the record lacks: one network by one method here, several each in a process of its own.

    How memory lies depends on what a process did before, and that moved the demo's step on a ResNet-20 by 15 %.
    """
    from .machine import described
    from .setting import chosen

    wanted = chosen(only)
    results: dict[str, Any] = {
        "setting": {"threads": threads, "quick": quick},
        "machine": described(cores),
        "cells": {},
    }
    if output.exists():
        results["cells"] = _continued(output, results)
    missing = [name for name in wanted if name not in results["cells"]]
    for name in wanted:
        if name not in missing:
            _say(name, "measured already")
    if len(missing) == 1:
        _measure_one(missing[0], seconds, results, output)
        return
    for number, name in enumerate(missing, start=1):
        _say(f"{number} of {len(missing)}", name)
        options = ["--only", name, "--threads", str(threads), "--seconds", str(seconds), *["--quick"] * quick]
        command = [sys.executable, "-m", MODULE, *options, "-o", str(output)]
        code = _run(command)
        if code < 0:
            raise DynamicConfidenceError(f"{name}: its process was ended by signal {-code}: is there enough memory?")
        if code:  # it has said why
            raise SystemExit(code)


def _run(command: list[str]) -> int:
    """Run to the end and return the exit code; what stops us stops it, too, and waits until it has cleaned up."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            raise


def _measure_one(name: str, seconds: float, results: dict[str, Any], output: Path) -> None:
    import tempfile

    import torch

    from ..record import write_study
    from .machine import warn_if_busy
    from .setting import CHOICES, NETWORKS, setting
    from .study import measured

    threads, quick = results["setting"]["threads"], results["setting"]["quick"]
    torch.set_num_threads(threads)
    warn_if_busy()
    network, method = name.split("/")
    with tempfile.TemporaryDirectory() as folder:
        one = setting(network, NETWORKS[network](), method, threads=threads)
        cell = measured(one, Path(folder), seconds, quick=quick, told=lambda text: _say(name, text))
    cells = {**results["cells"], name: cell}
    results["cells"] = {choice: cells[choice] for choice in CHOICES if choice in cells} | cells
    write_study(output, STUDY, results)


def _continued(output: Path, results: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run measured, if this one may go on with it.

    Raises: DynamicConfidenceError for a record of another setting or another machine, saying what differs.
    """
    from ..record import require_same

    before = _read(output)["results"]
    for part in ("setting", "machine"):
        require_same(output, before[part], results[part])
    return before["cells"]


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DynamicConfidenceError(f"{path}: not a record ({error}). Measure one with -o.") from error
    if not _is_known(record):
        raise DynamicConfidenceError(f"{path}: not a record of this version of the command. Name another file with -o.")
    return record


def _is_known(record: Any) -> bool:
    """Whether it is a record of this study, with all that the tables take of the stepping loop."""
    try:
        cells = record["results"]["cells"].values()
        return record["study"] == STUDY and all("loop_once_us" in cell["stepping_loop"] for cell in cells)
    except (AttributeError, KeyError, TypeError):
        return False


def _write_table(record: dict[str, Any], table: Path) -> None:
    from ...runtime.files import atomic_path, write_atomically
    from .markdown import page
    from .picture import draw

    picture = table.with_suffix(".png")
    with atomic_path(picture) as part:
        draw(record, part)
    write_atomically(table, f"{page(record, picture.name)}\n".encode())
    click.echo(f"{table}, {picture}", err=True)


def _say(name: str, text: str) -> None:
    click.echo(f"{name}: {text}", err=True)


if __name__ == "__main__":
    main()
