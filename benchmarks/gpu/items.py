"""The items of `make gpu`, by name; each runs alone, prints one line and writes what it measured as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from ...runtime.cli import command_errors
from ...runtime.errors import BackendMissing, CheckFailed, DynamicConfidenceError

Save = Callable[[Any], None]
"""Keeps what was measured so far, whatever happens next."""


def environment(save: Save) -> str:
    from ...runtime.cuda import open_cuda
    from ...runtime.doctor import diagnose

    save([asdict(finding) for finding in diagnose()])
    with open_cuda("auto") as cuda:
        return f"{cuda.device}, {cuda.target}, {cuda.package}"


def tests(save: Save) -> str:
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


def parity(what: str, save: Save) -> str:
    _need_gpu()
    from .parity import parity_of

    return parity_of(what, save)


def latency(save: Save) -> str:
    _need_gpu()
    from .latency import latency_table

    return latency_table(save)


def loop(save: Save) -> str:
    _need_gpu()
    from .loop import loop_on_the_gpu

    return loop_on_the_gpu(save)


ITEMS: dict[str, Callable[[Save], str]] = {
    "environment": environment,
    "tests": tests,
    "parity-rtx": partial(parity, "rtx"),
    "parity-tensorrt": partial(parity, "tensorrt"),
    "parity-ort-cuda": partial(parity, "ort-cuda"),
    "parity-ort-tensorrt": partial(parity, "ort-tensorrt"),
    "latency": latency,
    "loop": loop,
}


def _need_gpu() -> None:
    """Raise BackendMissing at once, before networks are made for nothing."""
    from ...runtime.cuda import open_cuda

    with open_cuda("auto"):
        pass


@click.command()
@click.argument("name", type=click.Choice(list(ITEMS)))
@click.argument("output", type=click.Path(path_type=Path))
@command_errors
def main(name: str, output: Path) -> None:
    """Run one item; exit code 0: passed, 1: failed, 3: cannot run here."""

    def save(results: Any) -> None:
        output.write_text(json.dumps(results), encoding="utf-8")

    try:
        click.echo(ITEMS[name](save))
    except (BackendMissing, CheckFailed):
        raise
    except DynamicConfidenceError as error:  # nobody gave it bad input: whatever it was, it did not work
        raise CheckFailed(str(error)) from error


if __name__ == "__main__":
    main()
