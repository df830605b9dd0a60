"""What every command shares: errors as one line with an exit code, and a progress bar on stderr."""

from __future__ import annotations

import errno
import functools
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import ParamSpec, TypeVar

import click

from .errors import DynamicConfidenceError
from .interrupts import unwinding

PROVIDERS = ("cpu", "cuda", "tensorrt")
CUDA_BINDINGS = ("auto", "bindings", "pycuda")
BACKENDS = ("auto", "onnxruntime", "openvino", "events")
"""As in `runtime.engine.EngineOptions`, which --help must not import."""
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

INTERNAL_ERROR = 70
"""EX_SOFTWARE of sysexits.h: a fault of this program, told apart from a check that failed (1)."""
INTERRUPTED = 130


def command_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Turn a DynamicConfidenceError into `Error: …` on stderr and its exit code, and Ctrl-C into exit code 130.

    So with memory or space that is used up; SIGTERM cleans up and ends with 143. Any other exception is a fault of this
    program: its traceback and exit code 70.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with unwinding():
                return function(*args, **kwargs)
        except DynamicConfidenceError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(error.exit_code)
        except MemoryError as error:
            click.echo(f"Error: not enough memory ({error}). Use a smaller --batch, or close other programs.", err=True)
            sys.exit(DynamicConfidenceError.exit_code)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            sys.exit(INTERRUPTED)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise  # click's own
        except Exception as error:  # noqa: BLE001 — whatever it is, it must not look like a failed check
            if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
                click.echo("Error: the output cannot be written (no space left there). Send it elsewhere.", err=True)
                sys.exit(DynamicConfidenceError.exit_code)
            traceback.print_exc()
            click.echo(
                "Internal error: this is a fault of dynamic-confidence. Report it with the text above.", err=True
            )
            sys.exit(INTERNAL_ERROR)

    return wrapper


def engine_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the options that say how an engine is opened; the command takes them as `**engine`, for `open_engine`."""
    for option in reversed(
        (
            click.option(
                "--backend",
                type=click.Choice(BACKENDS),
                default="auto",
                show_default=True,
                help="What runs a .onnx; auto: what is installed and fastest, with the same answers.",
            ),
            click.option("--threads", type=int, help="CPU threads, for .onnx. [default: the backend's choice]"),
            click.option(
                "--provider",
                type=click.Choice(PROVIDERS),
                default="cpu",
                show_default=True,
                help="What ONNX Runtime runs a .onnx on; one that cannot is an error, never another one instead.",
            ),
            click.option(
                "--cuda",
                type=click.Choice(CUDA_BINDINGS),
                default="auto",
                show_default=True,
                help="Python package that speaks to CUDA, for .plan: cuda-bindings or pycuda.",
            ),
            click.option(
                "--cuda-graph/--no-cuda-graph",
                "cuda_graphs",
                default=True,
                show_default=True,
                help="Replay each step as a CUDA graph, for .plan.",
            ),
            click.option(
                "--speculate/--no-speculate",
                default=False,
                show_default=True,
                help="Start the next step before this one's confidence is looked at, for .plan.",
            ),
        )
    ):
        command = option(command)
    return command


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items while a bar with the time left stands on stderr (on a terminal only)."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, what, total=total, console=console, transient=True, disable=not console.is_terminal)
