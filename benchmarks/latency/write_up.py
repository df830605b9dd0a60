"""The record of what was measured so far, whether that was all of it or not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...runtime.exit_policy import ExitPolicy
from ...runtime.manifest import Manifest
from ...runtime.stepping import usual_calls
from .bench import Asked
from .measure import WARM_UP_S, Measured
from .record import VERSION, Data, LatencyRecord, Machine, Network, Run, Series
from .statistics import paired


def record_of(
    asked: Asked, command: str, machine: Machine, found: Sequence[Measured], stopped: str | None
) -> LatencyRecord | None:
    """Write it up; `stopped` says what ended it before its end. None where not a single sample was taken."""
    sampled = [one for one in found if any(one.rounds)]
    if not sampled:
        return None
    runs = [run_of(one, stopped) for one in sampled]
    images = sampled[0].subject.images
    nothing_of = [f"nothing was measured of {path.name}" for path in asked.paths[len(sampled) :]]
    return LatencyRecord(
        version=VERSION,
        complete=stopped is None,
        stopped=None if stopped is None else "; ".join((stopped, *nothing_of)),
        command=command,
        machine=machine,
        data=Data(title=images.title, images=len(images), samples_sha256=images.identity()),
        rounds=asked.rounds,
        seconds=asked.seconds,
        warm_up_ms=WARM_UP_S * 1e3,
        runs=runs,
        pairs=[paired(runs, first, second) for first, second in asked.pairs if second < len(runs)],
    )


def run_of(one: Measured, stopped: str | None) -> Run:
    """Write up one engine."""
    manifest, rounds = one.engine.manifest, [round_ for round_ in one.rounds if round_]
    first, labels = rounds[0], one.subject.images.label.tolist()
    network = network_of(manifest, one.policy)
    return Run(
        file=one.subject.path.name,
        network=network,
        backend=one.engine.backend,
        threads=one.threads,
        complete=one.complete,
        failure=None if one.complete else stopped,
        open_ms=one.open_ms,
        first_call_ms=one.first_call_ms,
        with_exit=Series(ms=[[sample.ms for sample in round_] for round_ in rounds]),
        without_exit=Series(ms=[[sample.ms_without_exit for sample in round_] for round_ in rounds]),
        exit_steps=[sample.steps for sample in first],
        right=[sample.label == label for sample, label in zip(first, labels, strict=False)],
        right_without_exit=[s.label_without_exit == label for s, label in zip(first, labels, strict=False)],
        step_ms=step_times([s.call_ends_ms for round_ in rounds for s in round_], network.calls, network.steps),
        overhead=one.overhead,
        throughput=one.throughput,
        memory=one.memory.record,
        energy=one.energy,
        evaluation=one.evaluation,
    )


def network_of(manifest: Manifest, policy: ExitPolicy) -> Network:
    """What the file says about itself."""
    calibration = manifest.calibration
    return Network(
        architecture=manifest.provenance.architecture,
        method=manifest.method.name,
        steps=manifest.max_steps,
        precision=manifest.numerics.precision,
        form=manifest.numerics.form,
        calls=list(usual_calls(manifest)),
        graph_sha256=manifest.provenance.graph_sha256,
        threshold=policy.threshold,
        metric=policy.metric,
        alpha=calibration.alpha,
        temperature=calibration.temperature,
        calibrated_on=calibration.data,
    )


def step_times(call_ends_ms: Sequence[Sequence[float]], calls: Sequence[int], steps: int) -> list[float]:
    """When the answer of each step was there, `[step]`: the median end of the call that it is in.

    Shapes: call_ends_ms `[inference][call]`.
    """
    found: list[float] = []
    for number, ms in enumerate(np.median(np.array(call_ends_ms), axis=0).tolist()):
        found += [ms] * calls[min(number, len(calls) - 1)]
    return found[:steps]
