"""`python -m dynamic_confidence.benchmarks.table2`: the paper's Table 2 on this machine, on every backend present."""

from __future__ import annotations

from pathlib import Path

import click

from ...runtime.cli import command_errors
from ...runtime.errors import DynamicConfidenceError


@click.command()
@click.option("--only", multiple=True, help="A network, or NETWORK/METHOD. [default: all]")
@click.option("--model", "models", multiple=True, metavar="MODEL=DATA", help="Trained, in place of a random network.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Cores to be pinned to.")
@click.option("--seconds", type=float, default=45.0, show_default=True, help="For timing a setting; 3 rounds at least.")
@click.option("--quick", is_flag=True, help="Narrow networks, three rounds: to see that all works, not to quote.")
@click.option("--from-record", is_flag=True, help="Measure nothing: only write the tables of the record.")
@click.option(
    "--table", type=click.Path(path_type=Path), help="Write the tables (.md); dc-report makes a page of the record."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The record (.json).")
@command_errors
def main(
    only: tuple[str, ...],
    models: tuple[str, ...],
    threads: int,
    seconds: float,
    quick: bool,
    from_record: bool,
    table: Path | None,
    output: Path,
) -> None:
    """Measure the settings of the paper's Table 2 at fixed T and with Dynamic Confidence, batch 1.

    Weights are random, and early exit is projected from the paper's mean steps, unless a trained network is given:
    DATA is then a folder with the parts `validation` and `test`, as `dc-data` writes them.
    Each setting is one entry of the record; run again after it was stopped, the command goes on with those that are
    missing. Run it on a machine with nothing else to do; the VGG-16 for ImageNet takes 15 GB of memory.

    \b
    Examples:
      python -m dynamic_confidence.benchmarks.table2 -o table2.json --table table2.md
      dc-report table2.json -o table2.html
      python -m dynamic_confidence.benchmarks.table2 --only resnet18_cifar10 --quick -o quick.json
      python -m dynamic_confidence.benchmarks.table2 --model resnet18.pt=cifar10 -o table2.json
    """
    from ...runtime.files import check_place
    from ..peers.machine import pin

    if from_record and table is None:
        raise DynamicConfidenceError("--from-record writes nothing but a page: name it with --table.")
    if table is not None:  # not after an hour
        check_place(table, "Choose another place with --table.")
    if not from_record:
        cores = pin(threads)
        _measure(only, models, threads, seconds, quick, cores, output)
    if table is not None:
        _write_page(output, table)


def _measure(
    only: tuple[str, ...],
    models: tuple[str, ...],
    threads: int,
    seconds: float,
    quick: bool,
    cores: list[int],
    output: Path,
) -> None:
    import tempfile

    import msgspec
    import torch

    from ..peers.machine import warn_if_busy
    from ..peers.setting import chosen
    from ..record import write_record
    from . import measure
    from .record import VERSION, Table2Record, continued
    from .settings import names, paper_setting
    from .trained import by_network

    wanted = chosen(only, names())
    fresh = Table2Record(version=VERSION, quick=quick, threads=threads, machine=measure.computer(cores), cells={})
    record = continued(output, fresh)
    trained = by_network(models, {name.split("/")[0] for name in wanted})
    torch.set_num_threads(threads)
    warn_if_busy()
    for number, name in enumerate(wanted, start=1):
        title, paper = f"{number} of {len(wanted)}, {name}", paper_setting(name)
        model = trained.get(paper.network)
        if (known := record.cells.get(name)) is not None and (model is None or known.model == model.about):
            click.echo(f"{title}: measured already", err=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            cell = measure.measured(
                paper,
                Path(folder),
                seconds,
                threads=threads,
                quick=quick,
                trained=model,
                told=lambda text, title=title: click.echo(f"{title}: {text}", err=True),
            )
        record = msgspec.structs.replace(record, cells={**record.cells, name: cell})
        write_record(output, record)


def _write_page(output: Path, table: Path) -> None:
    from ...runtime.files import write_atomically
    from ..latency.report import markdown_of
    from .page import page_of
    from .record import read_measured

    write_atomically(table, markdown_of(page_of([read_measured(output)])).encode())
    click.echo(str(table), err=True)


if __name__ == "__main__":
    main()
