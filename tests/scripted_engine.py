"""An engine that answers what a test wrote down, input by input and step by step."""

from __future__ import annotations

import numpy as np

from dynamic_confidence.runtime.confidence import max_softmax
from dynamic_confidence.runtime.engine import StepOutput, check_refill, check_steps
from dynamic_confidence.runtime.manifest import Manifest


class ScriptedEngine:
    """Its inputs answer what was written down for them, whatever stands in the other rows.

    An input is the number of its script, the value of its first pixel. Like a backend, it has one set of outputs
    for each size of call, and what a row gives behind the end of its script means nothing. See `runtime.engine.Engine`.
    Shapes: logits `[input, step, class]`, spikes `[input, step, layer]` or None.
    """

    backend = "script"

    def __init__(self, manifest: Manifest, batch: int, logits: np.ndarray, spikes: np.ndarray | None = None) -> None:
        self.manifest, self.batch, self.calls = manifest, batch, 0
        self._logits, self._spikes = logits.astype(np.float32), spikes
        self._input, self._done = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        self._scale, self._has_image = 1.0, False
        self._outputs = {
            steps: StepOutput(
                np.zeros((steps, batch, logits.shape[-1]), np.float32),
                np.zeros((steps, batch), np.float32),
                np.zeros((steps, batch), np.int64),
                None if spikes is None else np.zeros((steps, batch, spikes.shape[-1]), np.float32),
            )
            for steps in manifest.call_sizes
        }

    def __enter__(self) -> ScriptedEngine:
        return self

    def __exit__(self, *error: object) -> None: ...

    def reset(self, scale: float) -> None:
        self._scale, self._has_image = scale, False
        self._done[:] = 0

    def step(self, pixels: np.ndarray | None = None, steps: int | None = None) -> StepOutput:
        check_steps(self, steps)
        if pixels is not None:
            assert pixels.shape == (self.batch, *self.manifest.input.preprocessing.shape)
            self._input[:] = pixels[:, 0, 0, 0]
            self._has_image = True
        assert self._has_image
        self.calls += 1
        output = self._outputs[self.manifest.steps_per_call if steps is None else steps]
        for k in range(len(output.logits)):
            at = np.minimum(self._done, self._logits.shape[1] - 1)
            behind = self._done >= self._logits.shape[1]
            output.logits[k] = np.where(behind[:, None], 77.0, self._logits[self._input, at])
            output.confidence[k] = max_softmax(output.logits[k], self._scale)
            output.label[k] = output.logits[k].argmax(axis=-1)
            if self._spikes is not None and output.spikes is not None:
                output.spikes[k] = np.where(behind[:, None], 0, self._spikes[self._input, at])
            self._done += 1
        return output

    def refill(self, rows: np.ndarray, pixels: np.ndarray) -> None:
        check_refill(self, rows, pixels)
        assert self._has_image
        self._input[rows], self._done[rows] = pixels[:, 0, 0, 0], 0


def numbered_images(count: int) -> np.ndarray:
    """An image for every script: uint8 `[input, channel, y, x]`."""
    return np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3), np.uint8)
