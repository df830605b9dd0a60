"""Which exit metric stops earliest without a loss, and which rule makes the best of few steps, on unseen samples?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from ..runtime.cli import command_errors

BUDGETS = (0.25, 0.375, 0.5, 0.625)
"""Mean steps that are allowed, as fractions of T."""


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--images", type=int, default=1000, show_default=True, help="In each calibration set.")
@click.option("--splits", type=int, default=40, show_default=True, help="Random calibration sets.")
@click.option("--min-step", type=int, default=1, show_default=True, help="First time step that may stop an input.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The record (.json).")
@command_errors
def main(trace: Path, images: int, splits: int, min_step: int, output: Path | None) -> None:
    """Calibrate on random parts of TRACE, a folder that dc-eval wrote, and judge every choice on the rest.

    First no accuracy may be lost, with each metric; then so many mean steps may be taken, with each rule.

    \b
    Example:
      python -m dynamic_confidence.benchmarks.exit_metrics traces/net -o record.json
    """
    import numpy as np

    from ..calib.alpha import default_alpha
    from ..calib.exits import replay
    from ..calib.policy import Goal, calibrate
    from ..calib.trace_folder import load_trace
    from ..calib.trace_header import read_header
    from ..runtime.cli import progress
    from ..runtime.errors import DynamicConfidenceError
    from ..runtime.manifest import Calibration, Metric
    from .record import write_study

    header, whole = read_header(trace), load_trace(trace)
    if not 2 <= images < whole.samples:
        raise DynamicConfidenceError(
            f"--images {images} of the {whole.samples} of {trace}: expected at least 2, and some left to judge on."
        )
    alpha = default_alpha(header.method, header.steps)
    cases = {
        f"{metric}, {rule}, no loss": (Goal(rule), Calibration(alpha, metric=metric, min_step=min_step))
        for metric in get_args(Metric)
        for rule in ("safe", "grid")
    }
    cases |= {
        f"max-softmax, {rule}, {fraction * header.steps:g} mean steps": (
            Goal(rule, max_mean_steps=fraction * header.steps),
            Calibration(alpha, min_step=min_step),
        )
        for fraction in BUDGETS
        for rule in ("safe", "grid", "exact")
    }
    found: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
    generator = np.random.default_rng(0)
    for _ in progress(range(splits), "calibrating"):
        order = generator.permutation(whole.samples)
        seen, unseen = whole.subset(order[:images]), whole.subset(order[images:])
        at_end = unseen.correct[:, -1].mean()
        for case, (goal, current) in cases.items():
            exits = replay(unseen, calibrate(seen, current, goal).calibration)
            right = unseen.correct[np.arange(unseen.samples), exits - 1].mean()
            found[case].append((float(exits.mean()), 100 * float(right - at_end)))
    results: dict[str, Any] = {
        "trace": trace.name,
        "method": header.method.name,
        "steps": header.steps,
        "samples": whole.samples,
        "images_per_split": images,
        "splits": splits,
        "min_step": min_step,
        "accuracy_at_T": float(whole.correct[:, -1].mean()),
        "cases": {},
    }
    for case, pairs in found.items():
        steps, change = np.array(pairs).T
        click.echo(f"{case:40} {steps.mean():6.2f} steps, {change.mean():+.2f} points, worst {change.min():+.2f}")
        results["cases"][case] = {
            "mean_steps": np.round(steps, 4).tolist(),
            "change_points": np.round(change, 4).tolist(),
        }
    if output:
        write_study(output, "exit metrics", results)


if __name__ == "__main__":
    main()
