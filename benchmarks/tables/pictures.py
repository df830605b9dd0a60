"""The paper's Figures 1 to 4 from the record, one column of panels per setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

MAIN_RULE = "safe"
ACCURACY, EXITS, BOUND, FRONT = "#1f6feb", "#d9822b", "#8b1a1a", "#57606a"


def draw(settings: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Write figure_1.png … figure_4.png and reliability.png; return their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {
        "figure_1": ("Upper bound: what exits that know the right answer would give", _figure_1),
        "figure_2": ("Accuracy and mean confidence over the time steps, before and after α", _figure_2),
        "figure_3": ("Thresholds on the calibration images: each curve one th_c with every cap", _figure_3),
        "figure_4": ("Where the inputs stop", _figure_4),
        "reliability": ("Confidence against accuracy after the last step (calibration images)", _reliability),
    }
    written = []
    for name, (title, panel) in panels.items():
        figure, axes = pyplot.subplots(
            1, len(settings), figsize=(4.4 * len(settings), 4.0), squeeze=False, layout="constrained"
        )
        figure.suptitle(title, fontsize=12)
        for axis, setting in zip(axes[0], settings, strict=True):
            axis.set_title(setting["network"], fontsize=10)
            panel(axis, setting)
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=100)
        pyplot.close(figure)
        written.append(path)
    return written


def _main(setting: dict[str, Any]) -> dict[str, Any]:
    return setting["table_1"]["rules"][MAIN_RULE]


def _percent(values: list[float]) -> np.ndarray:
    return 100 * np.asarray(values)


def _figure_1(axis: Any, setting: dict[str, Any]) -> None:
    found = _main(setting)["evaluation"]
    steps, bound, capped = found["steps"], found["upper_bound"], found["capped"]
    axis.plot(np.arange(1, steps + 1), _percent(found["accuracy_at_step"]), color="black", label="everyone stops here")
    axis.plot(bound["mean_steps"], _percent(bound["accuracy"]), color=BOUND, label="upper bound")
    axis.plot(capped["mean_steps"], _percent(capped["accuracy"]), color=EXITS, label="Dynamic Confidence")
    axis.set(xlabel="time steps, on average", ylabel="test accuracy, %")
    axis.legend(loc="lower right", fontsize=8)


def _figure_2(axis: Any, setting: dict[str, Any]) -> None:
    found, confidence = _main(setting)["evaluation"], setting["mean_confidence"]
    steps = np.arange(1, found["steps"] + 1)
    axis.plot(steps, _percent(found["accuracy_at_step"]), color=ACCURACY, label="test accuracy")
    for when, style, label in (("before", ":", "confidence, α = 1"), ("after", "-", "confidence, scaled by α")):
        axis.plot(steps, _percent(confidence[when][: len(steps)]), style, color=EXITS, label=label)
    axis.set(xlabel="time step", ylabel="%")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(loc="lower right", fontsize=8)


def _figure_3(axis: Any, setting: dict[str, Any]) -> None:
    from matplotlib import colormaps

    for curve in setting["threshold_curves"]:
        color = colormaps["viridis"](curve["threshold"])
        axis.plot(curve["mean_steps"], _percent(curve["accuracy"]), color=color, linewidth=1)
        axis.annotate(f"{curve['threshold']:g}", (curve["mean_steps"][-1], 100 * curve["accuracy"][-1]), fontsize=7)
    front = np.array(setting["table_1"]["front"])
    axis.plot(front[:, 1], 100 * front[:, 2], ".", color=FRONT, markersize=3, label="Pareto front of all thresholds")
    chosen = _main(setting)["evaluation"]["calibration"]
    point = chosen["expected_mean_steps"], 100 * chosen["expected_accuracy"]
    axis.plot(*point, "*", color=EXITS, markersize=13, label=f"chosen: th_c = {chosen['threshold']:.3f}")
    best = max(max(curve["accuracy"]) for curve in setting["threshold_curves"])
    axis.set(xlabel="time steps, on average", ylabel="calibration accuracy, %", ylim=(100 * best - 12, 100 * best + 1))
    axis.legend(loc="lower right", fontsize=8)


def _figure_4(axis: Any, setting: dict[str, Any]) -> None:
    found = _main(setting)["evaluation"]
    steps = np.arange(1, found["steps"] + 1)
    axis.bar(steps, _percent(found["exit_histogram"]), color=EXITS, label="stop at this step")
    axis.plot(steps, np.cumsum(_percent(found["exit_histogram"])), color=ACCURACY, label="have stopped")
    axis.axvline(found["mean_steps"], color=BOUND, linestyle=":", label=f"mean: {found['mean_steps']:.2f}")
    axis.set(xlabel="time step", ylabel="test inputs, %")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(loc="center right", fontsize=8)


def _reliability(axis: Any, setting: dict[str, Any]) -> None:
    axis.plot((0, 100), (0, 100), ":", color=FRONT)
    for when, color in (("before", FRONT), ("after", ACCURACY)):
        found = setting["table_1"]["reliability"][when]
        bins = np.array(found["bins"])
        label = f"{when} temperature scaling, ECE {100 * found['ece']:.1f} %"
        axis.plot(100 * bins[:, 0], 100 * bins[:, 1], "o-", color=color, markersize=4, label=label)
    axis.set(xlabel="confidence, %", ylabel="right, %")
    axis.legend(loc="lower right", fontsize=8)
