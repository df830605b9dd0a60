"""Answer everything behind some paths, one after another or in a batch: what `dc-run` does, as a function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from .continuous_batching import Slots
from .engine import Engine
from .errors import DynamicConfidenceError
from .exit_policy import ExitPolicy
from .images import Broken, Sample, frames_from_path, image_files, iterate_samples
from .pixels import ARRAY_SUFFIXES
from .read_ahead import read_ahead
from .stepping import Answer, check_pixels, infer

Record = dict[str, Any]
"""Keys: input; then label, name, confidence, steps, ms, exit, score (of another metric than max-softmax), late (with a
deadline), truth (where the data tells); or only error."""


def records(engine: Engine, paths: Sequence[Path], policy: ExitPolicy, *, frames: bool = False) -> Iterator[Record]:
    """Yield one record per input, in order; what cannot be read or does not fit gives a record with its error.

    An engine with a batch of more than one runs so many inputs at once, a new one as soon as one has stopped.
    `frames` takes every path as one input that varies in time; those run one by one.
    """
    manifest = engine.manifest
    _warm_up(engine)
    if frames:
        yield from _one_by_one(engine, (_sequence(path, engine) for path in paths), policy)
        return
    items = iterate_samples(paths, manifest.input.preprocessing, manifest.class_names)
    if engine.batch == 1:
        yield from _one_by_one(engine, items, policy)
        return
    with closing(read_ahead(items, engine.batch)) as ahead:
        yield from _together(engine, ahead, policy)


def useful_batch(paths: Iterable[Path], wanted: int, *, frames: bool = False) -> int:
    """Return `wanted`, or fewer where there are fewer inputs: an engine computes its whole batch, full or not.

    An array may hold any number of inputs, so it takes all that is wanted.
    """
    if frames or wanted <= 1:
        return min(wanted, 1)
    found = 0
    for path in paths:
        if path.suffix.lower() in ARRAY_SUFFIXES:
            return wanted
        try:
            found += len(image_files(path)) if path.is_dir() else 1
        except DynamicConfidenceError:
            found += 1  # what is wrong with this folder will be its record
        if found >= wanted:
            return wanted
    return max(found, 1)


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


def _one_by_one(engine: Engine, items: Iterable[Sample | Broken], policy: ExitPolicy) -> Iterator[Record]:
    for item in items:
        if isinstance(item, Broken):
            yield _failed(item)
            continue
        # What varies in time comes as [T, channel, y, x]: the batch axis goes behind the steps.
        answers = infer(engine, np.expand_dims(item.pixels, item.pixels.ndim - 3), policy)
        yield _answered(engine, item, answers.rows[0], policy)


def _together(engine: Engine, items: Iterator[Sample | Broken], policy: ExitPolicy) -> Iterator[Record]:
    """Records in the order of the items, which stop in another one.

    Those that are done wait for the earlier ones: batch * ceil(T / K) at most, the bound that no run of slow inputs
    exceeds (a slow one takes ceil(T / K) calls). Only broken inputs, which need no call, can come up against it.
    """
    slots: Slots[tuple[int, Sample]] = Slots(engine, policy)
    done: dict[int, Record] = {}
    taken = given = 0
    most = engine.batch * -(-policy.max_steps // engine.manifest.steps_per_call)
    more = True
    while more or slots.free < engine.batch:
        new = []
        while more and len(new) < slots.free and taken - given < most:
            item = next(items, None)
            if isinstance(item, Sample):
                new.append(((taken, item), item.pixels))
            elif isinstance(item, Broken):
                done[taken] = _failed(item)
            more = item is not None
            taken += more
        slots.fill(new)
        for (number, sample), answer in slots.step():
            done[number] = _answered(engine, sample, answer, policy)
        while given in done:
            yield done.pop(given)
            given += 1


def _failed(item: Broken) -> Record:
    return {"input": item.name, "error": item.reason}


def _answered(engine: Engine, sample: Sample, answer: Answer, policy: ExitPolicy) -> Record:
    record: Record = {
        "input": sample.name,
        "label": answer.label,
        "name": engine.manifest.class_names[answer.label],
        "confidence": answer.confidence,
        "steps": answer.steps,
        "ms": round(answer.ms, 4),
        "exit": answer.reason,
    }
    if policy.metric != "max-softmax":
        record["score"] = answer.score
    if policy.deadline_ms is not None:
        record["late"] = answer.ms > policy.deadline_ms
    if sample.label is not None:
        record["truth"] = sample.label
    return record


def _warm_up(engine: Engine) -> None:
    """Every call once on a black image: a backend's first one allocates, which is no part of an answer's time."""
    black = np.zeros((1, *engine.manifest.input.preprocessing.shape), np.uint8)
    for size in engine.manifest.call_sizes:
        infer(engine, black, ExitPolicy(scale=1.0, threshold=1.0, max_steps=1), calls=(size,))
