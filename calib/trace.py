"""A trace: the accumulated logits of every sample at every step, from which any exit rule can be replayed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..runtime.errors import DynamicConfidenceError
from ..runtime.exit_metrics import score
from ..runtime.manifest import Metric


def check_last_step(last_step: np.ndarray, samples: int, steps: int) -> None:
    """Raise DynamicConfidenceError unless `last_step` `[sample]` int64 holds a step 1..`steps` for each sample."""
    if last_step.shape != (samples,) or last_step.dtype != np.int64:
        raise DynamicConfidenceError(
            f"last_step has shape {last_step.shape} and type {last_step.dtype}, expected ({samples},) int64; "
            f"pass np.full({samples}, {steps}) where nothing but confidence stops a sample"
        )
    if last_step.size and not (last_step.min() >= 1 and last_step.max() <= steps):
        raise DynamicConfidenceError(
            f"last_step lies in {last_step.min()}..{last_step.max()}, expected 1..{steps}; count steps from 1"
        )


@dataclass(frozen=True, eq=False)
class Trace:
    """What a network answered after each time step, run to the end for every sample.

        logits[i, t] = sum of the read-out's outputs over the steps 1..t+1

    Shapes: logits `[sample, step, class]` float32 (accumulated), label `[sample]` int64 (class index),
    last_step `[sample]` int64, in steps counted from 1: where the sample stops for another reason than confidence.
    That is T, or for QFFS the first step after which nothing can change any more (the answer there is the answer at T).
    Raises DynamicConfidenceError for shapes, types or values outside these.
    Source: Dynamic Confidence, eq. 1 (accumulated output) and section 5.3.3 (validation pass).
    """

    logits: np.ndarray
    label: np.ndarray
    last_step: np.ndarray

    def __post_init__(self) -> None:
        if self.logits.ndim != 3 or 0 in self.logits.shape or self.logits.dtype != np.float32:
            raise DynamicConfidenceError(
                f"trace logits have shape {self.logits.shape} and type {self.logits.dtype}, expected float32 "
                "[sample, step, class] with none of them empty; stack the accumulated logits of every step on axis 1"
            )
        samples, steps, classes = self.logits.shape
        if not np.isfinite(self.logits).all():
            raise DynamicConfidenceError(
                "trace logits hold NaN or infinity, expected finite numbers; check the images and the exported network"
            )
        if self.label.shape != (samples,) or self.label.dtype != np.int64:
            raise DynamicConfidenceError(
                f"trace labels have shape {self.label.shape} and type {self.label.dtype}, expected ({samples},) int64; "
                "give one class index per sample"
            )
        if not (self.label.min() >= 0 and self.label.max() < classes):
            raise DynamicConfidenceError(
                f"trace labels lie in {self.label.min()}..{self.label.max()}, expected 0..{classes - 1}; "
                "use the data set that the network was trained for"
            )
        check_last_step(self.last_step, samples, steps)

    @property
    def samples(self) -> int:
        """Number of samples N."""
        return self.logits.shape[0]

    @property
    def steps(self) -> int:
        """Number of time steps T."""
        return self.logits.shape[1]

    @property
    def correct(self) -> np.ndarray:
        """Whether the answer, the lowest class with the largest logit, is right at each step: `[sample, step]` bool."""
        return self.logits.argmax(axis=2) == self.label[:, None]

    def scores(self, scale: float, metric: Metric = "max-softmax") -> np.ndarray:
        """Return what the threshold is compared with, `[sample, step]` float64 in 0 … 1; scale = alpha * tau.

        Raises DynamicConfidenceError for a scale that is not a positive number, or a metric that needs more classes.
        Source: docs/adr/0008-exit-metrics.md; max-softmax: Dynamic Confidence, eq. 1-2, sections 5.1 and 5.2.
        """
        if not (np.isfinite(scale) and scale > 0):
            raise DynamicConfidenceError(f"scale is {scale}, expected a positive number; pass alpha * temperature")
        found, run = np.empty(self.logits.shape[:2]), None
        # One step at a time: float64 copies of the whole trace would need several times its memory.
        for t in range(self.steps):
            found[:, t], run = score(metric, self.logits[:, t], scale, run)
        return found

    def confidence(self, scale: float) -> np.ndarray:
        """Return P = max softmax(logits / scale) `[sample, step]`: the scores of `max-softmax`. Raises: as `scores`."""
        return self.scores(scale)

    def subset(self, index: np.ndarray) -> Trace:
        """Return the trace of the samples picked by `index` (whole numbers, or one bool per sample)."""
        return Trace(self.logits[index], self.label[index], self.last_step[index])
