"""The record of `benchmarks.precisions` as a page: accuracies per network and precision, and what int8 costs."""

from __future__ import annotations

from typing import Any

from .markdown_table import markdown_table

ALLOWED = 0.01
"""Accuracy, a fraction, that int8 may lose against fp32."""


def page(settings: list[dict[str, Any]]) -> str:
    """Everything the record says, in Markdown."""
    compared = dict.fromkeys(name for setting in settings for name in setting["precisions"] if name != "fp32")
    parts = [
        "# What precision costs in accuracy",
        "Accuracies in %, of the same test images in every precision; differences from fp32 in points, image by image, "
        "with 95 % intervals (paired, Agresti and Min). T is the first step at which fp32 comes within 0.1 points of "
        "its best accuracy on the calibration images; every form has its own threshold, from the same images. How int8 "
        "and fp16 round: [ADR 6](adr/0006-precision.md).",
    ]
    for precision in compared:
        found = [setting for setting in settings if precision in setting["precisions"]]
        parts += [f"## {precision} against fp32", _against(found, precision), _verdict(found, precision)]
    return "\n\n".join(parts)


def _against(settings: list[dict[str, Any]], precision: str) -> str:
    header = ("network", "method", "test images", "quantised", "T", "fp32", precision, "difference")
    rows = []
    for setting in settings:
        fp32, form = (setting["precisions"][name] for name in ("fp32", precision))
        rows.append(
            (
                setting["network"],
                setting["method"],
                f"{setting['test_images']:,}",
                _percent(setting["ann_accuracy"]),
                str(setting["steps"]),
                _percent(fp32["accuracy_at_step"][-1]),
                _percent(form["accuracy_at_step"][-1]),
                _points(form["difference_at_T"]),
                f"{_percent(fp32['accuracy_with_exit'])} ({fp32['mean_steps']:.2f})",
                f"{_percent(form['accuracy_with_exit'])} ({form['mean_steps']:.2f})",
                _points(form["difference_with_exit"]),
                _percent(form["equal_labels_at_T"]),
            )
        )
    exits = ("fp32 with exit (steps)", f"{precision} with exit (steps)", "difference", "equal labels at T")
    return markdown_table((*header, *exits), rows)


def _verdict(settings: list[dict[str, Any]], precision: str) -> str:
    """The mean over the networks, and whether each difference is known to stay within what is allowed."""
    lines = []
    for key, where in (("difference_at_T", "at T"), ("difference_with_exit", "with early exit")):
        found = [(f"{s['network']} {s['method']}", *s["precisions"][precision][key]) for s in settings]
        mean = sum(difference for _, difference, _ in found) / len(found)
        around = sum(half**2 for _, _, half in found) ** 0.5 / len(found)
        worse = [name for name, difference, half in found if difference + half < -ALLOWED]
        unsure = [name for name, difference, half in found if difference - half < -ALLOWED <= difference + half]
        lines.append(
            f"- {where}: {_points([mean, around])} points on average over the {len(found)} rows, taken as independent. "
            f"Worse by more than {100 * ALLOWED:g} point, the whole interval: {_listed(worse)}. Not excluded, since "
            f"the interval begins there: {_listed(unsure)}."
        )
    return "\n".join(lines)


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _points(difference: list[float]) -> str:
    return f"{100 * difference[0]:+.2f} ± {100 * difference[1]:.2f}"
