"""From network files and images to measurements: every engine opened, timed, and looked at from its other sides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...calib.evaluation import Evaluation, evaluation_of
from ...calib.trace_folder import Shard
from ...calib.trace_header import header_of
from ...calib.write_trace import shard_from_runs
from ...runtime.engine import EngineOptions, onnx_backend, open_engine
from ...runtime.errors import DynamicConfidenceError
from ...runtime.exit_policy import policy_from_manifest
from ...runtime.network_file import largest_batch
from ...runtime.stepping import infer, run_to_the_end
from .energy import find_meter, measure_energy
from .measure import Measured, Track, take_turns, warm_up
from .memory import MemoryUse
from .overhead import overhead
from .record import NotMeasured
from .subjects import Subject, read_subjects
from .throughput import throughput

FEWEST, MOST = 20, 1000
"""Images, where their number is not asked for: …"""
LEAST_ROUNDS = 3
"""… so many that these rounds of them take the seconds."""
INFERENCES = 30
"""For each value of the overhead, …"""
OVERHEAD_S = 5.0
"""… or as many as take about so long."""
THROUGHPUT_SHARE = 0.25
"""Of the seconds, for the throughput."""


@dataclass(frozen=True)
class Asked:
    """What a measurement is asked for."""

    networks: tuple[Path, ...]
    data: Path
    against: Path | None = None
    """Its inferences take turns with those of the networks; None: the networks are measured one after another."""
    images: int | None = None
    rounds: int = 5
    seconds: float = 60.0
    batch: int = 32
    engine: dict[str, Any] = field(default_factory=dict)
    """For `open_engine`."""

    def __post_init__(self) -> None:
        for name, value in (("--images", self.images), ("--rounds", self.rounds), ("--batch", self.batch)):
            if value is not None and value < 1:
                raise DynamicConfidenceError(f"{name} {value}: expected at least 1.")
        if not 0 < self.seconds < float("inf"):
            raise DynamicConfidenceError(f"--seconds {self.seconds:g}: expected a positive number.")

    @property
    def groups(self) -> list[tuple[Path, ...]]:
        """Networks whose inferences take turns."""
        return [(path,) for path in self.networks] if self.against is None else [(*self.networks, self.against)]

    @property
    def paths(self) -> list[Path]:
        """All of them, in the order in which they are measured."""
        return [path for group in self.groups for path in group]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Numbers of the networks that are compared, in the order in which they are measured."""
        last = len(self.networks)
        return [] if self.against is None else [(number, last) for number in range(last)]


def bench(asked: Asked, found: list[Measured], track: Track) -> None:
    """Measure into `found`, engine by engine, so that what was measured is there when this is stopped.

    Raises: DynamicConfidenceError for what cannot be read or opened, CheckFailed when an engine fails.
    """
    subjects, count = read_subjects(asked.paths, asked.data, asked.images, MOST, track), asked.images
    for group in asked.groups:
        with ExitStack() as stack:
            engines = []
            for path in group:
                engines.append(_opened(subjects[path], asked, stack))
                found.append(engines[-1])
            ms = sum(warm_up(one) for one in engines)
            if count is None:  # the same for all that follow
                count = int(np.clip(asked.seconds * 1e3 / (LEAST_ROUNDS * ms), FEWEST, MOST))
            for one in engines:
                one.subject = one.subject.only(count)
            take_turns(engines, asked.rounds, asked.seconds, track)
            for one in engines:
                one.memory.ended()
            for one in engines:
                _other_sides(one, asked, track)


def runs_on_gpu(path: Path, engine: dict[str, Any]) -> bool:
    """Whether the engine of this file, opened with these options, computes on a GPU."""
    return path.suffix == ".plan" or engine.get("provider", "cpu") != "cpu"


def _opened(subject: Subject, asked: Asked, stack: ExitStack) -> Measured:
    """Open an engine and make its first call, both timed."""
    memory = MemoryUse.begun(on_gpu=runs_on_gpu(subject.path, asked.engine))
    started = time.perf_counter()
    engine = stack.enter_context(open_engine(subject.path, **asked.engine))
    open_ms = (time.perf_counter() - started) * 1e3
    policy = policy_from_manifest(engine.manifest)
    first_call_ms = infer(engine, subject.pixels[:1], policy).call_ends_ms[0]
    memory.opened()
    return Measured(subject, engine, policy, asked.engine.get("threads"), open_ms, first_call_ms, memory)


def _other_sides(one: Measured, asked: Asked, track: Track) -> None:
    """Evaluation, overhead, throughput and energy, each in a pass of its own."""
    one.evaluation = _evaluated(one, track)
    stages: dict[str, Callable[[Measured, Asked], None]] = {
        "host overhead": _add_overhead,
        "throughput": _add_throughput,
        "energy": _add_energy,
    }
    for name, stage in stages.items():
        for _ in track([name], name):
            stage(one, asked)
    one.complete = True


def _evaluated(one: Measured, track: Track) -> Evaluation:
    """What the network answers at every step, as `dc-eval` says it."""
    manifest, images, pixels = one.engine.manifest, one.subject.images, one.subject.pixels
    header = header_of(manifest, images, None)

    def shards() -> Iterator[Shard]:
        for shard in range(header.shards):
            rows = header.rows(shard)
            whole = track(range(rows.start, rows.stop), "every step of every image")
            runs = [run_to_the_end(one.engine, pixels[row : row + 1], one.policy.scale) for row in whole]
            yield shard_from_runs(runs, images, rows)

    return evaluation_of(header, shards(), manifest.calibration)


def _add_overhead(one: Measured, asked: Asked) -> None:
    # Each of them takes three inferences without early exit.
    count = int(np.clip(OVERHEAD_S * 1e3 / (3 * one.ms_per_image), 3, INFERENCES))
    one.overhead = overhead(one.engine, one.subject.pixels, count)


def _add_throughput(one: Measured, asked: Asked) -> None:
    path, pixels, kind = one.subject.path, one.subject.pixels, {**asked.engine}
    batch = min(asked.batch, len(pixels), largest_batch(path) or asked.batch)
    if path.suffix == ".onnx":  # as for one input: for a batch the choice could be another
        kind["backend"] = onnx_backend(path, EngineOptions(**asked.engine))
    with open_engine(path, batch=batch, **kind) as engine:
        one.throughput = throughput(engine, pixels, one.policy, THROUGHPUT_SHARE * asked.seconds)


def _add_energy(one: Measured, asked: Asked) -> None:
    meter, pixels = find_meter(on_gpu=runs_on_gpu(one.subject.path, asked.engine)), one.subject.pixels
    if isinstance(meter, NotMeasured):
        one.energy = meter
        return

    def run(index: int, early_exit: bool) -> None:
        infer(one.engine, pixels[index : index + 1], one.policy if early_exit else one.endless)

    try:
        one.energy = measure_energy(meter, run, len(pixels), one.ms_per_image)
    except OSError as error:  # a sensor that told something before
        one.energy = NotMeasured(reason=f"{meter.source} stopped answering ({error})")
