"""The confidence of accumulated logits: P = max softmax(z / scale), scale = alpha * tau."""

from __future__ import annotations

import numpy as np


def max_softmax(logits: np.ndarray, scale: float) -> np.ndarray:
    """Return the largest softmax probability of `logits / scale`.

        P = 1 / sum_c exp((z_c - max z) / scale)

    Shapes: logits `[..., class]` -> `[...]`, float64. The sum holds a 1 for the largest class, so P never exceeds 1,
    and a threshold of 1 (strictly greater) never fires.
    Source: Dynamic Confidence, eq. 1-2; the scale is alpha (section 5.2) times the temperature (section 5.1).
    """
    z = np.asarray(logits, dtype=np.float64)
    return 1.0 / np.exp((z - z.max(axis=-1, keepdims=True)) / scale).sum(axis=-1)
