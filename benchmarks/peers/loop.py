"""What the stepping loop adds to the calls of the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...runtime.engine import open_engine
from ..latency.overhead import overhead
from .ours import PLAIN

BARE, LOOP = "bare_us", "loop_us"


def loop_cost(path: Path, pixels: np.ndarray, threads: int, inferences: int) -> dict[str, list[float]]:
    """Microseconds per time step outside the engine's calls, one value per inference.

    `loop_us`: of `infer`, for one image after another. `bare_us`: of a loop that does nothing but call the engine, so
    what timing the calls costs. The difference is what the loop adds.
    """
    with open_engine(path, threads=threads, backend=PLAIN.backend) as engine:
        found = overhead(engine, pixels, inferences)
    return {BARE: found.bare_us, LOOP: found.loop_us}
