"""Calibrate an exported network: trace it on labelled data and choose the threshold that decides when to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from ..runtime.engine import Engine, open_engine
from ..runtime.errors import DynamicConfidenceError
from ..runtime.manifest import Calibration
from ..runtime.network_file import write_calibration
from ..runtime.plan_file import read_plan
from ..runtime.stepping import run_to_the_end
from .risk_control import certified_points
from .temperature import fit_temperature
from .thresholds import OperatingPoint, choose, descend, exact_scan, fixed_accuracy, grid_points, pareto_front
from .trace import Trace
from .upper_bound import upper_bound

Rule = Literal["safe", "grid", "exact", "certified"]
BATCH = 64


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """What was chosen, and what there was to choose from."""

    calibration: Calibration
    steps: int
    """T"""
    chosen: OperatingPoint
    front: list[OperatingPoint]
    baseline_steps: float
    """Mean steps without early exit: T, or fewer where a QFFS network falls silent."""
    baseline_accuracy: float
    bound_steps: float
    bound_accuracy: float
    """The upper bound: an oracle that stops as soon as the answer is right."""


def trace_from_engine(
    engine: Engine,
    pixels: np.ndarray,
    label: np.ndarray,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Trace:
    """Run images `[sample, channel, y, x]` to the last step, batch by batch, and keep the logits of every step."""
    starts = range(0, len(pixels), engine.batch)
    scale = engine.manifest.calibration.scale
    parts = [run_to_the_end(engine, pixels[start : start + engine.batch], scale) for start in track(starts)]
    return Trace(np.concatenate([p[0] for p in parts]), label, np.concatenate([p[1] for p in parts]))


def calibrate(
    trace: Trace,
    current: Calibration,
    *,
    rule: Rule = "safe",
    max_drop: float = 0.0,
    delta: float = 0.1,
    data_name: str | None = None,
) -> CalibrationReport:
    """Choose the threshold with the fewest mean steps whose accuracy is at least that of the last step - `max_drop`.

    `rule` "grid" looks at the paper's 11 thresholds, "exact" at every one that behaves differently, which saves more
    steps on the data it sees and fits them more closely; "safe" also looks at every one, but stops descending at the
    first that loses accuracy (docs/adr/0004-threshold-rule.md compares them on unseen data). "certified" gives a
    guarantee instead: with probability 1 - `delta` over the draw of the calibration set, the drop on all data like it
    is at most `max_drop` (`risk_control`). `current` gives alpha, temperature and min_step.
    Raises: DynamicConfidenceError for a negative max_drop, or with "certified" a max_drop of 0 or a delta outside
    (0, 1).
    Source: Dynamic Confidence, section 5.3.3; the exact scan and the safe descent are ours.
    """
    baseline, asked = float(fixed_accuracy(trace)[-1]), f"{rule}, max drop {max_drop:g}"
    if rule == "certified":
        points = certified_points(trace, current.scale, max_drop, delta, current.min_step)
        chosen, asked = points[-1], f"{asked}, delta {delta:g}"
    elif rule == "grid":
        points = grid_points(trace, current.scale, min_step=current.min_step)
        chosen = choose(points, baseline, max_drop)
    else:
        points = exact_scan(trace.confidence(current.scale), trace.correct, trace.last_step, current.min_step).points()
        chosen = choose(descend(points, baseline, max_drop) if rule == "safe" else points, baseline, max_drop)
    bound_steps, bound_accuracy = upper_bound(trace.correct, trace.last_step)
    calibration = msgspec.structs.replace(
        current,
        threshold=chosen.threshold,
        data=data_name,
        samples=trace.samples,
        rule=asked,
        expected_accuracy=chosen.accuracy,
        expected_mean_steps=chosen.mean_steps,
    )
    return CalibrationReport(
        calibration=calibration,
        steps=trace.steps,
        chosen=chosen,
        front=pareto_front(points),
        baseline_steps=float(trace.last_step.mean()),
        baseline_accuracy=baseline,
        bound_steps=float(bound_steps[-1]),
        bound_accuracy=float(bound_accuracy[-1]),
    )


def calibrate_file(
    path: Path,
    pixels: np.ndarray,
    label: np.ndarray,
    *,
    data_name: str,
    rule: Rule = "safe",
    max_drop: float = 0.0,
    delta: float = 0.1,
    alpha: float | None = None,
    temperature: float | Literal["keep", "fit"] = "keep",
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    **engine_kind: Any,
) -> CalibrationReport:
    """Calibrate a network file on the engine that will run it, and write the result into its manifest.

    `engine_kind` goes to `open_engine`: `provider="cuda"`, `threads=2`.
    `temperature` "keep" leaves the one fitted on the quantised network at export; "fit" fits it on the spiking
    network's logits after its last step.
    Raises: DynamicConfidenceError for fewer than 2 images, labels outside the classes, or alpha and temperature <= 0.
    """
    if len(pixels) < 2:
        raise DynamicConfidenceError(
            f"{data_name}: {len(pixels)} images; a threshold needs many, expected 100 or more."
        )
    for name, value in (("alpha", alpha), ("temperature", temperature)):
        if isinstance(value, float | int) and not (0 < value < float("inf")):
            raise DynamicConfidenceError(f"{name} {value:g}: expected a positive number.")
    if not max_drop >= 0:
        raise DynamicConfidenceError(f"max_drop {max_drop:g}: expected a fraction of 0 or more.")
    if len(set(label.tolist())) < 2:
        raise DynamicConfidenceError(
            f"{data_name}: all {len(label)} images are of one class; a threshold needs images of all classes. Give the "
            "folder that holds one folder per class."
        )
    with open_engine(path, batch=_batch(path, len(pixels)), **engine_kind) as engine:
        current = engine.manifest.calibration
        trace = trace_from_engine(engine, pixels, label, track)
    alpha = current.alpha if alpha is None else alpha
    if temperature == "fit":
        fitted = fit_temperature(trace.logits[:, -1] / np.float32(alpha), label)
        if fitted is None:
            raise DynamicConfidenceError(
                f"{data_name}: no temperature fits best (every answer is right, for example). Keep the one there is: "
                "--temperature keep."
            )
        temperature = fitted
    elif temperature == "keep":
        temperature = current.temperature
    current = msgspec.structs.replace(current, alpha=float(alpha), temperature=float(temperature))
    report = calibrate(trace, current, rule=rule, max_drop=max_drop, delta=delta, data_name=data_name)
    if rule == "certified" and report.chosen.threshold >= 1.0:
        raise DynamicConfidenceError(
            f"{data_name}: its {trace.samples} images certify no threshold for a drop of {100 * max_drop:g} points "
            f"with probability {1 - delta:g}. Nothing was changed. Give more images, or allow more: "
            f"--max-drop {200 * max_drop:g}."
        )
    write_calibration(path, report.calibration)
    return report


def _batch(path: Path, images: int) -> int:
    """As many images at once as the network takes: a plan was built for so many at most."""
    return min(BATCH, images, read_plan(path).engine.batch if path.suffix == ".plan" else BATCH)
