"""Does a GPU backend answer as ONNX Runtime on the CPU does? fp32 and int8: bit for bit; fp16: how often."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...runtime.engine import Engine, open_engine
from ...runtime.engines.tensorrt import TensorRTEngine
from ...runtime.errors import CheckFailed, DynamicConfidenceError
from ...runtime.exit_policy import policy_from_manifest
from ...runtime.manifest import Precision
from ...runtime.stepping import infer, run_to_the_end
from ...toolchain.export import ExportOptions, export
from ...toolchain.self_check import synthetic_pixels
from ..networks import random_checkpoint
from ..preprocessings import CIFAR
from .plans import build

IMAGES = 32
BATCH = 8
THRESHOLD = 0.6
FORMS: tuple[tuple[str, Precision, int], ...] = (
    ("qcfs", "fp32", 1),
    ("qcfs", "int8", 1),
    ("qcfs", "fp16", 1),
    ("qffs", "fp32", 1),
    ("qffs", "int8", 1),
    ("qffs", "fp16", 1),
    ("qcfs", "fp32", 4),
    ("qcfs", "int8", 4),
    ("qffs", "fp32", 4),
    ("qffs", "int8", 4),
)
"""Method, precision, steps per call."""


class Run(NamedTuple):
    logits: np.ndarray
    """`[image, step, class]`"""
    exits: np.ndarray
    """`[image]`"""


def parity_of(backend: str, save: Callable[[Any], None]) -> str:
    """Compare a backend (rtx, tensorrt, ort-cuda, ort-tensorrt) with ONNX Runtime on the CPU, form by form.

    Raises: CheckFailed when an exact form differs, with the form; the kernels that computed it are in the record.
    """
    checkpoint = random_checkpoint("resnet20", CIFAR)
    pixels = synthetic_pixels(CIFAR.shape, IMAGES)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for method, precision, k in FORMS:
            network = Path(folder) / f"{method}_{precision}_{k}.onnx"
            made = export(checkpoint, "0" * 64, ExportOptions(method, steps_per_call=k, precision=precision))
            network.write_bytes(made.content)
            with open_engine(network, batch=IMAGES) as engine:
                expected = _run(engine, pixels)
            for variant, engine in _variants(backend, network):
                with engine:
                    row = {"method": method, "precision": precision, "k": k, **variant, "backend": engine.backend}
                    row |= _compare(expected, _run(engine, pixels))
                    if isinstance(engine, TensorRTEngine) and not row["equal"]:
                        row["layers"] = json.loads(engine.layers())
                rows.append(row)
                save(rows)
    wrong = [row for row in rows if row["precision"] != "fp16" and not row["equal"]]
    if wrong:
        first = {key: value for key, value in wrong[0].items() if key != "layers"}
        raise CheckFailed(f"{len(wrong)} of {len(rows)} runs are not equal to the CPU's, the first one: {first}.")
    half = [row["equal_exits"] for row in rows if row["precision"] == "fp16"]
    exact = len(rows) - len(half)
    return f"{exact} exact runs equal bit for bit; fp16: {100 * np.mean(half):.1f} % of the exit steps equal"


def _variants(backend: str, network: Path) -> Iterator[tuple[dict[str, Any], Engine]]:
    if backend.startswith("ort-"):
        provider: Any = backend.removeprefix("ort-")
        yield {"provider": provider}, open_engine(network, batch=BATCH, provider=provider)
        return
    plan = build(network, backend, BATCH)
    for graphs, speculate in ((False, False), (True, False), (True, True)):
        variant = {"cuda_graphs": graphs, "speculate": speculate}
        yield variant, open_engine(plan, batch=BATCH, cuda_graphs=graphs, speculate=speculate)


def _run(engine: Engine, pixels: np.ndarray) -> Run:
    policy = policy_from_manifest(engine.manifest, threshold=THRESHOLD)
    parts = [pixels[start : start + engine.batch] for start in range(0, len(pixels), engine.batch)]
    logits = np.concatenate([run_to_the_end(engine, part, policy.scale)[0] for part in parts])
    return Run(logits, np.concatenate([infer(engine, part, policy).steps for part in parts]))


def _compare(expected: Run, found: Run) -> dict[str, Any]:
    if not np.isfinite(found.logits).all():
        raise DynamicConfidenceError("logits that are no numbers came back from the GPU.")
    differ = (expected.logits != found.logits).any(axis=(0, 2))
    return {
        "equal": bool(not differ.any() and np.array_equal(expected.exits, found.exits)),
        "first_step_that_differs": int(differ.argmax()) + 1 if differ.any() else None,
        "largest_difference": float(np.abs(expected.logits - found.logits).max()),
        "equal_labels": float((expected.logits[:, -1].argmax(1) == found.logits[:, -1].argmax(1)).mean()),
        "equal_exits": float((expected.exits == found.exits).mean()),
    }
