"""The record of a latency measurement: what ran where, and every sample. Tables and reports are computed from it alone.

Its JSON schema is docs/latency_record.schema.json: `python -m dynamic_confidence.benchmarks.latency.record` prints it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from ...calib.evaluation import Evaluation
from ...runtime.errors import DynamicConfidenceError
from ..record import RecordPart, require, require_alike, require_times
from ..record import read_record as read
from .evaluation_lengths import require_lengths

VERSION = 1


class Gpu(RecordPart, frozen=True):
    name: str
    driver: str
    memory_mb: float
    clock_mhz: float | None


class Machine(RecordPart, frozen=True):
    """What two records must have in common to be compared."""

    processor: str
    flags: list[str]
    """Those that decide which kernels run."""
    cores: int
    pinned_to: list[int]
    """Cores that the process was kept to; none: to no particular ones."""
    governor: str
    clock_mhz: float | None
    """Of the first of them when the measurement began; null where the system does not say."""
    load_per_core: float | None
    """Share of all cores' time that was in use just before (`runtime.load`); null where the system does not say."""
    system: str
    power_mode: str | None
    """Of a Jetson (nvpmodel)."""
    gpu: Gpu | None
    python: str
    libraries: dict[str, str]
    commit: str
    date: str
    """ISO 8601, with the zone."""


class Data(RecordPart, frozen=True):
    title: str
    images: int
    """How many there are in a whole round."""
    samples_sha256: str
    """Of their names and labels, in order."""


class Network(RecordPart, frozen=True):
    """What the file says about itself."""

    architecture: str
    method: Literal["qcfs", "qffs"]
    steps: int
    """T"""
    precision: Literal["fp32", "fp16", "int8"]
    form: str
    calls: list[int]
    """Steps of one call after another, the last repeated."""
    graph_sha256: str
    threshold: float
    metric: str
    alpha: float
    temperature: float
    calibrated_on: str | None
    """null: not calibrated."""

    def __post_init__(self) -> None:
        require(self.steps > 0, f"steps {self.steps}: expected at least 1")


class Series(RecordPart, frozen=True):
    """Milliseconds of an inference, from the reset to the answer, `[round][image]`; the last round may be cut short."""

    ms: list[list[float]]

    def __post_init__(self) -> None:
        lengths = [len(round_) for round_ in self.ms]
        whole = lengths[0] if lengths else 0
        fits = all(length == whole for length in lengths[:-1]) and all(0 < length <= whole for length in lengths)
        require(fits, f"rounds of {lengths} samples: expected at least one, as many in each, the last cut short")
        require_times(ms for round_ in self.ms for ms in round_)


class Overhead(RecordPart, frozen=True):
    """What the host adds to the engine's calls, in microseconds, one value per inference."""

    loop_us: list[float]
    """Between two calls, in the stepping loop, per time step: over the steps of all calls but the last."""
    bare_us: list[float]
    """The same of a loop that only calls the engine: what timing the calls costs. The loop adds the difference."""
    loop_once_us: list[float]
    """Before the first call and after the last, in the stepping loop; not the reset, which is the engine's."""
    bare_once_us: list[float]
    """The same of the loop that only calls the engine."""
    confidence_us: list[float]
    """The α-scaled softmax of a step on the host, alone: the paper's section 6.5. Graphs compute it inside."""

    def __post_init__(self) -> None:
        require_alike(**msgspec.structs.asdict(self))


class Throughput(RecordPart, frozen=True):
    batch: int
    early_exit: bool
    """With continuous batching; else every input runs all T steps."""
    images_per_second: float
    """The median of …"""
    passes: list[float]
    """… every pass over the images."""


class Memory(RecordPart, frozen=True):
    """Megabytes (10^6 bytes)."""

    rss_before: float
    """Of the process, before the engine was opened, …"""
    rss_open: float
    """… after its first call, …"""
    rss_peak: float
    """… and at most, until its last timed inference. Other engines of the same process are in it."""
    gpu: float | None
    """In use on the GPU, more than before; null without one, or without NVIDIA's management library."""


class Energy(RecordPart, frozen=True, tag_field="kind", tag="measured"):
    """Measured in a pass of its own, never during latency."""

    source: str
    """`NVML`, `RAPL`, the rail of a Jetson."""
    idle_watts: float
    joules_with_exit: float
    """Per inference, idle power included."""
    joules_without_exit: float


class NotMeasured(RecordPart, frozen=True, tag_field="kind", tag="not measured"):
    reason: str


class Run(RecordPart, frozen=True):
    """One engine file on one backend, batch 1."""

    file: str
    network: Network
    backend: str
    threads: int | None
    """null: the backend's own choice."""
    complete: bool
    failure: str | None
    """What ended it before its end."""
    open_ms: float
    first_call_ms: float
    with_exit: Series
    without_exit: Series
    exit_steps: list[int]
    """`[image]`: with early exit."""
    right: list[bool]
    """`[image]`: with early exit; …"""
    right_without_exit: list[bool]
    """… and at T."""
    step_ms: list[float]
    """`[step]`: median time, without early exit, at which the answer of step t was there."""
    overhead: Overhead | None
    throughput: list[Throughput]
    memory: Memory | None
    energy: Energy | NotMeasured
    evaluation: Evaluation | None
    """Accuracy at every step, exits, upper bound and spikes, on the same images; null: it ended before that."""

    def __post_init__(self) -> None:
        ways = [list(map(len, series.ms)) for series in (self.with_exit, self.without_exit)]
        require(ways[0] == ways[1], f"rounds of {ways[0]} samples with early exit, {ways[1]} without: expected equal")
        images = ways[0][0] if ways[0] else 0
        found = {"exit_steps": len(self.exit_steps), "right": len(self.right)}
        found["right_without_exit"] = len(self.right_without_exit)
        require(set(found.values()) == {images}, f"{found} entries, expected {images}, one for each image")
        steps = self.network.steps
        require(len(self.step_ms) == steps, f"step_ms has {len(self.step_ms)} entries, expected {steps}")
        require_times(self.step_ms)
        fits = all(1 <= step <= steps for step in self.exit_steps)
        require(fits, f"exit_steps: expected 1 to {steps}")
        if self.evaluation is not None:
            require_lengths(self.evaluation, steps)


class Pair(RecordPart, frozen=True):
    """Two runs whose inferences took turns: the time of the second over that of the first, per round."""

    first: int
    """Numbers of runs, from 0."""
    second: int
    with_exit: list[float]
    without_exit: list[float]

    def __post_init__(self) -> None:
        require_alike(with_exit=self.with_exit, without_exit=self.without_exit)


class LatencyRecord(RecordPart, frozen=True, tag_field="study", tag="latency"):
    version: Literal[1]
    complete: bool
    stopped: str | None
    """Why it is not complete: `Ctrl-C`, or what failed."""
    command: str
    machine: Machine
    data: Data
    rounds: int
    """How many were asked for, …"""
    seconds: float
    """… unless they take longer; one round is always whole."""
    warm_up_ms: float
    runs: list[Run]
    pairs: list[Pair]

    def __post_init__(self) -> None:
        numbers = [number for pair in self.pairs for number in (pair.first, pair.second)]
        fits = all(0 <= number < len(self.runs) for number in numbers)
        require(fits, f"pairs of the runs {numbers}: there are {len(self.runs)}, from 0")


def read_record(path: Path) -> LatencyRecord:
    """Read and check a record.

    Raises: DynamicConfidenceError for what is no such record, with the key at fault, or one without a sample.
    """
    again = f"Measure one with `dc-bench net.onnx --data DIR -o {path}`."
    record: LatencyRecord = read(path, LatencyRecord, f"a latency record of version {VERSION}", again)
    require_samples(path, record)
    return record


def require_samples(path: Path, record: LatencyRecord) -> None:
    """Raise a DynamicConfidenceError for a record without a sample."""
    if not record.runs or not all(run.with_exit.ms for run in record.runs):
        why = record.stopped or "nothing was measured"
        raise DynamicConfidenceError(f"{path}: holds no sample ({why}). Measure again.")


def schema() -> str:
    """The JSON schema of a record."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(LatencyRecord)), indent=1).decode() + "\n"


if __name__ == "__main__":
    print(schema(), end="")
