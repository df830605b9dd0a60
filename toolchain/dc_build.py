"""dc-build: build a TensorRT or TensorRT-RTX plan from an exported network, with its sidecar."""

from __future__ import annotations

from pathlib import Path

import click

from ..runtime.cli import command_errors
from ..runtime.manifest import Precision


@click.command()
@click.argument("network", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="[default: NETWORK with the suffix .plan]")
@click.option(
    "--flavour",
    type=click.Choice(["auto", "tensorrt", "rtx"]),
    default="auto",
    show_default=True,
    help="Library that builds, and runs, the plan; auto prefers TensorRT for the GPU of this machine.",
)
@click.option(
    "--target",
    "targets",
    help="GPUs, comma-separated: sm75, sm80, sm86, sm89, sm120 …, or current. "
    "[default: current (tensorrt), sm80+ (rtx): compute capability 8.0 and later]",
)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Largest number of inputs a call.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    help="Refuse a NETWORK of another one; it is chosen by `dc-export --precision`. [default: as exported]",
)
@click.option(
    "-K",
    "--steps-per-call",
    type=int,
    help="Which K, of a NETWORK that has several; a plan has one. [default: the smallest]",
)
@click.option(
    "--timing-cache/--no-timing-cache",
    default=True,
    show_default=True,
    help="Keep TensorRT's timings of kernels in the user's cache folder for the next build (rtx has none).",
)
@click.option("--force", is_flag=True, help="Replace an existing plan, and the calibration in its sidecar.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object about the plan.")
@click.version_option(package_name="dynamic-confidence")
@command_errors
def main(
    network: Path,
    output: Path | None,
    flavour: str,
    targets: str | None,
    batch: int,
    precision: Precision | None,
    steps_per_call: int | None,
    timing_cache: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Build a plan from NETWORK (a .onnx of dc-export) and write it with <plan>.json, its manifest.

    TensorRT-RTX builds for desktop GPUs on a machine without one; TensorRT builds on the device that will run the plan.
    Plan and sidecar belong together; the plan alone is a plain one that other tools can load.

    \b
    Examples:
      dc-build net.onnx
      dc-build net.onnx -o net.plan --flavour rtx --target sm86,sm89
      dc-build net.onnx --target current --batch 16 --force
      dc-build net_int8.onnx --precision int8
      dc-build net.onnx -K 4 -o net_k4.plan
    """
    import json

    from .write_plan import describe_plan, plan_path, target_names, write_plan

    facts = write_plan(
        network,
        plan_path(network, output, force=force),
        flavour=flavour,
        targets=target_names(targets),
        batch=batch,
        precision=precision,
        steps_per_call=steps_per_call,
        timing_cache=timing_cache,
        force=force,
    )
    click.echo(json.dumps(facts) if as_json else describe_plan(facts))
