"""This project's engines on this project's files, through the stepping loop that everybody runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...runtime.engine import Backend, Engine, open_engine
from ...runtime.errors import BackendMissing, DynamicConfidenceError
from ...runtime.exit_policy import ExitPolicy, policy_from_manifest, without_exit
from ...runtime.manifest import GraphForm
from ...runtime.stepping import infer, run_to_the_end
from ...toolchain.export import ExportOptions, export
from .candidate import Candidate, Missing, Precision
from .setting import Setting

TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "events": "events"}


class Variant(NamedTuple):
    backend: Backend
    precision: Precision
    form: GraphForm
    steps_per_call: int

    @property
    def name(self) -> str:
        several = self.backend == "onnxruntime" and (self.precision, self.form) != ("fp32", "conv")
        form = f" {self.form}" if several else ""
        return f"ours, {TITLES[self.backend]} {self.precision}{form}, K = {self.steps_per_call}"


VARIANTS = (
    *(Variant("onnxruntime", "fp32", "conv", k) for k in (1, 4, 8)),
    *(Variant("onnxruntime", "fp32", "matmul", k) for k in (1, 4, 8)),
    Variant("onnxruntime", "int8", "conv", 1),
    *(Variant("onnxruntime", "int8", "matmul", k) for k in (1, 2, 4, 8)),
    *(
        Variant(backend, precision, "conv", k)
        for backend in ("openvino", "events")
        for precision in ("fp32", "int8")
        for k in (1, 4, 8)
    ),
)
PLAIN = VARIANTS[0]
"""Whose stepping loop is timed, and whose cost is shown over T."""


def ours(setting: Setting, folder: Path, stack: ExitStack) -> Iterator[Candidate | Missing]:
    """Export and open every variant; `stack` closes the engines."""
    for variant, found in opened(setting, VARIANTS, folder, stack):
        yield found if isinstance(found, Missing) else _candidate(variant, found)


def opened(
    setting: Setting, variants: Iterable[Variant], folder: Path, stack: ExitStack, checked: int | None = None
) -> Iterator[tuple[Variant, Engine | Missing]]:
    """Export and open these variants, or say what is missing; `stack` closes the engines. `checked`: as `exported`."""
    for variant in variants:
        path = exported(setting, variant, folder, checked)
        try:
            engine = stack.enter_context(open_engine(path, threads=setting.threads, backend=variant.backend))
        except BackendMissing as error:
            yield variant, Missing(variant.name, "not installed", str(error))
            continue
        except DynamicConfidenceError as error:
            yield variant, Missing(variant.name, "not working here", str(error))
            continue
        yield variant, engine


def exported(setting: Setting, variant: Variant, folder: Path, checked: int | None = None) -> Path:
    """The network's file of this variant in `folder`, made where it is not there yet.

    `checked`: so many calls of the self-check and no check of the conversion, since for a large network they take
    minutes; None: all.
    """
    path = folder / f"{variant.precision}_{variant.form}_{variant.steps_per_call}.onnx"
    if not path.exists():
        options = ExportOptions(
            setting.method,
            setting.steps,
            variant.steps_per_call,
            precision=variant.precision,
            form=variant.form,
        )
        settled = None if checked is None else 0  # any number: nobody asks for it here
        made = export(
            setting.checkpoint, "0" * 64, options, settled=settled, track=lambda calls: islice(calls, checked)
        )
        path.write_bytes(made.content)
    return path


def _candidate(variant: Variant, engine: Engine) -> Candidate:
    def run(pixels: np.ndarray, steps: int) -> np.ndarray:
        return infer(engine, pixels, to_the_end(engine, steps)).logits

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


def to_the_end(engine: Engine, steps: int) -> ExitPolicy:
    """A policy that looks at every step and stops at none, not even where a QFFS network has fallen silent."""
    return without_exit(policy_from_manifest(engine.manifest, max_steps=steps))
