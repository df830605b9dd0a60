"""Whether the lists of an evaluation fit each other, as those of a damaged file do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized

from ...calib.evaluation import Evaluation
from ..record import require


def require_lengths(evaluation: Evaluation, steps: int) -> None:
    """Raise a ValueError unless it is of so many steps, and its lists have an entry for each step, or each layer."""
    require(evaluation.steps == steps, f"evaluation of {evaluation.steps} steps, expected {steps}")
    layers = len(evaluation.layers)
    counted = evaluation.net_spikes is not None or evaluation.gross_spikes is not None
    require(layers > 0 or not counted, "evaluation: spikes of no layer, expected at least one")
    _require_each(dict(_by_step(evaluation)), steps, "step")
    _require_each({"neurons": evaluation.neurons, **dict(_by_layer(evaluation))}, layers, "layer")


def _by_step(evaluation: Evaluation) -> Iterator[tuple[str, Sized]]:
    yield "accuracy_at_step", evaluation.accuracy_at_step
    yield "exit_histogram", evaluation.exit_histogram
    for name, curve in (("capped", evaluation.capped), ("upper_bound", evaluation.upper_bound)):
        yield f"{name}.mean_steps", curve.mean_steps
        yield f"{name}.accuracy", curve.accuracy
    for name, spikes in (("net_spikes", evaluation.net_spikes), ("gross_spikes", evaluation.gross_spikes)):
        if spikes is not None:
            yield f"{name}.at_step", spikes.at_step


def _by_layer(evaluation: Evaluation) -> Iterator[tuple[str, Sized]]:
    for name, spikes in (("net_spikes", evaluation.net_spikes), ("gross_spikes", evaluation.gross_spikes)):
        if spikes is not None:
            yield f"{name}.per_layer", spikes.per_layer
            yield f"{name}.per_layer_at_exit", spikes.per_layer_at_exit


def _require_each(lists: Mapping[str, Sized], count: int, what: str) -> None:
    wrong = {name: len(values) for name, values in lists.items() if len(values) != count}
    require(not wrong, f"evaluation: {wrong} entries, expected {count}, one for each {what}")
