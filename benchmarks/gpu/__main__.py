"""Run every item of `make gpu`, each in a process of its own, and say of each: passed, failed, or why not run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click

from ...runtime.cli import command_errors
from ...runtime.errors import BackendMissing, CheckFailed
from .items import ITEMS

State = Literal["passed", "failed", "not run"]
STATES: dict[int, State] = {0: "passed", BackendMissing.exit_code: "not run"}
ITEMS_MODULE = f"{__package__}.items"
STYLES = {"passed": "green", "failed": "red", "not run": "yellow"}


class Outcome(NamedTuple):
    item: str
    state: State
    detail: str
    """One line: what was found, why it failed, or why it was not run."""
    seconds: float
    results: Any
    """What the item measured, as plain values; also what a failed one had until then."""


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(ITEMS)), help="Items to run. [default: all]")
@click.option("--limit", type=float, default=600.0, show_default=True, help="Seconds for all items together.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The record (.json).")
@command_errors
def main(only: tuple[str, ...], limit: float, output: Path) -> None:
    """Test and measure on the GPU of this machine.

    A crash in native code ends one item, not the others. Exit code 0: all that could run passed; 1: an item failed;
    3: none that needs a GPU could run. The record holds every raw sample.

    \b
    Examples:
      python -m dynamic_confidence.benchmarks.gpu -o gpu.json
      python -m dynamic_confidence.benchmarks.gpu --only parity-rtx --only latency -o gpu.json
    """
    from ..record import write_study

    end = time.monotonic() + limit
    outcomes: list[Outcome] = []
    for name in only or tuple(ITEMS):
        outcome = run_item(name, min(end - time.monotonic(), ITEMS[name].seconds))
        outcomes.append(outcome)
        click.secho(f"{outcome.state:8}", fg=STYLES[outcome.state], nl=False)
        click.echo(f"{name:20} {outcome.seconds:6.1f} s  {outcome.detail}")
        if any(item.state != "not run" for item in outcomes):  # never an empty record over a real one
            write_study(output, "gpu", {"items": [item._asdict() for item in outcomes]})
    states = {outcome.state for outcome in outcomes}
    if "failed" in states:
        raise CheckFailed("an item failed: its reason stands above, its measurements are in the record.")
    if "passed" not in states:
        raise BackendMissing("nothing could be run here: the reasons stand above. `dc-doctor` says what to install.")
    click.echo(f"{output}: the record, with every sample")


def run_item(name: str, limit: float) -> Outcome:
    """Run one item in a fresh process for at most `limit` seconds."""
    if limit <= 0:
        return Outcome(name, "not run", "no time was left for it: --limit", 0.0, None)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        command = [sys.executable, "-m", ITEMS_MODULE, name, str(results), str(limit)]
        # A session of its own, so that what it has started ends with it.
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
        ) as process:
            try:
                said, complained = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                state, detail = "failed", f"stopped after {limit:.0f} s"
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            else:
                state = STATES.get(process.returncode, "failed")
                detail = _last_line(said if state == "passed" else complained, process.returncode)
        found = json.loads(results.read_text(encoding="utf-8")) if results.exists() else None
    return Outcome(name, state, detail, round(time.monotonic() - started, 1), found)


def _last_line(text: str, code: int) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name} (a crash in native code)"
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("Error: ") if lines else f"exit code {code}, without a word"


if __name__ == "__main__":
    main()
