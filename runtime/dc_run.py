"""dc-run: answer images with an exported network, each as early as its confidence allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cli import command_errors, engine_options


@click.command()
@click.option("--engine", "engine_path", type=click.Path(path_type=Path), help="Network: .onnx or .plan.  [required]")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--threshold",
    type=float,
    help="Confidence th_c (or score of the calibrated metric) that stops an input; 1 never does. [default: calibrated]",
)
@click.option("--steps", type=int, help="Largest number of time steps T. [default: as exported]")
@click.option("--deadline-ms", type=float, help="An anytime answer: start no call that would end later than this.")
@click.option(
    "--batch",
    type=int,
    default=1,
    show_default=True,
    help="Inputs that run at once: when one stops, the next takes its place.",
)
@engine_options
@click.option(
    "--frames",
    is_flag=True,
    help="Each INPUT varies in time: a folder of frames, or a .npy [T, C, H, W]. With K > 1: needs dc-export --frames.",
)
@click.option(
    "--rows", type=click.IntRange(0), default=20, show_default=True, help="Rows of the table; the summary covers all."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per input on stdout, as they are answered.")
@click.version_option(package_name="dynamic-confidence")
@command_errors
def main(
    engine_path: Path | None,
    inputs: tuple[Path, ...],
    threshold: float | None,
    steps: int | None,
    deadline_ms: float | None,
    batch: int,
    frames: bool,
    rows: int,
    as_json: bool,
    **engine_kind: Any,
) -> None:
    """Answer INPUTS (image files, folders, .npy or .npz) with an exported spiking network.

    Every input stops at the first time step whose confidence exceeds the threshold (or the score of the metric that
    the network was calibrated with). Folders named like the classes
    give the accuracy as well. Exit code 0: all answered; 2: some input could not be read (the others were answered).

    \b
    Examples:
      dc-run --engine net.onnx cat.png
      dc-run --engine net.onnx test/ --batch 64
      dc-run --engine net.onnx test/ --json > answers.jsonl
      dc-run --engine net.onnx cat.png --deadline-ms 5
      dc-run --engine net.onnx gesture.npy --frames
      dc-run --engine net.onnx cat.png --provider cuda
      dc-run --engine net.plan cat.png
    """
    from .engine import ENGINES, open_engine
    from .errors import DynamicConfidenceError
    from .exit_policy import policy_from_manifest
    from .report import other_tuning, print_json, print_table
    from .run import records, useful_batch

    if engine_path is None:
        network = next((path for path in inputs if path.suffix in ENGINES), "net.onnx")
        raise DynamicConfidenceError(f"which network? Name it with --engine {network}.")
    with open_engine(engine_path, batch=useful_batch(inputs, batch, frames=frames), **engine_kind) as engine:
        manifest = engine.manifest
        policy = policy_from_manifest(manifest, threshold=threshold, max_steps=steps, deadline_ms=deadline_ms)
        schedule = None if frames else manifest.schedule  # frames follow none
        calls = (manifest.steps_per_call,) if schedule is None else schedule.calls
        if note := other_tuning(schedule, engine.backend, engine_kind["threads"]):
            click.echo(note, err=True)
        answered = records(engine, inputs, policy, frames=frames)
        failed = print_json(answered) if as_json else print_table(answered, engine, policy, rows, calls)
    if failed:
        raise SystemExit(2)
