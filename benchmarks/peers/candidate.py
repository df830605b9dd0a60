"""What is measured: a way of answering an image, or why that way is not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Run = Callable[[np.ndarray, int], np.ndarray]
"""`(pixels uint8 [1, channel, y, x], time steps) -> logits`: a whole inference, reset included."""
Precision = Literal["fp32", "int8"]


@dataclass(frozen=True)
class Candidate:
    """One way of answering an image, on state of its own."""

    name: str
    run: Run
    """What is timed; the logits that it returns are those of the last step."""
    trace: Run
    """The same answer with the logits of every step, `[step, class]`."""
    precision: Precision = "fp32"
    """Which floor it is compared with."""
    steps_per_call: int | None = 1
    """How often the weights are read: once for so many steps; None: once for all of them."""
    one_pass: bool = False
    """It answers in one pass of the network, without time steps."""
    equals: str | None = None
    """All candidates with the same word here must give equal logits, bit for bit; None: its arithmetic rounds."""
    ours: bool = False
    backend: str = ""


@dataclass(frozen=True)
class Missing:
    """A way that cannot be measured here."""

    name: str
    status: Literal["not installed", "not possible", "not working here"]
    reason: str
