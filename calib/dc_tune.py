"""dc-tune: find out how many time steps each call should take on this machine, and write it into the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.cli import command_errors, engine_options
from ..runtime.load import BUSY, used_share

if TYPE_CHECKING:
    import numpy as np

    from ..runtime.manifest import Manifest
    from .labelled_images import LabelledImages
    from .tuning import Candidate, Tuning

STEADY = 0.1
"""Difference between expected and measured from which on the machine was not steady."""


@click.command()
@click.argument("network", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="Labelled images: one folder per class, or .npz. The network is timed on some of them.",
)
@click.option(
    "--trace", type=click.Path(path_type=Path), help="Folder of dc-eval's trace of DATA, so that it is not run again."
)
@click.option("--seconds", type=float, default=20.0, show_default=True, help="About how long to measure, twice.")
@engine_options
@click.option("--dry-run", is_flag=True, help="Measure and show, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all that was measured.")
@click.version_option(package_name="dynamic-confidence")
@command_errors
def main(
    network: Path,
    data: Path,
    trace: Path | None,
    seconds: float,
    dry_run: bool,
    as_json: bool,
    **engine_kind: Any,
) -> None:
    """Tune NETWORK (a calibrated .onnx with several K, `dc-export -K 1,2,4,8`) to this machine.

    A call of several time steps costs less per step than several calls, but an input that stops in the middle of it
    has waited for its end. From when inputs stop and what each call costs here follows the schedule of calls that
    answers soonest: long ones while hardly anything stops, short ones where most inputs do. `dc-run` follows it, one
    input at a time; labels, steps and logits stay what they are.

    It is measured against every fixed K, in turn on the same images, and the best one is written. Tune on the device,
    and with the options, that will run the network, and with nothing else running.

    \b
    Examples:
      dc-tune net.onnx --data data/validation
      dc-tune net.onnx --data data/validation --threads 1 --dry-run
      dc-tune net.onnx --data data/validation.npz --trace traces/validation --seconds 60
    """
    import json

    from ..runtime.cli import progress
    from ..runtime.errors import DynamicConfidenceError
    from ..runtime.network_file import read_manifest
    from ..runtime.onnx_file import write_schedule
    from .labelled_images import labelled_images
    from .tuning import check_tunable, exits_of_images, tune

    if not 0 < seconds < float("inf"):
        raise DynamicConfidenceError(f"--seconds {seconds:g}: expected a positive number.")
    manifest = read_manifest(network)
    check_tunable(network, manifest)
    load = used_share() or 0.0
    if load > BUSY:
        click.echo(
            f"this machine is busy ({load:.0%} of all cores): what is measured now may not hold when it is idle.",
            err=True,
        )
    images = labelled_images(data, manifest.input.preprocessing, manifest.class_names)
    if trace is None:
        exits = exits_of_images(network, images, progress, **engine_kind)
    else:
        exits = _traced(trace, manifest, images)
    tuning = tune(network, manifest, images, exits, seconds=seconds, track=progress, **engine_kind)
    if not dry_run:
        write_schedule(network, tuning.record)
    facts = {
        "network": str(network),
        "data": images.title,
        "samples": len(exits),
        "load_per_core": round(load, 2),
        **_facts(tuning),
        "written": not dry_run,
    }
    if as_json:
        click.echo(json.dumps(facts))
    else:
        _show(tuning, facts)


def _traced(folder: Path, manifest: Manifest, images: LabelledImages) -> np.ndarray:
    """The exits `[sample]` by a trace of these images. Raises: DynamicConfidenceError for one of other images."""
    from ..runtime.errors import DynamicConfidenceError
    from .exits import replay
    from .trace_folder import load_trace
    from .trace_header import read_header

    header = read_header(folder)
    if header.samples_sha256 != images.identity():
        raise DynamicConfidenceError(
            f"{folder}: is a trace of {header.data}, whose samples are not those of {images.title}. Give the data that "
            "was traced, or leave --trace out."
        )
    return replay(load_trace(folder, manifest), manifest.calibration)


def _facts(tuning: Tuning) -> dict[str, Any]:
    import numpy as np

    def plain(candidate: Candidate) -> dict[str, Any]:
        return {
            "name": candidate.name,
            "calls": list(candidate.calls),
            "expected_ms": candidate.expected_ms,
            "measured_ms": candidate.measured_ms,
        }

    mixed = tuning.schedule
    return {
        "engine": tuning.engine,
        "threads": tuning.threads,
        "mean_steps": float((np.arange(len(tuning.histogram)) + 1) @ tuning.histogram),
        "exit_histogram": tuning.histogram.tolist(),
        "cost_ms": {str(size): ms for size, ms in tuning.cost_ms.items()},
        "timed_images": len(tuning.fixed[0].samples_ms),
        "candidates": [plain(candidate) for candidate in (*tuning.fixed, *([mixed] if mixed else []))],
        "chosen": plain(tuning.chosen),
    }


def _show(tuning: Tuning, facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    best, console = tuning.best_fixed.measured_ms, Console()
    table = Table("steps per call", title=f"Milliseconds until the answer, {facts['timed_images']} images in turn")
    for column in ("a call", "expected", "measured", "difference %", "speed", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for row in facts["candidates"]:
        steps, found, expected = row["calls"], row["measured_ms"], row["expected_ms"]
        table.add_row(
            f"{', '.join(map(str, steps))}, …",
            f"{tuning.cost_ms[steps[0]]:.3f}" if len(steps) == 1 else "",
            f"{expected:.3f}",
            f"{found:.3f}",
            f"{100 * (found / expected - 1):+.1f}",
            f"{best / found:.3f}",
            "<- chosen" if row["calls"] == facts["chosen"]["calls"] else "",
        )
    console.print(table)
    for line in _sentences(tuning, facts):
        # Not wrapped: what is piped into a file or a search stays on one line.
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _sentences(tuning: Tuning, facts: dict[str, Any]) -> list[str]:
    threads = (
        "its own choice of threads"
        if tuning.threads is None
        else f"{tuning.threads} thread{'s' * (tuning.threads > 1)}"
    )
    lines = [
        f"{facts['samples']} inputs of {facts['data']} stop after {facts['mean_steps']:.2f} of {len(tuning.histogram)} "
        f"steps on average; {tuning.engine}, {threads}"
    ]
    if tuning.schedule is None:
        lines.append("no mixture of calls is expected to be clearly faster than one K (or this engine runs one K only)")
    elif tuning.chosen is not tuning.schedule:
        lines.append("the schedule is not clearly faster than the best fixed K, which is simpler")
    off = max(abs(row["measured_ms"] / row["expected_ms"] - 1) for row in facts["candidates"])
    if off > STEADY:
        lines.append(
            f"measured and expected differ by up to {100 * off:.0f} %: this machine was not steady. Run it again."
        )
    wrote = "written into" if facts["written"] else "not written into"
    return [*lines, f"{', '.join(map(str, tuning.chosen.calls))}, …: {wrote} {facts['network']}"]
