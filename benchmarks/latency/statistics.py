"""What the samples of a record come to: percentiles, savings, paired ratios. From the record alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .record import Pair, Run, Series

UNSTEADY = 0.1
"""Coefficient of variation from which on samples are unsteady, as pyperf has it for CPUs (trtexec: 1 % on a GPU)."""


class Distribution(NamedTuple):
    """Of the milliseconds of all rounds and images."""

    samples: int
    mean: float
    """Over the images, of their median over the rounds."""
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    cv: float
    """Coefficient of variation: standard deviation over mean. Each sample counts relative to the median of those that
    took as many time steps, so that what is left comes from the machine and not from the exits."""


class Ratio(NamedTuple):
    """A ratio of times that were measured in turn."""

    median: float
    """Over the rounds."""
    spread: float
    """Half its 95 % interval, as a fraction of it (`spread`)."""


class Summary(NamedTuple):
    """One run."""

    images: int
    rounds: int
    steps: int
    """T"""
    mean_steps: float
    accuracy: float
    accuracy_without_exit: float
    with_exit: Distribution
    without_exit: Distribution
    saving_steps: float
    """1 - mean steps / T"""
    saving_ms: float
    """1 - mean ms with early exit / mean ms without; negative: it takes longer."""
    with_over_without: Ratio

    @property
    def saving_gap(self) -> float:
        """How much more of the time steps than of the milliseconds is saved, as a fraction of all."""
        return self.saving_steps - self.saving_ms

    @property
    def unsteady(self) -> bool:
        return max(self.with_exit.cv, self.without_exit.cv) > UNSTEADY


def summary(run: Run) -> Summary:
    """Sum up a run that has a sample."""
    steps, exits = run.network.steps, np.array(run.exit_steps)
    with_exit = distribution(run.with_exit, exits)
    without_exit = distribution(run.without_exit, np.full(len(exits), steps))
    return Summary(
        images=len(exits),
        rounds=len(run.with_exit.ms),
        steps=steps,
        mean_steps=float(exits.mean()),
        accuracy=float(np.mean(run.right)),
        accuracy_without_exit=float(np.mean(run.right_without_exit)),
        with_exit=with_exit,
        without_exit=without_exit,
        saving_steps=1.0 - float(exits.mean()) / steps,
        saving_ms=1.0 - with_exit.mean / without_exit.mean,
        with_over_without=ratio(round_ratios(run.with_exit, run.without_exit)),
    )


def distribution(series: Series, steps_taken: np.ndarray) -> Distribution:
    """Describe samples; `steps_taken` `[image]` are the time steps of each image's inference."""
    samples = np.concatenate([np.asarray(round_) for round_ in series.ms])
    steps = np.concatenate([steps_taken[: len(round_)] for round_ in series.ms])
    relative = samples.copy()
    for step in np.unique(steps):
        relative[steps == step] /= np.median(samples[steps == step])
    p50, p90, p95, p99 = (float(value) for value in np.percentile(samples, [50, 90, 95, 99]))
    return Distribution(
        samples=len(samples),
        mean=float(per_image(series).mean()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        max=float(samples.max()),
        cv=float(relative.std() / relative.mean()),
    )


def per_image(series: Series) -> np.ndarray:
    """Milliseconds `[image]`: of each image the median over the rounds."""
    table = np.full((len(series.ms), len(series.ms[0])), np.nan)
    for row, round_ in zip(table, series.ms, strict=True):
        row[: len(round_)] = round_
    return np.nanmedian(table, axis=0)


def round_ratios(series: Series, reference: Series) -> list[float]:
    """Of every round the time of all images over that of the reference, of as many images as both have."""
    ratios = []
    for ours, theirs in zip(series.ms, reference.ms, strict=False):
        both = min(len(ours), len(theirs))
        ratios.append(math.fsum(ours[:both]) / math.fsum(theirs[:both]))
    return ratios


def paired(runs: Sequence[Run], first: int, second: int) -> Pair:
    """Compare two runs whose inferences took turns."""
    one, other = runs[first], runs[second]
    return Pair(
        first=first,
        second=second,
        with_exit=round_ratios(other.with_exit, one.with_exit),
        without_exit=round_ratios(other.without_exit, one.without_exit),
    )


def ratio(per_round: Sequence[float]) -> Ratio:
    return Ratio(float(np.median(per_round)), spread(per_round))


def spread(values: Sequence[float]) -> float:
    """Half the 95 % interval of the median, as a fraction of it: the values of ranks n/2 -+ 0.98 sqrt(n).

    It follows from the ranks alone, so it holds for the skewed and double-peaked times of a busy machine too. Of fewer
    than eight values it is half the whole range.
    """
    ordered, reach = np.sort(values), 0.98 * math.sqrt(len(values))
    low = max(math.floor(len(ordered) / 2 - reach), 0)
    high = min(math.ceil(len(ordered) / 2 + reach), len(ordered)) - 1
    return float(ordered[high] - ordered[low]) / 2 / float(np.median(ordered))


class HostCost(NamedTuple):
    """Microseconds that the host adds, medians, and their shares of a step without early exit."""

    loop_us: float
    """What the stepping loop adds to one that does nothing but call the engine: per time step, between the calls
    (0 where one call makes all of them), …"""
    loop_share: float
    once_us: float
    """… and once per inference, before the first call and after the last."""
    once_share: float
    confidence_us: float
    """The confidence of a time step, were it computed on the host."""
    confidence_share: float


def added_us(loop: Sequence[float], bare: Sequence[float]) -> float:
    """The median of what the stepping loop takes more than the bare one, inference by inference."""
    return float(np.median(np.subtract(loop, bare)))


def host_cost(run: Run) -> HostCost | None:
    """Sum up what the host adds to the steps of a run; None where that was not measured."""
    overhead = run.overhead
    if overhead is None:
        return None
    step_us = 1e3 * run.step_ms[-1] / run.network.steps
    loop_us = added_us(overhead.loop_us, overhead.bare_us)
    once_us = added_us(overhead.loop_once_us, overhead.bare_once_us)
    confidence_us = float(np.median(overhead.confidence_us))
    return HostCost(loop_us, loop_us / step_us, once_us, once_us / step_us, confidence_us, confidence_us / step_us)
