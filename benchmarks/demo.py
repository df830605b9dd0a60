"""The demo: train, export, calibrate and run a network that reads digits, by the commands a user would type."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click

from ..runtime.cli import command_errors
from .evaluate import Evaluation

METHODS = ("qcfs", "qffs")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("demo"))
@click.option("--epochs", type=int, default=15, show_default=True)
@command_errors
def main(folder: Path, epochs: int) -> None:
    """Run the whole chain on scikit-learn's digits and leave everything in FOLDER.

    \b
    Example:
      python -m dynamic_confidence.benchmarks.demo demo
    """
    from ..runtime.images import labelled_arrays
    from ..runtime.network_file import read_manifest
    from ..toolchain.digits import write_digits
    from .evaluate import evaluate
    from .figures import exit_figure

    started = time.perf_counter()
    digits, model = folder / "digits", folder / "model.pt"
    networks = {method: folder / f"model_{method}.onnx" for method in METHODS}
    folder.mkdir(parents=True, exist_ok=True)
    _say("1  Handwritten digits, 16 x 16 pixels, in three separate sets: train, calibration, test")
    write_digits(digits)
    click.echo(f"   {digits}/train  {digits}/calibration  {digits}/test")
    _say("2  Train a small residual network whose activations have 2 bits")
    recipe = ("--architecture", "resnet8", "--width", 8, "--epochs", epochs, "--fresh")
    _run("dc-train", "--data", digits / "train", *recipe, "-o", model)
    _say("3  Convert it to spiking networks, by both methods, and check them bit for bit")
    for network in networks.values():
        network.unlink(missing_ok=True)  # of an earlier demo, calibrated
    _run("dc-export", model, "--method", "qcfs", "-T", 8, "-o", networks["qcfs"])
    _run("dc-export", model, "--method", "qffs", "-o", networks["qffs"])
    _say("4  Calibrate when to stop, on images that are neither trained on nor tested with")
    for network in networks.values():
        _run("dc-calibrate", network, "--data", digits / "calibration")
    _say("5  Answer images: each stops as soon as it is sure enough")
    _run("dc-run", "--engine", networks["qcfs"], digits / "test", "--rows", 8)
    _say("6  The test set, with and without Dynamic Confidence")
    evaluations = {}
    for method, network in networks.items():
        manifest = read_manifest(network)
        pixels, label = labelled_arrays(digits / "test", manifest.input.preprocessing, manifest.class_names)
        evaluations[f"{method.upper()}, T = {manifest.max_steps}"] = evaluate(network, pixels, label)
    picture = folder / "digits.png"
    exit_figure(evaluations, "Digits: stop as soon as you are sure", picture)
    print_evaluations(evaluations)
    click.echo(f"Picture: {picture}      The whole demo took {time.perf_counter() - started:.0f} s.")
    if shutil.which("dc-run") is None:
        click.echo(f"Next, in this shell: source {Path(sys.executable).parent / 'activate'}")
    click.echo(f"Then: dc-run --engine {networks['qcfs']} IMAGE.png   (white digits on black), or dc-export --help")


def print_evaluations(evaluations: dict[str, Evaluation]) -> None:
    """Print accuracy and steps at fixed T, with Dynamic Confidence and for the upper bound; then who stops when."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("network", "inputs stop", title=f"{next(iter(evaluations.values())).trace.samples} test images")
    for column in ("accuracy %", "mean steps", "steps saved %"):
        table.add_column(column, justify="right")
    for name, e in evaluations.items():
        steps = e.manifest.max_steps
        rows = [
            ("all at T", e.fixed_accuracy, float(steps)),
            ("when silent (exact)", e.fixed_accuracy, e.fixed_steps),
            ("when sure (Dynamic Confidence)", e.accuracy, e.mean_steps),
            ("when right (upper bound)", e.bound_accuracy, e.bound_steps),
        ]
        if e.fixed_steps == steps:
            del rows[1]
        table.add_section()
        for index, (what, accuracy, mean) in enumerate(rows):
            cells = f"{100 * accuracy:.2f}", f"{mean:.2f}", f"{100 * (1 - mean / steps):.1f}"
            table.add_row(name if index == 0 else "", what, *cells)
    console.print(table)
    for name, e in evaluations.items():
        console.print(f"{name}: how many inputs stop at each time step", highlight=False)
        for step, fraction in enumerate(e.exit_histogram, start=1):
            if fraction:
                console.print(
                    f"  {step:3d} {'█' * max(1, round(50 * fraction))} {100 * fraction:.1f} %", highlight=False
                )


def _say(text: str) -> None:
    click.secho(f"\n{text}", bold=True)


def _run(name: str, *arguments: object) -> None:
    """Run one of our commands, shown as a user would type it, from the environment this program runs in."""
    words = [str(argument) for argument in arguments]
    click.secho(f"$ {shlex.join([name, *words])}", dim=True)
    result = subprocess.run([str(Path(sys.executable).parent / name), *words], check=False)
    if result.returncode:
        raise SystemExit(result.returncode)


if __name__ == "__main__":
    main()
