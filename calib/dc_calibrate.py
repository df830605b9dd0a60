"""dc-calibrate: find the confidence threshold of a network on labelled data and write it into its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from ..runtime.cli import command_errors, engine_options

if TYPE_CHECKING:
    from .calibrate import CalibrationReport
    from .thresholds import OperatingPoint

ROWS = 12
DELTA = 0.1


@click.command()
@click.argument("network", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Labelled images: one folder per class, or .npz."
)
@click.option(
    "--rule",
    type=click.Choice(["safe", "grid", "exact", "certified"]),
    default="safe",
    show_default=True,
    help="grid: the paper's 11 thresholds; exact: all; safe: all, from 1 down to the first that loses accuracy; "
    "certified: those that lose at most --max-drop on all data like this, with probability 1 - --delta.",
)
@click.option("--max-drop", type=float, default=0.0, show_default=True, help="Accuracy that may be lost, in points.")
@click.option("--delta", type=float, help=f"Probability that a certified threshold is wrong. [default: {DELTA}]")
@click.option("--alpha", type=float, help="Divisor of the logits. [default: T (qcfs), levels of the quantiser (qffs)]")
@click.option("--temperature", default="keep", show_default=True, help="keep, fit, or a number; multiplies alpha.")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the front and the choice.")
@click.version_option(package_name="dynamic-confidence")
@command_errors
def main(
    network: Path,
    data: Path,
    rule: str,
    max_drop: float,
    delta: float | None,
    alpha: float | None,
    temperature: str,
    as_json: bool,
    **engine_kind: Any,
) -> None:
    """Calibrate NETWORK (.onnx or .plan): run it on labelled images and choose when to stop.

    Run it on what will run it later: with a .plan, on the device it was built for.

    The threshold taken is the one with the fewest mean time steps that loses no accuracy against running all of them
    (or at most --max-drop). It is fitted to DATA: report accuracies on other images only, never on these.

    \b
    Examples:
      dc-calibrate net.onnx --data data/validation
      dc-calibrate net.onnx --data data/validation --rule grid --max-drop 0.5
      dc-calibrate net.onnx --data data/validation --rule certified --max-drop 1
      dc-calibrate net.onnx --data validation.npz --json
      dc-calibrate net.plan --data data/validation
    """
    import json

    from ..runtime.cli import progress
    from ..runtime.errors import DynamicConfidenceError
    from ..runtime.images import labelled_arrays
    from ..runtime.network_file import read_manifest
    from .calibrate import Rule, calibrate_file

    if temperature not in ("keep", "fit"):
        try:
            chosen_temperature: float | Literal["keep", "fit"] = float(temperature)
        except ValueError:
            raise DynamicConfidenceError(f"--temperature {temperature}: expected keep, fit or a number.") from None
    else:
        chosen_temperature = cast(Literal["keep", "fit"], temperature)
    if max_drop < 0:
        raise DynamicConfidenceError(f"--max-drop {max_drop:g}: expected 0 or more points (0.5 is half a point).")
    if delta is not None and rule != "certified":
        raise DynamicConfidenceError(f"--delta {delta:g} is for --rule certified. Leave it out.")
    if rule == "certified" and not max_drop > 0:
        raise DynamicConfidenceError("--rule certified needs --max-drop above 0, in points: --max-drop 1 (one point).")
    risk = DELTA if delta is None else delta
    manifest = read_manifest(network)
    pixels, label = labelled_arrays(data, manifest.input.preprocessing, manifest.class_names)
    report = calibrate_file(
        network,
        pixels,
        label,
        data_name=data.name,
        rule=cast(Rule, rule),
        max_drop=max_drop / 100,
        delta=risk,
        alpha=alpha,
        temperature=chosen_temperature,
        track=lambda starts: progress(starts, "tracing"),
        **engine_kind,
    )
    if as_json:
        click.echo(json.dumps(_plain(report)))
        return
    promise = (
        f"With probability {1 - risk:g} over the choice of these images, accuracy on others like them drops by at most "
        f"{max_drop:g} points."
    )
    _show(network, data, report, promise if rule == "certified" else "")


def _plain(report: CalibrationReport) -> dict[str, object]:
    import dataclasses

    import msgspec

    return msgspec.to_builtins(dataclasses.asdict(report) | {"calibration": msgspec.to_builtins(report.calibration)})


def _rows(report: CalibrationReport) -> list[OperatingPoint]:
    """At most some `ROWS` points of the front, evenly spread, and the chosen one, by mean steps."""
    every = -(-len(report.front) // ROWS)
    shown = {*report.front[::every], report.front[-1], report.chosen}
    return sorted(shown, key=lambda point: point.mean_steps)


def _show(network: Path, data: Path, report: CalibrationReport, promise: str) -> None:
    from rich.console import Console
    from rich.table import Table

    calibration = report.calibration
    table = Table(
        "threshold", "mean steps", "accuracy %", "", title="Thresholds on the calibration data (Pareto front)"
    )
    for point in _rows(report):
        mark = "<- chosen" if point == report.chosen else ""
        table.add_row(f"{point.threshold:.4f}", f"{point.mean_steps:.3f}", f"{100 * point.accuracy:.2f}", mark)
    table.add_section()
    silent = report.baseline_steps < report.steps
    table.add_row(
        "never (until silent)" if silent else "never",
        f"{report.baseline_steps:.3f}",
        f"{100 * report.baseline_accuracy:.2f}",
        "baseline",
    )
    table.add_row("upper bound", f"{report.bound_steps:.3f}", f"{100 * report.bound_accuracy:.2f}", "knows the label")
    console = Console()
    console.print(table)
    console.print(
        f"{network}: alpha {calibration.alpha:g}, temperature {calibration.temperature:.4g}, threshold "
        f"{calibration.threshold:.4g}, from {calibration.samples} images of {data}.",
        promise or "These numbers are fitted to this data: report accuracies on other images only.",
        sep="\n",
        highlight=False,
        markup=False,
    )
