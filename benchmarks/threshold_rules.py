"""Which rule finds the threshold that keeps its promise on unseen images: safe, grid, exact or certified?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from ..calib.policy import Goal, Rule, calibrate
from ..runtime.cli import command_errors

PROMISED = 0.005
"""Half a point, with probability 0.9: what `certified` is asked for. The other rules allow no drop on their data."""


@click.command()
@click.argument("network", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Labelled images the network never saw.")
@click.option("--splits", type=int, default=40, show_default=True, help="Random splits per size.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The record (.json).")
@command_errors
def main(network: Path, data: Path, splits: int, output: Path | None) -> None:
    """Calibrate NETWORK on random parts of DATA by each rule and judge every threshold on the rest.

    \b
    Example:
      python -m dynamic_confidence.benchmarks.threshold_rules net.onnx --data data/test -o record.json
    """
    import numpy as np

    from ..calib.exits import replay
    from ..runtime.cli import progress
    from ..runtime.images import labelled_arrays
    from ..runtime.network_file import read_manifest
    from .evaluate import evaluate
    from .record import write_study

    manifest = read_manifest(network)
    pixels, label = labelled_arrays(data, manifest.input.preprocessing, manifest.class_names)
    trace = evaluate(network, pixels, label, lambda starts: progress(starts, "tracing")).trace
    generator = np.random.default_rng(0)
    results: dict[str, Any] = {"network": network.name, "data": data.name, "images": trace.samples, "splits": splits}
    for size in (250, 1000, 2500):
        found: dict[str, list[tuple[float, float]]] = {rule: [] for rule in get_args(Rule)}
        for _ in range(splits):
            order = generator.permutation(trace.samples)
            seen, unseen = trace.subset(order[:size]), trace.subset(order[size:])
            for rule in get_args(Rule):
                drop = PROMISED if rule == "certified" else 0.0
                policy = calibrate(seen, manifest.calibration, Goal(rule, drop)).calibration
                exits = replay(unseen, policy)
                accuracy = unseen.correct[np.arange(unseen.samples), exits - 1].mean()
                change = 100 * float(accuracy - unseen.correct[:, -1].mean())
                found[rule].append((float(exits.mean()), change))
        for rule, pairs in found.items():
            steps, changes = np.array(pairs).T
            summary = {"mean_steps": steps.mean(), "change_points": changes.mean(), "worst_points": changes.min()}
            summary["below_promise"] = (changes < -100 * PROMISED).mean()
            results[f"{rule}, n = {size}"] = {key: round(float(value), 3) for key, value in summary.items()}
            click.echo(f"{rule:9} n = {size:5}: {results[f'{rule}, n = {size}']}")
    if output:
        write_study(output, "threshold rules", results)


if __name__ == "__main__":
    main()
