"""The pictures of a report, each drawn from plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .svg import COLOUR, inline_svg, printable


@dataclass(frozen=True)
class Curve:
    """Accuracy (a fraction) over what it costs, in steps or in ms."""

    name: str
    cost: Sequence[float]
    accuracy: Sequence[float]
    role: str
    """One of `svg.ROLES`."""
    style: str
    """matplotlib's: line and marker."""
    band: bool = False
    """Broad and pale, behind the others."""


def accuracy_picture(key: str, title: str, description: str, curves: Sequence[Curve], cost: str) -> str:
    """Accuracy over what it costs: `cost` says what and in which unit."""

    def draw(axes: Any) -> None:
        for curve in curves:
            size, above = (13, 4) if "*" in curve.style else (4 if len(curve.cost) <= 20 else 2, 2)
            axes.plot(
                curve.cost,
                100 * np.asarray(curve.accuracy),
                curve.style,
                color=COLOUR[curve.role],
                label=curve.name,
                markersize=size,
                linewidth=6 if curve.band else 1.5,
                alpha=0.35 if curve.band else 1,
                zorder=above,
            )
        axes.set(xlabel=cost, ylabel="accuracy, %")
        axes.set_xlim(left=0)
        axes.legend(loc="lower right")

    return inline_svg(key, title, description, draw)


def exits_picture(key: str, title: str, description: str, shares: Sequence[float], mean_steps: float) -> str:
    """Where the inputs stop: the share (a fraction) at each step, and the mean."""

    def draw(axes: Any) -> None:
        steps = np.arange(1, len(shares) + 1)
        axes.bar(steps, 100 * np.asarray(shares), color=COLOUR["with"], label="stop here")
        axes.axvline(mean_steps, color=COLOUR["bound"], linestyle=":", label=f"mean: {mean_steps:.2f}")
        axes.set(xlabel="time step", ylabel="images that stop here, %")
        _whole_numbers(axes)
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2)

    return inline_svg(key, title, description, draw)


def latency_picture(
    key: str, title: str, description: str, by_step: Mapping[int, Sequence[float]], without_ms: float
) -> str:
    """Milliseconds of the inferences that stop at each step (middle half, 5th to 95th percentile), and without exit."""

    def draw(axes: Any) -> None:
        boxes = [
            dict(zip(("whislo", "q1", "med", "q3", "whishi"), np.percentile(values, (5, 25, 50, 75, 95)), strict=True))
            for values in by_step.values()
        ]
        line = {"color": COLOUR["with"]}
        axes.bxp(
            boxes,
            positions=list(by_step),
            widths=0.6,
            showfliers=False,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": (0, 0, 0, 0), "edgecolor": COLOUR["with"]},
            medianprops={"color": COLOUR["ink"], "linewidth": 1.6},
            whiskerprops=line,
            capprops=line,
        )
        axes.axhline(without_ms, color=COLOUR["without"], linestyle="--", label="without early exit, median")
        axes.set(xlabel="time step of the exit", ylabel="ms until the answer")
        axes.set_ylim(bottom=0)
        _whole_numbers(axes)
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.12))

    return inline_svg(key, title, description, draw)


def spikes_picture(
    key: str,
    title: str,
    description: str,
    layers: Sequence[str],
    at_end: Sequence[float],
    at_exit: Sequence[float],
) -> str:
    """Spikes per neuron and image, layer by layer: after all steps and until the exit."""

    def draw(axes: Any) -> None:
        rows = np.arange(len(layers))
        axes.barh(rows - 0.2, at_end, 0.4, color=COLOUR["without"], label="after all steps")
        axes.barh(rows + 0.2, at_exit, 0.4, color=COLOUR["with"], label="until the exit")
        axes.set_yticks(rows, [printable(layer) for layer in layers], fontsize=8)
        axes.set(xlabel="spikes per neuron and image")
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)

    return inline_svg(key, title, description, draw, (4.4, 1.2 + 0.24 * len(layers)))


def comparison_picture(
    key: str,
    title: str,
    description: str,
    without: Sequence[tuple[float, float]],
    with_exit: Sequence[tuple[float, float]],
    front: Sequence[tuple[float, float]],
) -> str:
    """Every run twice, as (ms, accuracy), without and with early exit, numbered as in the table; the Pareto front."""

    def draw(axes: Any) -> None:
        def plot(points: Sequence[tuple[float, float]], style: str, role: str, **more: Any) -> None:
            axes.plot([ms for ms, _ in points], [100 * share for _, share in points], style, color=COLOUR[role], **more)

        plot(front, "-", "muted", label="Pareto front", linewidth=1)
        for pair in zip(without, with_exit, strict=True):
            plot(pair, ":", "muted", linewidth=0.8)
        plot(without, "s", "without", label="all steps", markersize=6)
        plot(with_exit, "o", "with", label="Dynamic Confidence", markersize=7)
        for number, (ms, share) in enumerate(with_exit, start=1):
            axes.annotate(str(number), (ms, 100 * share), textcoords="offset points", xytext=(6, 5), fontsize=9)
        axes.set(xlabel="ms until the answer, on average", ylabel="accuracy, %")
        axes.set_xlim(left=0)
        axes.margins(y=0.25)
        axes.set_ylim(top=min(axes.get_ylim()[1], 101))  # a margin above 100 % would look like accuracy
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=3, columnspacing=1)

    return inline_svg(key, title, description, draw)


def _whole_numbers(axes: Any) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)
