"""Latency records for tests: invented numbers that hang together as measured ones do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from dynamic_confidence.benchmarks.latency.record import (
    Data,
    Energy,
    Gpu,
    LatencyRecord,
    Machine,
    Memory,
    Network,
    NotMeasured,
    Overhead,
    Run,
    Series,
    Throughput,
)
from dynamic_confidence.benchmarks.latency.statistics import paired
from dynamic_confidence.calib.evaluation import Curve, Evaluation, SpikesPerNeuron
from dynamic_confidence.calib.exits import capped_curve, histogram, saving
from dynamic_confidence.calib.upper_bound import upper_bound
from dynamic_confidence.runtime.manifest import Calibration

GPU = Gpu(name="Some GPU", driver="570.1", memory_mb=8_000.0, clock_mhz=1_800.0)
MACHINE = Machine(
    processor="Some processor",
    flags=["avx2"],
    cores=2,
    pinned_to=[0],
    governor="performance",
    clock_mhz=2_500.0,
    load_per_core=0.02,
    system="Linux x86_64",
    power_mode=None,
    gpu=None,
    python="3.11.7",
    libraries={"numpy": "2.0", "onnxruntime": "1.20"},
    commit="abc1234",
    date="2026-01-02T03:04:05+00:00",
)


def latency_run(
    *,
    images: int = 40,
    rounds: int = 4,
    steps: int = 6,
    method: Literal["qcfs", "qffs"] = "qcfs",
    file: str = "nets/resnet20_qcfs.onnx",
    architecture: str = "resnet20",
    backend: str = "openvino",
    layers: Sequence[str] = ("stem", "layer1.0"),
    step_ms: float = 0.5,
    exit_cost_ms: float = 0.0,
    seed: int = 0,
    **changes: Any,
) -> Run:
    """A run whose steps take `step_ms` each; with early exit an inference takes `exit_cost_ms` more."""
    generator = np.random.default_rng(seed)
    correct = generator.random((images, steps)) < np.linspace(0.4, 0.9, steps)
    exits = generator.integers(1, steps + 1, images)

    def timed(ms: np.ndarray) -> Series:
        return Series(ms=(ms * generator.uniform(0.98, 1.02, (rounds, images))).tolist())

    run = Run(
        file=file,
        network=Network(
            architecture=architecture,
            method=method,
            steps=steps,
            precision="int8",
            form="conv",
            calls=[1],
            graph_sha256="0123456789abcdef",
            threshold=0.6,
            metric="max-softmax",
            alpha=8.0,
            temperature=1.0,
            calibrated_on="validation",
        ),
        backend=backend,
        threads=1,
        complete=True,
        failure=None,
        open_ms=123.4,
        first_call_ms=5.6,
        with_exit=timed(exits * step_ms + exit_cost_ms),
        without_exit=timed(np.full(images, steps * step_ms)),
        exit_steps=exits.tolist(),
        right=correct[np.arange(images), exits - 1].tolist(),
        right_without_exit=correct[:, -1].tolist(),
        step_ms=[step_ms * step for step in range(1, steps + 1)],
        overhead=Overhead(
            loop_us=[5.0, 5.2],
            bare_us=[2.0, 2.2],
            loop_once_us=[90.0, 94.0],
            bare_once_us=[10.0, 14.0],
            confidence_us=[4.0, 4.4],
        ),
        throughput=[Throughput(batch=32, early_exit=True, images_per_second=812.0, passes=[812.0])],
        memory=Memory(rss_before=80.0, rss_open=120.0, rss_peak=130.0, gpu=None),
        energy=NotMeasured(reason="no meter on this machine"),
        evaluation=evaluation(correct, exits, method, layers),
    )
    return msgspec.structs.replace(run, **changes)


def evaluation(correct: np.ndarray, exits: np.ndarray, method: str, layers: Sequence[str]) -> Evaluation:
    """Of right answers `[image, step]` and exits `[image]`; without layers, spikes are not counted."""
    images, steps = correct.shape
    capped, bound = (
        Curve(mean_steps.tolist(), accuracy.tolist())
        for mean_steps, accuracy in (capped_curve(correct, exits), upper_bound(correct))
    )
    counted = SpikesPerNeuron(
        at_step=[0.1 * step for step in range(1, steps + 1)],
        per_layer=[0.1 * steps + 0.01 * layer for layer in range(len(layers))],
        at_exit=0.3,
        per_layer_at_exit=[0.3 + 0.01 * layer for layer in range(len(layers))],
    )
    spikes = counted if layers else None
    return Evaluation(
        network="net",
        graph_sha256="0123456789abcdef",
        data="test",
        samples=images,
        steps=steps,
        method=method,
        calibration=Calibration(alpha=8.0),
        accuracy_at_step=correct.mean(axis=0).tolist(),
        fixed_steps=float(steps),
        accuracy=capped.accuracy[-1],
        mean_steps=capped.mean_steps[-1],
        saved=saving(capped.mean_steps[-1], steps),
        exit_histogram=histogram(exits, steps).tolist(),
        capped=capped,
        upper_bound=bound,
        layers=list(layers),
        neurons=[100 + layer for layer in range(len(layers))],
        net_spikes=spikes,
        gross_spikes=spikes,
    )


def latency_record(*runs: Run, machine: Machine = MACHINE, **changes: Any) -> LatencyRecord:
    """A record of these runs, one where none is given; two are a pair."""
    all_runs = list(runs) or [latency_run()]
    record = LatencyRecord(
        version=1,
        complete=True,
        stopped=None,
        command="dc-bench net.onnx --data test",
        machine=machine,
        data=Data(title="test", images=len(all_runs[0].exit_steps), samples_sha256="fedcba9876543210"),
        rounds=4,
        seconds=60.0,
        warm_up_ms=200.0,
        runs=all_runs,
        pairs=[paired(all_runs, 0, 1)] if len(all_runs) == 2 else [],
    )
    return msgspec.structs.replace(record, **changes)


MEASURED_ENERGY = Energy(source="RAPL", idle_watts=3.0, joules_with_exit=0.05, joules_without_exit=0.1)
