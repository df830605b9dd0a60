"""Evaluate a calibrated network on a test set: fixed T, Dynamic Confidence and the upper bound, from one trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..calib.calibrate import BATCH, trace_from_engine
from ..calib.exits import histogram, replay, saving
from ..calib.thresholds import fixed_accuracy
from ..calib.trace import Trace
from ..calib.upper_bound import upper_bound
from ..runtime.engine import open_engine
from ..runtime.manifest import Manifest


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a network does on a test set; accuracies are fractions, steps are time steps."""

    manifest: Manifest
    trace: Trace
    accuracy_at_step: np.ndarray
    """`[step]`, when every input stops there."""
    exit_histogram: np.ndarray
    """`[step]`, the fraction that Dynamic Confidence stops there."""
    exits: np.ndarray
    """`[sample]`, the exit step of every input."""
    accuracy: float
    mean_steps: float
    fixed_steps: float
    """Mean steps without confidence: T, or fewer where a QFFS network falls silent."""
    bound_accuracy: float
    bound_steps: float

    @property
    def fixed_accuracy(self) -> float:
        return float(self.accuracy_at_step[-1])

    @property
    def saved(self) -> float:
        """Fraction of the T time steps that Dynamic Confidence saves."""
        return saving(self.mean_steps, self.manifest.max_steps)


def evaluate(
    network: Path,
    pixels: np.ndarray,
    label: np.ndarray,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    **engine_kind: Any,
) -> Evaluation:
    """Run pixels `[sample, channel, y, x]` through an exported network and replay its calibrated exit rule.

    `engine_kind` goes to `open_engine`: `threads=1`.
    """
    with open_engine(network, batch=min(BATCH, len(pixels)), **engine_kind) as engine:
        manifest, trace = engine.manifest, trace_from_engine(engine, pixels, label, track)
    exits = replay(trace, manifest.calibration)
    bound_steps, bound_accuracy = upper_bound(trace.correct, trace.last_step)
    return Evaluation(
        manifest=manifest,
        trace=trace,
        accuracy_at_step=fixed_accuracy(trace),
        exit_histogram=histogram(exits, trace.steps),
        exits=exits,
        accuracy=float(trace.correct[np.arange(trace.samples), exits - 1].mean()),
        mean_steps=float(exits.mean()),
        fixed_steps=float(trace.last_step.mean()),
        bound_accuracy=float(bound_accuracy[-1]),
        bound_steps=float(bound_steps[-1]),
    )
