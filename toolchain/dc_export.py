"""dc-export: convert a quantised network to a spiking one and write it as a checked ONNX step graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.cli import command_errors
from ..runtime.manifest import GraphForm, Manifest, Precision

if TYPE_CHECKING:
    from ..calib.policy import CalibrationReport
    from .export import Exported

NOTEWORTHY = 0.02
"""Accuracy that a conversion may cost before it is said how to mend it."""


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--method",
    type=click.Choice(["qcfs", "qffs"]),
    default="qcfs",
    show_default=True,
    help="qcfs: integrate-and-fire; qffs: negative spikes too, settles exactly. Either takes lsq and qcfs activations.",
)
@click.option(
    "-T", "--steps", type=int, help="Largest number of time steps. [default: 16 (qcfs), enough to settle (qffs)]"
)
@click.option(
    "-K",
    "--steps-per-call",
    default="1",
    show_default=True,
    help="Time steps in one call of the graph. Several, such as 1,4,8: one file with calls of each, for `dc-tune`.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Of the convolutions between spikes: fp32 and int8 are exact, fp16 rounds.",
)
@click.option(
    "--form",
    type=click.Choice(["conv", "matmul"]),
    default="conv",
    show_default=True,
    help="conv: for every engine; matmul: the same answers, only for ONNX Runtime's CPU, which is faster with it in "
    "int8 and, where most layers have 64 channels or more, in fp32.",
)
@click.option("--frames", is_flag=True, help="The input varies in time: [K, N, C, H, W], one frame per step.")
@click.option("--count-spikes", is_flag=True, help="Return the spikes of each layer and step; qffs: the net count too.")
@click.option(
    "--calibrate-on",
    type=click.Path(path_type=Path),
    help="Labelled images (one folder per class, or .npz): fits the temperature and calibrates the early exit as well.",
)
@click.option(
    "--threads", type=click.IntRange(1), help="CPU threads. [default: 1 for small networks, else torch's choice]"
)
@click.option("--plan", "with_plan", is_flag=True, help="Build the plan as well, as `dc-build` does.")
@click.option("--target", "targets", help="GPUs of the plan, as for `dc-build`: sm86,sm89 …")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="[default: MODEL_METHOD.onnx beside MODEL; MODEL_METHOD_int8.onnx and the like otherwise]",
)
@click.option("--force", is_flag=True, help="Replace a network, or a plan, that has been calibrated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object about the export.")
@click.version_option(package_name="dynamic-confidence")
@command_errors
def main(
    model: Path,
    method: str,
    steps: int | None,
    steps_per_call: str,
    precision: Precision,
    form: GraphForm,
    frames: bool,
    count_spikes: bool,
    calibrate_on: Path | None,
    threads: int | None,
    with_plan: bool,
    targets: str | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Export MODEL (a model.pt with quantised activations) as one ONNX file that runs K time steps per call.

    Before anything is written, the graph is stepped side by side with a torch simulation and a float64 oracle: logits,
    spikes of every layer and exit steps must be equal, bit for bit. In half precision each step must follow from the
    last one instead.

    \b
    Examples:
      dc-export model.pt
      dc-export model.pt --method qffs -o net.onnx
      dc-export model.pt --precision int8 --form matmul
      dc-export model.pt -T 32 -K 4 --calibrate-on data/validation
      dc-export model.pt -K 1,2,4,8 --calibrate-on data/validation
      dc-export model.pt --precision int8 --plan --target sm86,sm89
    """
    import json
    import shlex
    import time

    import msgspec

    from ..calib.calibrate import calibrate_file, check_labels
    from ..models.checkpoint import load_checkpoint, sha256_of
    from ..runtime.cli import progress
    from ..runtime.errors import DynamicConfidenceError
    from ..runtime.files import atomic_path
    from ..runtime.images import labelled_arrays
    from .export import CHECK_IMAGES, ExportOptions, describe, export
    from .plan_backend import open_backend
    from .threads import operations_per_batch, use_threads
    from .write_plan import describe_plan, plan_path, target_names, write_plan

    started = time.perf_counter()
    first, *more = _call_sizes(steps_per_call)
    options = ExportOptions(method, steps, first, frames, count_spikes, precision, form, tuple(more))
    if steps is not None and options.call_sizes[-1] > steps:
        raise DynamicConfidenceError(
            f"-K {steps_per_call} with -T {steps}: a call would run more time steps than there are, expected at most "
            f"{steps}."
        )
    if targets is not None and not with_plan:
        raise DynamicConfidenceError(f"--target {targets} is for a plan: add --plan, or leave it out.")
    if form == "matmul" and with_plan:
        raise DynamicConfidenceError("--plan with --form matmul: a plan is built of convolutions, leave --form out.")
    checkpoint = load_checkpoint(model)
    suffix = ("" if precision == "fp32" else f"_{precision}") + ("" if form == "conv" else f"_{form}")
    output = output or model.with_name(f"{model.stem}_{method}{suffix}.onnx")
    if output.suffix != ".onnx":
        raise DynamicConfidenceError(f"{output}: an exported network is named .onnx: -o {output.with_suffix('.onnx')}")
    plan = output.with_suffix(".plan") if with_plan else None
    for path in (output,) if plan is None else (output, plan):
        if not force:
            _refuse_calibrated(path)
    if plan is not None:  # what it needs, before the long work
        open_backend("auto", target_names(targets))
        plan_path(output, plan, force=True)
    use_threads(threads, operations_per_batch(checkpoint, CHECK_IMAGES))
    data = None
    if calibrate_on is not None:
        data = labelled_arrays(calibrate_on, checkpoint.preprocessing, checkpoint.class_names)
        check_labels(data[1], calibrate_on.name)
    with atomic_path(output) as part:  # before the work: a place that cannot be written is found out at once
        exported = export(
            checkpoint,
            sha256_of(model),
            options,
            name=output.stem,
            calibration_set=data,
            track=lambda calls: progress(calls, "self-check", total=None),
        )
        part.write_bytes(exported.content)
        calibration, report = exported.manifest.calibration, None
        if data is not None and calibrate_on is not None:
            report = calibrate_file(part, *data, data_name=calibrate_on.name, threads=threads)
            calibration = report.calibration
    facts: dict[str, Any] = {
        "output": str(output),
        "bytes": len(exported.content),
        **describe(exported.manifest),
        "calibration": msgspec.to_builtins(calibration),
        "settles_on_the_quantised_network_after": exported.settled,
        "self_check": msgspec.to_builtins(exported.check),
        "accuracy_on_calibration_data": {
            "quantised": exported.quantised_accuracy,
            "spiking": report and report.baseline_accuracy,
        },
        "seconds": round(time.perf_counter() - started, 2),
    }
    if not as_json:  # before the plan, which may fail when the network is there
        click.echo(_text(exported, facts))
    built = None if plan is None else write_plan(output, plan, targets=target_names(targets), force=True)
    if as_json:
        click.echo(json.dumps({**facts, "plan": built}))
        return
    if built is not None:
        click.echo(describe_plan(built))
    if report is None:
        again = "" if plan is None else f", then dc-build {output} --force: the plan has a calibration of its own"
        next_step = f"dc-calibrate {shlex.quote(str(output))} --data DIR{again}"
        click.echo(f"next: {next_step}   (until then every input runs all its steps)")
    else:
        click.echo(_accuracies(exported, report))
        click.echo(
            f"calibrated on {calibration.samples} images of {calibrate_on}: temperature {calibration.temperature:.4g}, "
            f"threshold {calibration.threshold:.4g}, there {calibration.expected_mean_steps:.2f} steps and "
            f"{100 * (calibration.expected_accuracy or 0):.2f} % on average; report accuracies on other images"
        )
        if more:
            size = f"{first} step{'s' * (first > 1)}"
            click.echo(f"next: dc-tune {shlex.quote(str(output))} --data DIR   (until then calls take {size})")


def _call_sizes(text: str) -> list[int]:
    """`4,1,8` -> `[1, 4, 8]`."""
    from ..runtime.errors import DynamicConfidenceError

    try:
        return sorted(int(part) for part in text.split(","))
    except ValueError:
        raise DynamicConfidenceError(f"-K {text}: expected time steps per call, such as 4 or 1,4,8.") from None


def _accuracies(exported: Exported, report: CalibrationReport) -> str:
    """What the conversion cost, where there were labelled images, and what to do when that is much."""
    from ..calib.calibration_report import fading

    quantised, steps, method = exported.quantised_accuracy or 0.0, exported.manifest.max_steps, exported.manifest.method
    spiking = report.baseline_accuracy
    text = (
        f"accuracy there: quantised network {100 * quantised:.2f} %, spiking {100 * spiking:.2f} % after {steps} steps"
    )
    if worse := fading(report):
        return f"{text}. {worse}"
    if quantised - spiking <= NOTEWORTHY:
        return text
    other = " or --method qffs" if method.name == "qcfs" else ""
    return f"{text}. It loses {100 * (quantised - spiking):.1f} points: try -T {2 * steps}{other}, or train longer"


def _refuse_calibrated(path: Path) -> None:
    """Raise DynamicConfidenceError for a file whose calibration would be lost; a broken one has none."""
    from ..runtime.errors import DynamicConfidenceError
    from ..runtime.network_file import read_manifest

    try:
        calibration = read_manifest(path).calibration
    except DynamicConfidenceError:
        return
    if calibration.data is not None:
        raise DynamicConfidenceError(
            f"{path}: exists and is calibrated on {calibration.data} (threshold {calibration.threshold:.4g}). Replace "
            "it with --force, or choose another place with -o."
        )


def _numbers(manifest: Manifest) -> str:
    """The precision, and the form where it is not the usual one."""
    numerics = manifest.numerics
    return numerics.precision if numerics.form == "conv" else f"{numerics.precision} ({numerics.form})"


def _text(exported: Exported, facts: dict[str, Any]) -> str:
    """What was written and what was checked, for people."""
    manifest, check = exported.manifest, exported.check
    extent = f"{check.images} images x {check.steps} steps x {check.layers} layers ({check.spikes:,} spikes)"
    made = (
        f"{facts['output']}: {facts['bytes'] / 1e6:.2f} MB, {manifest.method.name}, {_numbers(manifest)}, "
        f"T = {manifest.max_steps}, K = {', '.join(map(str, manifest.call_sizes))}, {facts['seconds']:.1f} s\n"
        f"conversion: with QFFS neurons it settles on the quantised network after {exported.settled} steps (float64)\n"
    )
    if manifest.numerics.precision == "fp16":
        return (
            f"{made}self-check: every step follows from the last, within half precision, on {extent}\n"
            f"approximate: {100 * check.equal_labels:.1f} % of the labels and {100 * check.equal_exits:.1f} % of the "
            "exit steps are those without rounding; another engine may round otherwise"
        )
    return (
        f"{made}self-check: oracle, torch simulation and graph are equal on {extent}\n"
        f"exact in float32 {'for every image' if manifest.numerics.exact else 'for images like the calibration data'}: "
        f"grids of 2^-{facts['coarsest_grid']} of the threshold or finer"
    )
