"""This project's engines on this project's files, through the stepping loop that everybody runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from ...runtime.engine import Backend, Engine, StepOutput, open_engine
from ...runtime.errors import BackendMissing
from ...runtime.manifest import GraphForm
from ...runtime.stepping import ExitPolicy, infer, policy_from_manifest, run_to_the_end
from ...toolchain.export import ExportOptions, export
from .candidate import Candidate, Missing, Precision
from .setting import Setting

TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


class Variant(NamedTuple):
    backend: Backend
    precision: Precision
    form: GraphForm
    steps_per_call: int

    @property
    def name(self) -> str:
        form = f" {self.form}" * (self.backend == "onnxruntime" and self.precision == "int8")
        return f"ours, {TITLES[self.backend]} {self.precision}{form}, K = {self.steps_per_call}"


VARIANTS = (
    *(Variant("onnxruntime", "fp32", "conv", k) for k in (1, 4)),
    *(Variant("onnxruntime", "int8", "conv", k) for k in (1, 4)),
    *(Variant("onnxruntime", "int8", "matmul", k) for k in (1, 2, 4, 8)),
    *(Variant("openvino", precision, "conv", k) for precision in ("fp32", "int8") for k in (1, 4, 8)),
)
PLAIN = VARIANTS[0]
"""Whose stepping loop is timed, and whose cost is shown over T."""


def ours(setting: Setting, folder: Path, stack: ExitStack) -> Iterator[Candidate | Missing]:
    """Export and open every variant; `stack` closes the engines."""
    for variant in VARIANTS:
        path = exported(setting, variant, folder)
        try:
            engine = stack.enter_context(open_engine(path, threads=setting.threads, backend=variant.backend))
        except BackendMissing as error:
            yield Missing(variant.name, "not installed", str(error))
            continue
        yield _candidate(variant, engine)


def exported(setting: Setting, variant: Variant, folder: Path) -> Path:
    """The network's file of this variant in `folder`, made where it is not there yet."""
    path = folder / f"{variant.precision}_{variant.form}_{variant.steps_per_call}.onnx"
    if not path.exists():
        options = ExportOptions(
            setting.method,
            setting.steps,
            variant.steps_per_call,
            precision=variant.precision,
            form=variant.form,
        )
        path.write_bytes(export(setting.checkpoint, "0" * 64, options).content)
    return path


def loop_cost(path: Path, pixels: np.ndarray, threads: int, inferences: int) -> dict[str, list[float]]:
    """Microseconds per time step, wall and CPU, that `infer` takes beside the engine's calls, for some inferences."""
    with open_engine(path, threads=threads, backend=PLAIN.backend) as engine:
        timed, found = _TimedEngine(engine), {"wall_us": [], "cpu_us": []}
        policy = _to_the_end(engine, engine.manifest.max_steps)
        for index in range(inferences):
            image = pixels[index % len(pixels)][None]
            timed.inside, started = (0, 0), _clocks()
            infer(timed, image, policy)
            for key, ns in zip(found, _since(started, less=timed.inside), strict=True):
                found[key].append(ns / policy.max_steps / 1e3)
    return found


Clocks = tuple[int, int]
"""Wall and CPU nanoseconds."""


def _clocks() -> Clocks:
    return time.perf_counter_ns(), time.process_time_ns()


def _since(started: Clocks, less: Clocks = (0, 0)) -> Clocks:
    wall, cpu = _clocks()
    return wall - started[0] - less[0], cpu - started[1] - less[1]


class _TimedEngine:
    """An engine that adds up how long its calls take, wall and CPU."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.inside = engine, (0, 0)
        self.manifest, self.batch, self.backend = engine.manifest, engine.batch, engine.backend

    def __enter__(self) -> _TimedEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Whoever opened the engine closes it."""

    def reset(self, scale: float) -> None:
        started = _clocks()
        self._engine.reset(scale)
        self._add(_since(started))

    def step(self, pixels: np.ndarray | None = None) -> StepOutput:
        started = _clocks()
        output = self._engine.step(pixels)
        self._add(_since(started))
        return output

    def refill(self, rows: np.ndarray, pixels: np.ndarray) -> None:
        self._engine.refill(rows, pixels)

    def _add(self, spent: Clocks) -> None:
        self.inside = self.inside[0] + spent[0], self.inside[1] + spent[1]


def _candidate(variant: Variant, engine: Engine) -> Candidate:
    def run(pixels: np.ndarray, steps: int) -> np.ndarray:
        return infer(engine, pixels, _to_the_end(engine, steps)).logits

    def trace(pixels: np.ndarray, steps: int) -> np.ndarray:
        return run_to_the_end(engine, pixels, engine.manifest.calibration.scale).logits[0, :steps]

    return Candidate(
        variant.name,
        run,
        trace,
        variant.precision,
        variant.steps_per_call,
        equals=variant.precision,
        ours=True,
        backend=engine.backend,
    )


def _to_the_end(engine: Engine, steps: int) -> ExitPolicy:
    """A policy that looks at every step and stops at none, not even where a QFFS network has fallen silent."""
    return replace(policy_from_manifest(engine.manifest, threshold=1.0, max_steps=steps), quiet_after=None)
