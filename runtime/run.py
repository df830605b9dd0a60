"""Answer everything behind some paths, batch by batch: what `dc-run` does, as a function."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .engine import Engine
from .errors import DynamicConfidenceError
from .images import Broken, Sample, frames_from_path, iterate_samples
from .stepping import ExitPolicy, check_pixels, infer

Record = dict[str, Any]
"""Keys: input; then label, name, confidence, steps, ms, exit and, where the data tells, truth; or only error."""


def records(engine: Engine, paths: Sequence[Path], policy: ExitPolicy, *, frames: bool = False) -> Iterator[Record]:
    """Yield one record per input, in order; an input that cannot be read, or a sequence that does not fit, gives a
    record with its error.

    `frames` takes every path as one input that varies in time; those run one by one.
    Raises: DynamicConfidenceError when a path does not exist or a folder is empty (with `frames`: a record).
    """
    manifest = engine.manifest
    preprocessing = manifest.input.preprocessing
    if frames:
        items: Iterator[Sample | Broken] = (_sequence(path, engine) for path in paths)
        width = 1
    else:
        items, width = iterate_samples(paths, preprocessing, manifest.class_names), engine.batch
    waiting: list[Sample | Broken] = []
    for item in items:
        waiting.append(item)
        if sum(isinstance(w, Sample) for w in waiting) == width:
            yield from _answer(engine, waiting, policy)
            waiting = []
    yield from _answer(engine, waiting, policy)


def _sequence(path: Path, engine: Engine) -> Sample | Broken:
    try:
        pixels = frames_from_path(path, engine.manifest.input.preprocessing)
    except DynamicConfidenceError as error:
        return Broken(str(path), str(error))
    try:
        check_pixels(engine, pixels[:, None])
    except DynamicConfidenceError as error:
        return Broken(str(path), f"{path}: {error}")
    return Sample(str(path), pixels, None)


def _answer(engine: Engine, items: list[Sample | Broken], policy: ExitPolicy) -> Iterator[Record]:
    samples = [item for item in items if isinstance(item, Sample)]
    answers = None
    if samples:
        # What varies in time comes as [T, channel, y, x]: the batch axis goes behind the steps.
        answers = infer(engine, np.stack([s.pixels for s in samples], axis=samples[0].pixels.ndim - 3), policy)
    names, row = engine.manifest.class_names, 0
    for item in items:
        if isinstance(item, Broken) or answers is None:
            yield {"input": item.name, "error": item.reason if isinstance(item, Broken) else ""}
            continue
        record: Record = {
            "input": item.name,
            "label": int(answers.label[row]),
            "name": names[int(answers.label[row])],
            "confidence": float(answers.confidence[row]),
            "steps": int(answers.steps[row]),
            "ms": round(float(answers.ms[row]), 4),
            "exit": answers.reason[row],
        }
        if item.label is not None:
            record["truth"] = item.label
        row += 1
        yield record
