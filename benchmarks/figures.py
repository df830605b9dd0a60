"""Pictures of an evaluation: accuracy over the time steps, and where the inputs stop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .evaluate import Evaluation

ACCURACY, EXITS, BOUND = "#1f6feb", "#d9822b", "#57606a"


def exit_figure(evaluations: Mapping[str, Evaluation], title: str, path: Path) -> None:
    """Draw, for each network, accuracy over time with the early-exit point, above the histogram of exit steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = len(evaluations)
    figure, axes = pyplot.subplots(
        2,
        columns,
        figsize=(5.2 * columns, 5.6),
        sharex="col",
        squeeze=False,
        height_ratios=(3, 2),
        layout="constrained",
    )
    figure.suptitle(title, fontsize=13)
    for column, (name, e) in enumerate(evaluations.items()):
        steps = np.arange(1, e.trace.steps + 1)
        top, bottom = axes[0, column], axes[1, column]
        top.set_title(name, fontsize=11)
        top.plot(steps, 100 * e.accuracy_at_step, "o-", color=ACCURACY, label="everyone stops at this step")
        top.plot(
            e.mean_steps,
            100 * e.accuracy,
            "*",
            color=EXITS,
            markersize=17,
            zorder=3,
            label=f"Dynamic Confidence: {100 * e.accuracy:.1f} % after {e.mean_steps:.2f} steps",
        )
        bound = f"upper bound: {100 * e.bound_accuracy:.1f} % after {e.bound_steps:.2f}"
        top.plot(e.bound_steps, 100 * e.bound_accuracy, "^", color=BOUND, markersize=8, label=bound)
        top.set_ylabel("accuracy, %")
        top.grid(alpha=0.3)
        top.legend(loc="lower right", fontsize=9)
        bars = bottom.bar(steps, 100 * e.exit_histogram, color=EXITS)
        bottom.bar_label(bars, fmt=lambda v: f"{v:.0f}" if v >= 0.5 else "", fontsize=8, padding=1)
        bottom.set_xlabel("time step")
        bottom.set_ylabel("inputs that stop, %")
        bottom.set_xticks(steps)
        bottom.margins(y=0.15)
        for axis in (top, bottom):
            axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
