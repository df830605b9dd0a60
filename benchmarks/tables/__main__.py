"""`python -m dynamic_confidence.benchmarks.tables`: all tables and figures of the paper for trained networks."""

from __future__ import annotations

from pathlib import Path

import click

from ...runtime.cli import command_errors
from ...runtime.errors import DynamicConfidenceError


@click.command()
@click.argument("networks", nargs=-1, required=True, metavar="MODEL=DATA…")
@click.option("-T", "--steps", type=int, default=32, show_default=True, help="Time steps to trace QCFS networks for.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("tables"), show_default=True, help="Folder."
)
@command_errors
def main(networks: tuple[str, ...], steps: int, output: Path) -> None:
    """Make Tables 1, 3 and S1 and Figures 1 to 4 for every MODEL (model.pt), by both methods.

    DATA is a folder with the parts `validation` and `test`, each one folder per class or an .npz, as `dc-data` writes
    them: on the first everything is chosen, on the second it is reported. OUTPUT gets tables.md, the figures,
    record.json, and the networks and traces: run again after it was stopped, it goes on where it was.

    \b
    Example:
      python -m dynamic_confidence.benchmarks.tables models/pretrained/resnet20_cifar10.pt=cifar10 \\
          models/pretrained/resnet8_mnist.pt=mnist -o tables
    """
    from ...models.checkpoint import load_checkpoint
    from ...runtime.cli import progress
    from ...runtime.files import write_atomically
    from ..model_and_data import model_and_parts
    from ..record import write_study
    from .markdown import page
    from .pictures import draw
    from .setting import METHODS, measured, prepared

    wanted = [model_and_parts(text) for text in networks]
    _check_names([model for model, _ in wanted])
    for model, _ in wanted:
        load_checkpoint(model)  # what cannot be read is said before the long work
    settings = []
    try:
        for model, (validation, test) in wanted:
            for method in METHODS:
                click.echo(f"{model.stem}, {method}: exporting, tracing", err=True)
                length = steps if method == "qcfs" else None
                files = prepared(model, method, length, validation, test, output / "traces", progress)
                settings.append(measured(files))
    except KeyboardInterrupt:
        click.echo(f"{output}: what was traced is kept; the same command goes on from there.", err=True)
        raise
    output.mkdir(parents=True, exist_ok=True)
    write_study(output / "record.json", "tables", {"settings": settings})
    text = page(settings)
    write_atomically(output / "tables.md", f"{text}\n".encode())
    figures = draw(settings, output)
    click.echo(text)
    click.echo(f"{output}: tables.md, record.json, {', '.join(path.name for path in figures)}", err=True)


def _check_names(models: list[Path]) -> None:
    """Raise DynamicConfidenceError where two networks' files in the output would have one name."""
    names = [model.stem for model in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DynamicConfidenceError(f"two networks are named {twice}: rename one of the files, or run it apart.")


if __name__ == "__main__":
    main()
