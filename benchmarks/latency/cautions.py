"""What makes the numbers of a record doubtful, as sentences, from the record alone."""

from __future__ import annotations

from collections.abc import Iterator

from ...runtime.load import BUSY
from .record import LatencyRecord, Run
from .statistics import UNSTEADY, summary

TOGETHER = 0.1
"""How far the saving in milliseconds may lie from that in time steps, as a fraction of it, before it is said, …"""
ANYWAY = 0.01
"""… and as a fraction of all: where little is saved, noise is large beside it."""


def cautions(record: LatencyRecord) -> list[str]:
    """Say what a reader should know before a number is quoted; nothing to say: an empty list."""
    found = []
    if not record.complete:
        found.append(f"The measurement ended before its end ({record.stopped}): these are the samples until then.")
    load = record.machine.load_per_core
    if load is not None and load > BUSY:
        found.append(
            f"The machine was busy ({load:.0%} of all cores): these are not the times of an idle one. Measure again "
            "when nothing else runs."
        )
    # A plan runs on TensorRT and nothing else: whoever compares it knows.
    engines = dict.fromkeys(run.backend.split(",")[0] for run in record.runs if run.file.endswith(".onnx"))
    if len(engines) > 1:
        found.append(
            f"The .onnx files ran on different engines ({', '.join(engines)}), so what differs may be the engine. Name "
            "one with --backend."
        )
    for run in record.runs:
        found += _of_run(run, pinned=bool(record.machine.pinned_to))
    return found


def _of_run(run: Run, *, pinned: bool) -> Iterator[str]:
    numbers = summary(run)
    if run.network.calibrated_on is None:
        yield (
            f"{run.file} is not calibrated, so that confidence stops nothing early. First: dc-calibrate {run.file} "
            "--data DIR."
        )
    if numbers.unsteady:
        worst = max(numbers.with_exit.cv, numbers.without_exit.cv)
        yield (
            f"{run.file}: samples of equally many time steps scatter by {100 * worst:.0f} % (coefficient of variation; "
            f"above {100 * UNSTEADY:.0f} % they count as unsteady). Fix the clock, "
            f"{'' if pinned else 'keep the process to some cores with `taskset`, '}or measure longer."
        )
    if abs(numbers.saving_gap) > max(TOGETHER * abs(numbers.saving_steps), ANYWAY):
        calls = ", ".join(map(str, run.network.calls))
        several = f", and calls that run to their end (of {calls} steps)" if max(run.network.calls) > 1 else ""
        why = f"The difference is what an inference costs beside its steps{several}."
        if numbers.saving_gap < 0:
            why = "The steps that are saved cost more than the others, or the machine was not steady: measure longer."
        yield (
            f"{run.file}: {100 * numbers.saving_steps:.1f} % of the time steps are saved and "
            f"{100 * numbers.saving_ms:.1f} % of the milliseconds. {why}"
        )
