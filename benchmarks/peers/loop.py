"""What the stepping loop adds to the calls of the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...runtime.engine import open_engine
from ..latency.overhead import overhead
from .ours import PLAIN


def loop_cost(path: Path, pixels: np.ndarray, threads: int, inferences: int) -> dict[str, list[float]]:
    """Microseconds outside the engine's calls, one value per inference.

    `loop_us`: of `infer`, between two calls, per time step. `loop_once_us`: of `infer`, before the first call and after
    the last. `bare_us`, `bare_once_us`: of a loop that does nothing but call the engine, so what timing the calls
    costs. The differences are what the loop adds.
    """
    with open_engine(path, threads=threads, backend=PLAIN.backend) as engine:
        found = overhead(engine, pixels, inferences)
    return {
        "loop_us": found.loop_us,
        "bare_us": found.bare_us,
        "loop_once_us": found.loop_once_us,
        "bare_once_us": found.bare_once_us,
    }
