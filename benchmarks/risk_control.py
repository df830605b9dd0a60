"""Does a certified threshold keep its promise? Many calibration sets, from a population whose true drop is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..calib.policy import Goal, calibrate
from ..calib.risk_control import CANDIDATES
from ..calib.thresholds import exact_scan, grid_points
from ..calib.trace import Trace
from ..runtime.cli import command_errors
from ..runtime.manifest import Calibration

RULES = ("certified", "in expectation", "naive", "safe", "exact")
"""naive: the lowest of the candidates that drops by at most epsilon on the calibration set; in expectation: conformal
risk control, whose promise is kept on average only; safe and exact: as in `dc-calibrate`."""
PROMISED, DELTA, BINS = "#1f6feb", 0.1, 60


@dataclass(frozen=True)
class Setting:
    """What is promised, and how often it is tried."""

    max_drop: float
    """epsilon, a fraction"""
    delta: float
    images: int
    """In one calibration set."""
    draws: int


def synthetic_population(samples: int, seed: int = 0) -> Trace:
    """Logits of two classes that drift from guessing to the answer; some are right early and wrong at the end."""
    generator = np.random.default_rng(seed)
    steps = 8
    truth = generator.integers(0, 2, samples)
    ability = generator.normal(0.9, 1.0, samples)
    walk = np.cumsum(generator.normal(0.0, 1.2, (samples, steps)) + 0.55 * ability[:, None], axis=1)
    logits = np.stack([np.zeros_like(walk), walk], axis=2)
    logits[truth == 0] *= -1
    return Trace(logits.astype(np.float32), truth, np.full(samples, steps))


def chosen_threshold(rule: str, seen: Trace, calibration: Calibration, setting: Setting) -> float:
    """Return the threshold that a rule takes when it is allowed to lose `setting.max_drop`."""
    if rule in ("certified", "safe", "exact"):
        goal = Goal(rule, setting.max_drop, delta=setting.delta)  # type: ignore[arg-type]
        return calibrate(seen, calibration, goal).calibration.threshold
    points = grid_points(seen, calibration.scale, (1.0, *CANDIDATES))
    baseline = points[0].accuracy
    if rule == "naive":
        return min(p.threshold for p in points if baseline - p.accuracy <= setting.max_drop)
    # The drop is at most 1: mean + (1 - mean) / (n + 1) bounds what one image more may bring (Angelopoulos et al.,
    # arXiv 2208.02814). Threshold 1 drops nothing and needs no test.
    allowed, found = setting.max_drop - (1.0 - setting.max_drop) / setting.images, 1.0
    for point in points[1:]:
        if baseline - point.accuracy > allowed:
            break
        found = point.threshold
    return found


def true_points(population: Trace, calibration: Calibration, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the drop in points of accuracy and the mean steps on the whole population: `[threshold]` each."""
    scan = exact_scan(population.confidence(calibration.scale), population.correct, population.last_step)
    row = np.searchsorted(-scan.low, -thresholds)  # the first row whose interval begins at or below the threshold
    return 100 * (scan.accuracy[0] - scan.accuracy[row]), scan.mean_steps[row]


def study(
    population: Trace,
    calibration: Calibration,
    setting: Setting,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, Any]:
    """Draw calibration sets with replacement, choose a threshold by every rule, and judge each on the population."""
    generator = np.random.default_rng(1)
    thresholds: dict[str, list[float]] = {rule: [] for rule in RULES}
    for _ in track(range(setting.draws)):
        seen = population.subset(generator.integers(0, population.samples, setting.images))
        for rule in RULES:
            thresholds[rule].append(chosen_threshold(rule, seen, calibration, setting))
    rules = {}
    for rule in RULES:
        drop, steps = true_points(population, calibration, np.array(thresholds[rule]))
        value, count = np.unique(np.round(drop, 4), return_counts=True)
        rules[rule] = {
            "violated": float((drop > 100 * setting.max_drop).mean()),
            "mean_drop_points": round(float(drop.mean()), 4),
            "worst_drop_points": round(float(drop.max()), 4),
            "mean_steps": round(float(steps.mean()), 4),
            "drop_points": value.tolist(),
            "times": count.tolist(),
        }
    return {
        "population": population.samples,
        "steps": population.steps,
        "accuracy": float(population.correct[:, -1].mean()),
        "promised_drop_points": 100 * setting.max_drop,
        "delta": setting.delta,
        "images_per_draw": setting.images,
        "draws": setting.draws,
        "rules": rules,
    }


def risk_figure(studies: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the histogram of true drops for each rule, a column for each population, with the promise as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(RULES), len(studies), figsize=(5.4 * len(studies), 6.2), sharex="col", squeeze=False, layout="constrained"
    )
    for column, (name, found) in enumerate(studies.items()):
        drops = [drop for rule in RULES for drop in found["rules"][rule]["drop_points"]]
        edges = np.linspace(min(*drops, 0.0), max(*drops, 1.2 * found["promised_drop_points"]), BINS + 1)
        for row, rule in enumerate(RULES):
            axis, facts = axes[row, column], found["rules"][rule]
            axis.hist(facts["drop_points"], edges, weights=facts["times"], color="#d9822b" if row else PROMISED)
            axis.axvline(found["promised_drop_points"], color="black", linewidth=1.2, linestyle="--")
            text = f"{rule}: {100 * facts['violated']:.1f} % above, {facts['mean_steps']:.2f} steps"
            axis.set_title(text, fontsize=9, loc="left")
            axis.set_yticks([])
            axis.spines[["top", "right", "left"]].set_visible(False)
        axes[-1, column].set_xlabel(
            f"true drop, points (promised: {found['promised_drop_points']:g} with probability {1 - found['delta']:g})"
        )
        axes[0, column].annotate(name, (0.5, 1.35), xycoords="axes fraction", ha="center", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


@click.command()
@click.option(
    "--trace",
    "traces",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A folder of dc-eval: one more population.",
)
@click.option("--draws", type=int, default=1000, show_default=True, help="Calibration sets.")
@click.option("--images", type=int, default=1000, show_default=True, help="In each of them.")
@click.option("--max-drop", type=float, default=1.0, show_default=True, help="What is promised, in points.")
@click.option("--delta", type=float, default=DELTA, show_default=True, help="How often it may be broken.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The record (.json).")
@click.option("--plot", type=click.Path(path_type=Path), help="The picture (.png).")
@command_errors
def main(
    traces: tuple[Path, ...], draws: int, images: int, max_drop: float, delta: float, output: Path, plot: Path | None
) -> None:
    """Simulate calibration sets and count how often each rule's true drop exceeds what was promised.

    Exit code 1 when the certified thresholds do so more often than --delta.

    \b
    Examples:
      python -m dynamic_confidence.benchmarks.risk_control -o record.json --plot risk.png
      python -m dynamic_confidence.benchmarks.risk_control --trace traces/net -o record.json
    """
    from ..runtime.cli import progress
    from ..runtime.errors import CheckFailed
    from .record import write_study

    setting = Setting(max_drop / 100, delta, images, draws)
    Goal("certified", setting.max_drop, delta=delta)  # refuses what cannot be promised
    populations = {"synthetic": (synthetic_population(100_000), Calibration(alpha=4.0))}
    populations |= {trace.name: _from_folder(trace) for trace in traces}
    studies = {}
    for name, (population, calibration) in populations.items():
        studies[name] = study(population, calibration, setting, lambda draws, what=name: progress(draws, what))
        click.echo(f"{name}: {population.samples} samples, {draws} draws of {images}, promised {max_drop:g} points")
        for rule, facts in studies[name]["rules"].items():
            click.echo(
                f"  {rule:14} {100 * facts['violated']:5.1f} % above, mean drop {facts['mean_drop_points']:6.3f}, "
                f"worst {facts['worst_drop_points']:6.3f} points, {facts['mean_steps']:.2f} of {population.steps} steps"
            )
    write_study(output, "risk control", studies)
    if plot is not None:
        risk_figure(studies, plot)
    for name, found in studies.items():
        if found["rules"]["certified"]["violated"] > delta:
            raise CheckFailed(
                f"{name}: certified thresholds broke their promise in more than {100 * delta:g} % of draws."
            )


def _from_folder(folder: Path) -> tuple[Trace, Calibration]:
    from ..calib.alpha import default_alpha
    from ..calib.trace_folder import load_trace
    from ..calib.trace_header import read_header

    header = read_header(folder)
    return load_trace(folder), Calibration(alpha=default_alpha(header.method, header.steps))


if __name__ == "__main__":
    main()
