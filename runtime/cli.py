"""What every command shares: errors as one line with an exit code, and a progress bar on stderr."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import ParamSpec, TypeVar

import click

from .errors import DynamicConfidenceError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

INTERRUPTED = 130


def command_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Turn a DynamicConfidenceError into `Error: …` on stderr and its exit code, and Ctrl-C into exit code 130."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except DynamicConfidenceError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            sys.exit(INTERRUPTED)

    return wrapper


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items while a bar with the time left stands on stderr (on a terminal only)."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, what, total=total, console=console, transient=True, disable=not console.is_terminal)
