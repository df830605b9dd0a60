"""The tables of one run: Table 2, step by step, spikes per layer, and what else it costs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...calib.evaluation import Evaluation
from .record import NotMeasured, Run
from .report_parts import Table
from .report_samples import exit_shares, latency_by_step
from .report_text import NOTHING, number, percent, points
from .statistics import Summary, host_cost

FOLD = 12
"""Rows above which a table is shown when asked for."""
QUANTILES = {
    "p50": "median",
    "p90": "90th percentile",
    "p95": "95th percentile",
    "p99": "99th percentile",
    "max": "longest",
}
"""Field of `Distribution` -> its name."""
STEP_HEADER = (
    "step",
    "stop here, %",
    "have stopped, %",
    "right if all stop here, %",
    "right with this last step, %",
    "upper bound, %",
    "answer is there after, ms",
    "median of those that stop here, ms",
    "their 5th – 95th percentile, ms",
    "samples",
)


def table_2(run: Run, found: Summary) -> Table:
    """Steps, accuracy and latency in the paper's two columns: all steps, and Dynamic Confidence."""
    fast, slow = found.with_exit, found.without_exit
    accuracies = percent(found.accuracy_without_exit, 2), percent(found.accuracy, 2)
    rows = [
        ("time steps, on average", str(found.steps), number(found.mean_steps), _change(found.saving_steps)),
        ("right answers, %", *accuracies, points(found.accuracy - found.accuracy_without_exit)),
        ("latency in ms, on average", number(slow.mean), number(fast.mean), _change(found.saving_ms)),
    ]
    for key, name in QUANTILES.items():
        before, after = getattr(slow, key), getattr(fast, key)
        rows.append((f"latency in ms, {name}", number(before), number(after), _change(1 - after / before)))
    rows.append(("coefficient of variation, %", percent(slow.cv), percent(fast.cv), NOTHING))
    return Table(
        f"Latency of one image at a time (batch 1) over {found.images} images and {found.rounds} rounds, in the "
        "columns of the paper's Table 2",
        ("", "all steps", "Dynamic Confidence", "difference"),
        tuple(rows),
    )


def _change(saved: float) -> str:
    """A share that is saved, as a difference; no minus before a zero."""
    return f"{round(-100 * saved, 1) + 0.0:+.1f} %"


def step_table(run: Run) -> Table:
    """Everything that belongs to a step, one row each: the numbers of the pictures."""
    shares, by_step = exit_shares(run), latency_by_step(run)
    stopped = np.cumsum(shares).tolist()
    rows = tuple(
        (
            str(step),
            percent(share),
            percent(stopped[step - 1]),
            *_accuracies(run.evaluation, step),
            number(run.step_ms[step - 1]),
            *_spread(by_step.get(step, [])),
        )
        for step, share in enumerate(shares, start=1)
    )
    return Table("Step by step", STEP_HEADER, rows, folded=len(rows) > FOLD)


def _accuracies(evaluation: Evaluation | None, step: int) -> list[str]:
    if evaluation is None:
        return [NOTHING] * 3
    each = evaluation.accuracy_at_step, evaluation.capped.accuracy, evaluation.upper_bound.accuracy
    return [percent(shares[step - 1], 2) for shares in each]


def _spread(samples: list[float]) -> tuple[str, str, str]:
    if not samples:
        return NOTHING, NOTHING, "0"
    low, middle, high = (number(float(value)) for value in np.percentile(samples, (5, 50, 95)))
    return middle, f"{low} – {high}", str(len(samples))


def spike_tables(evaluation: Evaluation | None) -> Iterator[Table]:
    """Spikes per neuron and image by layer, of either sign and net; none where they were not counted."""
    if evaluation is None or evaluation.gross_spikes is None:
        return
    kinds = {"of either sign": evaluation.gross_spikes}
    if evaluation.method != "qcfs" and evaluation.net_spikes is not None:  # else they are the same
        kinds["net"] = evaluation.net_spikes
    header = ["layer", "neurons"]
    rows = [[layer, f"{neurons:,}"] for layer, neurons in zip(evaluation.layers, evaluation.neurons, strict=True)]
    rows.append(["all layers", f"{sum(evaluation.neurons):,}"])
    for name, spikes in kinds.items():
        header += [f"{name}, all steps", f"{name}, until the exit"]
        at_end, at_exit = [*spikes.per_layer, spikes.at_step[-1]], [*spikes.per_layer_at_exit, spikes.at_exit]
        for row, *counts in zip(rows, at_end, at_exit, strict=True):
            row += [f"{count:.4f}" for count in counts]
    caption = "Spikes per neuron and image, layer by layer"
    yield Table(caption, tuple(header), tuple(map(tuple, rows)), folded=len(rows) > FOLD)


def cost_table(run: Run) -> Table:
    """What stands beside the latency: opening, the host's share, throughput, memory and energy."""
    rows = [("opening the file", f"{number(run.open_ms)} ms"), ("first call", f"{number(run.first_call_ms)} ms")]
    rows += [*_host(run), *_throughput(run), *_memory(run), *_energy(run)]
    return Table("What else it costs", ("", "measured"), tuple(rows), words=True)


def _host(run: Run) -> Iterator[tuple[str, str]]:
    cost = host_cost(run)
    if cost is None:
        yield "host overhead", "not measured: it ended before"
        return

    def text(us: float, share: float) -> str:
        return f"{number(us)} µs per time step, {percent(share)} % of one"

    yield "added by the stepping loop", text(cost.loop_us, cost.loop_share)
    once = f"{number(cost.once_us)} µs per inference, {percent(cost.once_share)} % of a time step"
    yield "added by the stepping loop, once", once
    yield "confidence, were it computed on the host", text(cost.confidence_us, cost.confidence_share)


def _throughput(run: Run) -> Iterator[tuple[str, str]]:
    if not run.throughput:
        yield "throughput", "not measured"
    for one in run.throughput:
        how = "early exit, continuous batching" if one.early_exit else "all steps"
        yield f"throughput at batch {one.batch}, {how}", f"{number(one.images_per_second)} images per second"


def _memory(run: Run) -> Iterator[tuple[str, str]]:
    memory = run.memory
    if memory is None:
        yield "memory", "not measured"
        return
    before, opened, most = (number(mb) for mb in (memory.rss_before, memory.rss_open, memory.rss_peak))
    yield (
        "memory of the process",
        f"{before} MB before the file was opened, {opened} MB after the first call, {most} MB at most",
    )
    if memory.gpu is not None:
        yield "memory of the GPU", f"{number(memory.gpu)} MB"


def _energy(run: Run) -> Iterator[tuple[str, str]]:
    energy = run.energy
    if isinstance(energy, NotMeasured):
        yield "energy", f"not measured: {energy.reason}"
        return
    with_exit, without = energy.joules_with_exit, energy.joules_without_exit
    saved = f", {percent(1 - with_exit / without)} % saved" if without else ""
    yield (
        f"energy of an image ({energy.source})",
        f"{number(without)} J with all steps, {number(with_exit)} J with early exit{saved}; the idle "
        f"{number(energy.idle_watts)} W are in both",
    )
