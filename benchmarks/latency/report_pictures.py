"""The pictures of one run, each with the sentence that says in numbers what it shows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from ...calib.evaluation import Evaluation
from .accuracy_curves import milliseconds_of, pareto_front
from .figures import Curve, accuracy_picture, exits_picture, latency_picture, spikes_picture
from .record import Run
from .report_parts import Part, Picture, Text
from .report_samples import exit_shares, latency_by_step
from .report_text import number, percent
from .statistics import Summary


class Costs(NamedTuple):
    """What accuracy costs in one unit, `[step]` or `[cap]`, and where the run itself stands."""

    all_stop: list[float]
    capped: list[float]
    bound: list[float]
    run: float


def pictures(run: Run, found: Summary) -> Iterator[Part]:
    """Accuracy in steps and in ms, exits, latency by exit, spikes; a sentence where there is nothing to draw."""
    evaluation = run.evaluation
    if evaluation is None:
        yield Text("It ended before the accuracy at every step was measured, so there is no picture of it.")
    else:
        caps = evaluation.capped.mean_steps, evaluation.upper_bound.mean_steps
        steps = [float(step) for step in range(1, evaluation.steps + 1)]
        yield _accuracy(evaluation, Costs(steps, *caps, found.mean_steps), "steps", "time steps")
        capped, bound = (milliseconds_of(mean_steps, run.step_ms) for mean_steps in caps)
        yield _accuracy(evaluation, Costs(run.step_ms, capped, bound, found.with_exit.mean), "ms", "milliseconds")
    yield _exits(run, found)
    yield _latencies(run, found)
    if evaluation is not None:
        yield _spikes(evaluation)


def _accuracy(evaluation: Evaluation, cost: Costs, unit: str, words: str) -> Picture:
    at_step, capped, bound = evaluation.accuracy_at_step, evaluation.capped.accuracy, evaluation.upper_bound.accuracy
    front = pareto_front([*zip(cost.all_stop, at_step, strict=True), *zip(cost.capped, capped, strict=True)])
    curves = (
        Curve("Pareto front", [point for point, _ in front], [share for _, share in front], "muted", "-", band=True),
        Curve("upper bound", cost.bound, bound, "bound", "^:"),
        Curve("all stop at one step", cost.all_stop, at_step, "without", "s-"),
        Curve("early exit, and a last step", cost.capped, capped, "with", "o-"),
        Curve("Dynamic Confidence", [cost.run], [capped[-1]], "with", "*"),
    )
    description = (
        f"With Dynamic Confidence {percent(capped[-1])} % of the answers are right, after {number(cost.run)} {unit} on "
        f"average; without, {percent(at_step[-1])} % after {number(cost.all_stop[-1])} {unit}. The upper bound knows "
        f"which answers are right and stops at the first: {percent(bound[-1])} % after {number(cost.bound[-1])} {unit}."
    )
    if unit == "ms":
        description += " A curve is made of the medians of when each step's answer is there, the star of the samples."
    draw = partial(accuracy_picture, curves=curves, cost=f"{words} until the answer, on average")
    return Picture(f"Accuracy against latency in {words}", description, draw)


def _exits(run: Run, found: Summary) -> Picture:
    shares = exit_shares(run)
    most, half = int(np.argmax(shares)) + 1, int(np.quantile(run.exit_steps, 0.5, method="inverted_cdf"))
    return Picture(
        "Where the images stop",
        f"Of {len(run.exit_steps)} images most stop at step {most} ({percent(max(shares))} %); half have stopped after "
        f"step {half}, "
        f"{percent(shares[-1])} % run to the last of {run.network.steps} steps; the mean is "
        f"{number(found.mean_steps)} steps.",
        partial(exits_picture, shares=shares, mean_steps=found.mean_steps),
    )


def _latencies(run: Run, found: Summary) -> Picture:
    by_step = latency_by_step(run)
    medians = {step: float(np.median(values)) for step, values in by_step.items()}
    first, last = min(medians), max(medians)
    return Picture(
        "Latency by the step of the exit",
        f"Images that stop at step {first} have their answer after {number(medians[first])} ms (median), those that "
        f"stop at step {last} after {number(medians[last])} ms; all steps without early exit take "
        f"{number(found.without_exit.p50)} ms. Boxes hold the middle half of the inferences, whiskers reach from the "
        "5th to the 95th percentile.",
        partial(latency_picture, by_step=by_step, without_ms=found.without_exit.p50),
    )


def _spikes(evaluation: Evaluation) -> Part:
    spikes = evaluation.gross_spikes
    if spikes is None:
        return Text("Spikes were not counted: `dc-export --count-spikes` makes a network that counts them.")
    busiest = evaluation.layers[int(np.argmax(spikes.per_layer))]
    return Picture(
        "Spikes per layer",
        f"Spikes of either sign per neuron and image: {number(spikes.at_step[-1])} after all steps, "
        f"{number(spikes.at_exit)} until the exit, all layers together; most of all in {busiest}.",
        partial(spikes_picture, layers=evaluation.layers, at_end=spikes.per_layer, at_exit=spikes.per_layer_at_exit),
    )
