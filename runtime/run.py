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
"""Keys: input; then label, name, confidence, steps, ms, exit, score (of another metric than max-softmax), late (with a
deadline), truth (where the data tells); or only error."""


def records(engine: Engine, paths: Sequence[Path], policy: ExitPolicy, *, frames: bool = False) -> Iterator[Record]:
    """Yield one record per input, in order; what cannot be read or does not fit gives a record with its error.

    `frames` takes every path as one input that varies in time; those run one by one.
    """
    manifest = engine.manifest
    preprocessing = manifest.input.preprocessing
    if frames:
        items: Iterator[Sample | Broken] = (_sequence(path, engine) for path in paths)
        width = 1
    else:
        items, width = iterate_samples(paths, preprocessing, manifest.class_names), engine.batch
    _warm_up(engine)
    waiting: list[Sample | Broken] = []
    samples = 0
    for item in items:
        waiting.append(item)
        samples += isinstance(item, Sample)
        if samples == width:
            yield from _answer(engine, waiting, policy)
            waiting, samples = [], 0
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
    answered = iter(_answered(engine, samples, policy) if samples else ())
    for item in items:
        yield next(answered) if isinstance(item, Sample) else {"input": item.name, "error": item.reason}


def _answered(engine: Engine, samples: list[Sample], policy: ExitPolicy) -> Iterator[Record]:
    # What varies in time comes as [T, channel, y, x]: the batch axis goes behind the steps.
    answers = infer(engine, np.stack([s.pixels for s in samples], axis=samples[0].pixels.ndim - 3), policy)
    for row, sample in enumerate(samples):
        label, ms = int(answers.label[row]), float(answers.ms[row])
        record: Record = {
            "input": sample.name,
            "label": label,
            "name": engine.manifest.class_names[label],
            "confidence": float(answers.confidence[row]),
            "steps": int(answers.steps[row]),
            "ms": round(ms, 4),
            "exit": answers.reason[row],
        }
        if policy.metric != "max-softmax":
            record["score"] = float(answers.score[row])
        if policy.deadline_ms is not None:
            record["late"] = ms > policy.deadline_ms
        if sample.label is not None:
            record["truth"] = sample.label
        yield record


def _warm_up(engine: Engine) -> None:
    """One step on a black image: a backend's first call allocates, which is no part of an answer's time."""
    black = np.zeros((1, *engine.manifest.input.preprocessing.shape), np.uint8)
    infer(engine, black, ExitPolicy(scale=1.0, threshold=1.0, max_steps=1))
