"""How a calibration is shown: one JSON object for programs, tables and sentences for people."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec

from .policy import CalibrationReport, Goal
from .thresholds import OperatingPoint

ROWS = 12
FADING = 0.01
"""Accuracy that more steps may cost before it is said which number of steps was best."""


def json_from_report(report: CalibrationReport) -> str:
    """Return everything that was found as one JSON object."""
    plain = dataclasses.asdict(report) | {"calibration": msgspec.to_builtins(report.calibration)}
    return json.dumps(msgspec.to_builtins(plain))


def print_report(report: CalibrationReport, goal: Goal, network: Path, data: Path) -> None:
    """Print the Pareto front, the sweep where there was one, how far confidences hold, and what was written."""
    from rich.console import Console
    from rich.table import Table

    calibration = report.calibration
    console = Console()
    if report.sweep:
        table = Table("alpha", "threshold", "mean steps", "accuracy %", "", title="Each alpha under the rule")
        for tried in report.sweep:
            mark = "<- chosen" if tried.alpha == calibration.alpha else ""
            table.add_row(f"{tried.alpha:g}", *_cells(tried.threshold, tried.mean_steps, tried.accuracy), mark)
        console.print(table)
    title = (
        f"Thresholds on the calibration data (Pareto front{f', alpha {calibration.alpha:g}' if report.sweep else ''})"
    )
    table = Table("threshold", "mean steps", "accuracy %", "", title=title)
    for point in _rows(report):
        mark = "<- chosen" if point == report.chosen else ""
        table.add_row(*_cells(point.threshold, point.mean_steps, point.accuracy), mark)
    table.add_section()
    silent = report.baseline_steps < report.steps
    never, baseline = "never (until silent)" if silent else "never", (report.baseline_steps, report.baseline_accuracy)
    table.add_row(never, *_cells(0.0, *baseline)[1:], "baseline")
    table.add_row("upper bound", *_cells(0.0, report.bound_steps, report.bound_accuracy)[1:], "knows the label")
    console.print(table)
    metric = "" if calibration.metric == "max-softmax" else f"metric {calibration.metric}, "
    first = "" if calibration.min_step == 1 else f"from step {calibration.min_step}, "
    console.print(
        f"{network}: {metric}alpha {calibration.alpha:g}, temperature {calibration.temperature:.4g}, threshold "
        f"{calibration.threshold:.4g}, {first}from {calibration.samples} images of {data}.",
        f"Confidence after the last step: {_reliability(report)}.",
        *filter(None, [fading(report)]),
        _promise(goal) if goal.rule == "certified" else _warning(report),
        sep="\n",
        highlight=False,
        markup=False,
    )


def fading(report: CalibrationReport) -> str | None:
    """Say so where further steps make the answers worse; None where they do not.

    With its steps a QCFS network turns into the one without rounding, which may be a bad one.
    """
    accuracy = report.accuracy_at_step
    best = accuracy.index(max(accuracy)) + 1
    if accuracy[best - 1] - accuracy[-1] <= FADING:
        return None
    return (
        f"More steps make it worse: {100 * accuracy[best - 1]:.2f} % after {best}, {100 * accuracy[-1]:.2f} % after "
        f"{len(accuracy)}. Export it with -T {best}."
    )


def _cells(threshold: float, mean_steps: float, accuracy: float) -> tuple[str, str, str]:
    return f"{threshold:.4f}", f"{mean_steps:.3f}", f"{100 * accuracy:.2f}"


def _rows(report: CalibrationReport) -> list[OperatingPoint]:
    """At most some `ROWS` points of the front, evenly spread, and the chosen one, by mean steps."""
    every = -(-len(report.front) // ROWS)
    shown = {*report.front[::every], report.front[-1], report.chosen}
    return sorted(shown, key=lambda point: point.mean_steps)


def _reliability(report: CalibrationReport) -> str:
    before, after = report.reliability_before, report.reliability_after
    text = f"calibration error (ECE) {100 * before.ece:.2f} %, NLL {before.nll:.4f} at temperature 1"
    if after.temperature == before.temperature:
        return text
    return f"{text}; {100 * after.ece:.2f} %, {after.nll:.4f} at {after.temperature:.4g}"


def _promise(goal: Goal) -> str:
    return (
        f"With probability {1 - goal.delta:g} over the choice of these images, accuracy on others like them drops by "
        f"at most {100 * goal.max_drop:g} points."
    )


def _warning(report: CalibrationReport) -> str:
    if report.sweep:
        return "Threshold and alpha are fitted to this data: report accuracies on other images only."
    return "These numbers are fitted to this data: report accuracies on other images only."
