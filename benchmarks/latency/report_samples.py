"""What a run's samples say step by step: shares that stop, and milliseconds of those that do."""

from __future__ import annotations

import numpy as np

from .record import Run


def latency_by_step(run: Run) -> dict[int, list[float]]:
    """Return the samples with early exit, in ms, by the step they stop at; only steps at which something stops."""
    found: dict[int, list[float]] = {}
    for one_round in run.with_exit.ms:
        for step, ms in zip(run.exit_steps, one_round, strict=False):  # the last round may be cut short
            found.setdefault(step, []).append(ms)
    return dict(sorted(found.items()))


def exit_shares(run: Run) -> list[float]:
    """Return the share of images (a fraction) that stops at each step, `[step]`."""
    return (np.bincount(run.exit_steps, minlength=run.network.steps + 1)[1:] / len(run.exit_steps)).tolist()
