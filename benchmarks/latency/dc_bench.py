"""dc-bench: measure how soon a network answers one input, with and without early exit, and keep every sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ...runtime.cli import command_errors, engine_options

if TYPE_CHECKING:
    from .record import LatencyRecord

T = TypeVar("T")
REFRESH_S = 0.5


@click.command()
@click.argument("networks", metavar="ENGINE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Labelled images: one folder per class, or .npz."
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Another network, whose inferences take turns with those of every ENGINE, to compare them.",
)
@engine_options
@click.option("--batch", type=int, default=32, show_default=True, help="Inputs that run at once, for the throughput.")
@click.option(
    "--images",
    type=int,
    help="So many images, evenly spread over DATA. [default: of 20 to 1000 those that the seconds allow thrice]",
)
@click.option(
    "--rounds",
    type=int,
    default=5,
    show_default=True,
    help="How often all of them are timed, unless the seconds are over.",
)
@click.option(
    "--seconds",
    type=float,
    default=60.0,
    show_default=True,
    help="Timing ends then at the latest; one round is always whole.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the statistics as one JSON object.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The record (.json): machine and every sample.")
@click.option("--report", type=click.Path(path_type=Path), help="A report of it (.html), as `dc-report` makes.")
@click.version_option(package_name="dynamic-confidence")
@command_errors
def main(
    networks: tuple[Path, ...],
    data: Path,
    against: Path | None,
    batch: int,
    images: int | None,
    rounds: int,
    seconds: float,
    as_json: bool,
    output: Path | None,
    report: Path | None,
    **engine_kind: Any,
) -> None:
    """Measure ENGINE (.onnx or .plan; one or several) at batch 1 on labelled images, on this machine.

    After a warm-up of real inferences every image is answered with early exit and without, in turn; each sample is
    kept. Then come, each in a pass of its own: accuracy at every step, what the host adds, throughput of a batch,
    memory, and energy where something here measures it. Several ENGINEs are measured one after another; those whose
    times are to be compared take turns: --against.

    Measure on the device, and with the options, that will run the network, with nothing else running. Ctrl-C ends it:
    what was measured until then is shown and kept.

    \b
    Examples:
      dc-bench net.onnx --data data/test
      dc-bench net.onnx --data data/test --threads 1 -o record.json --report report.html
      dc-bench net_int8.onnx --against net_fp32.onnx --data test.npz --seconds 120
      dc-bench net.plan --data imagenet/val --images 200 --rounds 10 --json
    """
    import shlex
    import sys

    from .bench import Asked, bench, runs_on_gpu
    from .machine import described
    from .measure import Measured
    from .write_up import record_of

    asked = Asked(networks, data, against, images, rounds, seconds, batch, engine_kind)
    _check_places([path for path in (output, report) if path is not None], [*asked.paths, data])
    machine = described(on_gpu=any(runs_on_gpu(path, engine_kind) for path in asked.paths))
    command = shlex.join(["dc-bench", *sys.argv[1:]])
    found: list[Measured] = []
    stopped: str | None = None
    try:
        bench(asked, found, _calm_progress)
    except BaseException as error:
        stopped = _said(error)
        raise
    finally:
        record = record_of(asked, command, machine, found, stopped)
        if record is not None:
            _keep(record, output, report, as_json=as_json)


def _keep(record: LatencyRecord, output: Path | None, report: Path | None, *, as_json: bool) -> None:
    """Write the record and show it."""
    import json

    from ..record import write_record
    from .cautions import cautions
    from .terminal import facts, show

    if output is not None:
        write_record(output, record)
    if as_json:
        click.echo(json.dumps(facts(record), ensure_ascii=False))
    else:
        show(record)
        if output is not None:
            click.echo(f"{output}: the record, with every sample")
    for caution in cautions(record):
        click.secho(f"Warning: {caution}", fg="yellow", err=True)
    if report is not None:
        from .report import write_report

        write_report([record], report)
        click.echo(f"{report}: the report", err=as_json)


def _said(error: BaseException) -> str:
    """Why a measurement ended, for its record."""
    from ...runtime.errors import DynamicConfidenceError

    if isinstance(error, KeyboardInterrupt):
        return "Ctrl-C"
    if isinstance(error, SystemExit):
        return "SIGTERM"
    return str(error) if isinstance(error, DynamicConfidenceError) else f"{type(error).__name__}: {error}"


def _check_places(written: list[Path], read: list[Path]) -> None:
    """Raise a DynamicConfidenceError for a file that cannot be written: better now than after the measurement."""
    from ...runtime.errors import DynamicConfidenceError
    from ...runtime.files import check_place

    taken = {path.resolve() for path in read}
    for path in written:
        if path.is_dir():
            raise DynamicConfidenceError(f"{path}: is a folder, expected the name of a file.")
        if path.resolve() in taken:
            raise DynamicConfidenceError(f"{path}: is read here, or named twice; name another file to be written.")
        taken.add(path.resolve())
        check_place(path, "Choose another place for it.")


def _calm_progress(items: Iterable[T], what: str) -> Iterator[T]:
    """Yield the items and show how far they are; without a thread, which would run beside what is timed."""
    import time

    from rich.console import Console
    from rich.progress import Progress

    console, known = Console(stderr=True), list(items)
    with Progress(console=console, transient=True, auto_refresh=False, disable=not console.is_terminal) as bar:
        task, shown = bar.add_task(what, total=len(known)), time.monotonic()
        bar.refresh()
        for item in known:
            yield item
            bar.advance(task)
            if time.monotonic() - shown > REFRESH_S:
                bar.refresh()
                shown = time.monotonic()
