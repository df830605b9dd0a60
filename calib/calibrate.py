"""Calibrate an exported network: trace it on labelled data and choose the threshold that decides when to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from ..runtime.engine import Engine, open_engine
from ..runtime.errors import DynamicConfidenceError
from ..runtime.manifest import Calibration, Manifest, Metric
from ..runtime.network_file import largest_batch, read_manifest, write_calibration
from ..runtime.stepping import run_to_the_end
from .alpha import check_positive
from .policy import CalibrationReport, Goal, Rule, sweep
from .risk_control import fewest_images
from .temperature import BOUNDS, fit_temperature
from .trace import Trace

BATCH = 64
FEW = 100
"""Images: a threshold from fewer says little about others."""
DROPS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Accuracy drops that are suggested where a smaller one cannot be certified."""


@dataclass(frozen=True)
class Settings:
    """What a calibration is asked for; None and nothing keep what the network's manifest says."""

    goal: Goal = field(default_factory=Goal)
    alphas: tuple[float, ...] = ()
    """Of several, the best is chosen."""
    temperature: float | Literal["keep", "fit"] = "keep"
    """"keep": the one fitted on the quantised network at export; "fit": on the logits of the last step."""
    metric: Metric | None = None
    min_step: int | None = None

    def __post_init__(self) -> None:
        for alpha in self.alphas:
            check_positive("alpha", alpha)
        if isinstance(self.temperature, float | int):
            check_positive("temperature", self.temperature)
        elif self.temperature == "fit" and len(self.alphas) > 1:
            raise DynamicConfidenceError(
                "a fitted temperature divides out every alpha, so a sweep has nothing to choose from: give one alpha, "
                "or --temperature keep."
            )
        elif self.temperature == "fit" and self.goal.rule == "certified":
            raise DynamicConfidenceError(
                "a temperature fitted on the images that are to certify the threshold breaks the promise. Fit it on "
                "others first (`dc-calibrate --temperature fit --data OTHERS`), then certify with --temperature keep."
            )

    def current(self, manifest: Manifest) -> Calibration:
        """The calibration to start from. Raises: DynamicConfidenceError for steps that the network does not have."""
        kept, steps = manifest.calibration, self.goal.max_mean_steps
        first = kept.min_step if self.min_step is None else self.min_step
        for name, value in (("min_step", first), ("mean steps", steps)):
            if value is not None and not 1 <= value <= manifest.max_steps:
                raise DynamicConfidenceError(
                    f"{name} {value:g}: expected 1 to {manifest.max_steps}, the steps that this network runs."
                )
        alpha = self.alphas[0] if len(self.alphas) == 1 else kept.alpha
        tau = kept.temperature if isinstance(self.temperature, str) else self.temperature
        metric = kept.metric if self.metric is None else self.metric
        return msgspec.structs.replace(kept, alpha=float(alpha), temperature=float(tau), metric=metric, min_step=first)


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
    return Trace(np.concatenate([p.logits for p in parts]), label, np.concatenate([p.last_step for p in parts]))


def trace_from_file(
    path: Path,
    pixels: np.ndarray,
    label: np.ndarray,
    data_name: str,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    **engine_kind: Any,
) -> Trace:
    """Trace a network file on the engine that will run it; `engine_kind` goes to `open_engine`: `provider="cuda"`.

    Raises: DynamicConfidenceError for images that cannot calibrate anything (`check_labels`), or as `open_engine`.
    """
    check_labels(label, data_name)
    batch = min(BATCH, len(pixels), largest_batch(path) or BATCH)
    with open_engine(path, batch=batch, **engine_kind) as engine:
        return trace_from_engine(engine, pixels, label, track)


def calibrate_network(path: Path, trace: Trace, settings: Settings, data_name: str) -> CalibrationReport:
    """Calibrate a network file on its trace, and write the result into its manifest.

    Raises: DynamicConfidenceError for a trace of another network, settings that do not fit the network or each other,
    a goal that cannot be met, or labels that cannot calibrate anything. The file is then as it was.
    """
    manifest = read_manifest(path)
    check_labels(trace.label, data_name)
    found, wanted = trace.logits.shape[1:], (manifest.max_steps, len(manifest.class_names))
    if found != wanted:
        raise DynamicConfidenceError(
            f"{data_name}: a trace of {found[0]} steps and {found[1]} classes, but {path} has {wanted[0]} and "
            f"{wanted[1]}: it is another network's. Trace this one: dc-eval {path}."
        )
    current, goal = settings.current(manifest), settings.goal
    if settings.temperature == "fit":
        current = msgspec.structs.replace(current, temperature=_fitted(trace, current.alpha, data_name))
    report = sweep(trace, current, settings.alphas or (current.alpha,), goal, data_name)
    if goal.rule == "certified" and report.chosen.threshold >= 1.0:
        delta = goal.delta / max(1, len(settings.alphas))
        enough = [drop for drop in DROPS if drop > goal.max_drop and fewest_images(drop, delta) <= trace.samples]
        raise DynamicConfidenceError(
            f"{data_name}: its {trace.samples} images certify no threshold for a drop of {100 * goal.max_drop:g} "
            f"points with probability {1 - goal.delta:g}. Nothing was changed. Give more images (even where no answer "
            f"changes it takes {fewest_images(goal.max_drop, delta)})"
            + (f", or allow more: --max-drop {100 * enough[0]:g} or above." if enough else ".")
        )
    write_calibration(path, report.calibration)
    return report


def calibrate_file(
    path: Path,
    pixels: np.ndarray,
    label: np.ndarray,
    *,
    data_name: str,
    rule: Rule = "safe",
    max_drop: float = 0.0,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    **engine_kind: Any,
) -> CalibrationReport:
    """Trace and calibrate a network file in one call. Raises: as `trace_from_file` and `calibrate_network`."""
    settings = Settings(Goal(rule, max_drop))
    trace = trace_from_file(path, pixels, label, data_name, track, **engine_kind)
    return calibrate_network(path, trace, settings, data_name)


def check_labels(label: np.ndarray, data_name: str) -> None:
    """Raise DynamicConfidenceError unless there are 2 images or more, of more than one class."""
    if len(label) < 2:
        raise DynamicConfidenceError(
            f"{data_name}: {len(label)} images; a threshold needs many, expected {FEW} or more."
        )
    if len(set(label.tolist())) < 2:
        raise DynamicConfidenceError(
            f"{data_name}: all {len(label)} images are of one class; a threshold needs images of all classes. Give "
            "others: of folders, the one that holds a folder per class."
        )


def _fitted(trace: Trace, alpha: float, data_name: str) -> float:
    temperature = fit_temperature(trace.logits[:, -1] / np.float32(alpha), trace.label)
    if temperature is None:
        raise DynamicConfidenceError(
            f"{data_name}: no temperature between {BOUNDS[0]:g} and {BOUNDS[1]:g} fits best at alpha {alpha:g} (every "
            "answer is right, for example, or alpha is far off). Keep the one there is: --temperature keep."
        )
    return temperature
