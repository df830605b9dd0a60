"""What the exit-aware schedule gains: every fixed K and the tuned schedule, expected and measured, in one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.cli import command_errors, engine_options

if TYPE_CHECKING:
    from ..calib.labelled_images import LabelledImages
    from ..calib.tuning import Candidate, Tuning
    from ..runtime.manifest import Manifest

DIGITS = 5
"""Behind the point of a millisecond in the record."""


@click.command()
@click.argument("networks", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Labelled images, the same for all.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="About how long to measure, twice each.")
@engine_options
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The record (.json).")
@click.option("--table", "as_table", is_flag=True, help="Print a Markdown table.")
@command_errors
def main(
    networks: tuple[Path, ...], data: Path, seconds: float, output: Path | None, as_table: bool, **engine_kind: Any
) -> None:
    """Tune NETWORKS (calibrated, with several K), without writing into them, and show what it gains.

    The schedule is made for the exits of every other image, and timed on the rest. Exit code 1: the answers differ.

    \b
    Example:
      python -m dynamic_confidence.benchmarks.schedules net.onnx --data data/test --threads 1 -o record.json
    """
    from ..calib.labelled_images import labelled_images
    from ..calib.tuning import check_tunable
    from ..runtime.network_file import read_manifest
    from .record import write_study
    from .schedules_page import table

    manifests = {network: read_manifest(network) for network in networks}
    for network, manifest in manifests.items():
        check_tunable(network, manifest)
    results = []
    for network, manifest in manifests.items():
        images = labelled_images(data, manifest.input.preprocessing, manifest.class_names)
        found = _measured(network, manifest, images, seconds, engine_kind)
        results.append(found)
        if not as_table:
            _say(found)
        if output:  # now: the next one may fail
            write_study(output, "schedules", {"networks": results})
    if as_table:
        click.echo(table(results))


def _measured(
    network: Path, manifest: Manifest, images: LabelledImages, seconds: float, engine_kind: dict[str, Any]
) -> dict[str, Any]:
    from dataclasses import replace

    from ..calib.exits import histogram
    from ..calib.tuning import exits_of_images, tune
    from ..runtime.cli import progress
    from ..runtime.load import used_share

    load = used_share() or 0.0
    exits = exits_of_images(network, images, progress, **engine_kind)
    rest = replace(images, names=images.names[1::2], label=images.label[1::2], source=images.source[1::2])
    shares = histogram(exits[::2], manifest.max_steps)
    tuning = tune(network, manifest, rest, exits[1::2], seconds=seconds, shares=shares, track=progress, **engine_kind)
    mean_steps = {"tuned on": float(exits[::2].mean()), "timed on": float(exits[1::2].mean())}
    return {
        "network": network.name,
        "graph_sha256": manifest.provenance.graph_sha256,
        "architecture": manifest.provenance.architecture,
        "method": manifest.method.name,
        "precision": manifest.numerics.precision,
        "form": manifest.numerics.form,
        "rule": manifest.calibration.rule,
        "threshold": manifest.calibration.threshold,
        "steps": manifest.max_steps,
        "data": images.title,
        "images": len(images),
        "mean_steps": mean_steps,
        "load_per_core": round(load, 2),
        "engine": tuning.engine,
        "threads": tuning.threads,
        **_numbers(tuning),
        "same_answers": True,  # or `tune` had ended with an error
    }


def _numbers(tuning: Tuning) -> dict[str, Any]:
    def plain(candidate: Candidate) -> dict[str, Any]:
        return {
            "calls": list(candidate.calls),
            "expected_ms": candidate.expected_ms,
            "measured_ms": candidate.measured_ms,
            "measured_over_expected": candidate.measured_ms / candidate.expected_ms,
            "best_fixed_over_this": tuning.best_fixed.measured_ms / candidate.measured_ms,
            "samples_ms": candidate.samples_ms.round(DIGITS).tolist(),
        }

    return {
        "exit_histogram": tuning.histogram.tolist(),
        "costs_ms": {str(size): cost.round(DIGITS).tolist() for size, cost in tuning.costs.items()},
        "call_samples": [(*sample[:3], round(sample.ms, DIGITS)) for sample in tuning.call_samples],
        "fixed": {candidate.name: plain(candidate) for candidate in tuning.fixed},
        "schedule": None if tuning.schedule is None else plain(tuning.schedule),
        "chosen": tuning.chosen.name,
    }


def _say(found: dict[str, Any]) -> None:
    click.echo(
        f"{found['network']}: {found['method']}, {found['precision']} ({found['form']}), {found['engine']}, "
        f"{found['mean_steps']['timed on']:.2f} of {found['steps']} steps"
    )
    for name, row in (*found["fixed"].items(), *([("schedule", found["schedule"])] if found["schedule"] else [])):
        click.echo(
            f"  {name:10} {row['measured_ms']:9.3f} ms, expected {row['expected_ms']:9.3f} "
            f"({100 * (row['measured_over_expected'] - 1):+.1f} %), {row['best_fixed_over_this']:.3f} x best fixed K"
            f"{': ' + ', '.join(map(str, row['calls'])) + ', …' if name == 'schedule' else ''}"
        )


if __name__ == "__main__":
    main()
