"""The items of `make gpu`, by name; each runs alone, prints one line and writes what it measured as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click

from ...runtime.cli import command_errors
from ...runtime.errors import BackendMissing, CheckFailed, DynamicConfidenceError

Save = Callable[[Any], None]
"""Keeps what was measured so far, whatever happens next."""


def environment(save: Save, seconds: float) -> str:
    from ...runtime.cuda import open_cuda
    from ...runtime.doctor import diagnose

    save([asdict(finding) for finding in diagnose()])
    with open_cuda("auto") as cuda:
        return f"{cuda.device}, {cuda.target}, {cuda.package}"


def tests(save: Save, seconds: float) -> str:
    """The tests marked `gpu`, from the repository's own folder."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "tests").is_dir():
        raise BackendMissing("the tests are not here: run it in a clone of the repository.")
    _need_gpu()
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rfs", "--no-header", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=root)
    lines = done.stdout.strip().splitlines()
    save(lines[-200:])
    if done.returncode:
        raise CheckFailed(f"pytest ended with code {done.returncode}: {lines[-1] if lines else done.stderr[-200:]}")
    return lines[-1].strip("= ")


def parity(what: str, save: Save, seconds: float) -> str:
    _need_gpu()
    from .parity import parity_of

    return parity_of(what, save)


def latency(save: Save, seconds: float) -> str:
    _need_gpu()
    from .latency import latency_table

    return latency_table(save, seconds)


def loop(save: Save, seconds: float) -> str:
    _need_gpu()
    from .loop import loop_on_the_gpu

    return loop_on_the_gpu(save)


class Item(NamedTuple):
    run: Callable[[Save, float], str]
    """Takes the seconds it has, and returns one line."""
    seconds: float
    """At most, of the ten minutes."""


ITEMS = {
    "environment": Item(environment, 30),
    "parity-rtx": Item(partial(parity, "rtx"), 120),
    "parity-tensorrt": Item(partial(parity, "tensorrt"), 120),
    "latency": Item(latency, 240),
    "tests": Item(tests, 150),
    "parity-ort-cuda": Item(partial(parity, "ort-cuda"), 60),
    "parity-ort-tensorrt": Item(partial(parity, "ort-tensorrt"), 90),
    "loop": Item(loop, 60),
}
"""In this order, until the time is up: what was never known before what is known in part."""


def _need_gpu() -> None:
    """Raise BackendMissing at once, before networks are made for nothing."""
    from ...runtime.cuda import open_cuda

    with open_cuda("auto"):
        pass


@click.command()
@click.argument("name", type=click.Choice(list(ITEMS)))
@click.argument("output", type=click.Path(path_type=Path))
@click.argument("seconds", type=float)
@command_errors
def main(name: str, output: Path, seconds: float) -> None:
    """Run one item; exit code 0: passed, 1: failed, 3: cannot run here."""

    def save(results: Any) -> None:
        output.write_text(json.dumps(results), encoding="utf-8")

    try:
        click.echo(ITEMS[name].run(save, seconds))
    except (BackendMissing, CheckFailed):
        raise
    except DynamicConfidenceError as error:  # nobody gave it bad input: whatever it was, it did not work
        raise CheckFailed(str(error)) from error


if __name__ == "__main__":
    main()
