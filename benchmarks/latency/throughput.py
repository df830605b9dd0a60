"""How many images a second a batch answers: all steps of every input, or early exit with places that are refilled."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ...runtime.continuous_batching import answer_stream
from ...runtime.engine import Engine
from ...runtime.exit_policy import ExitPolicy, without_exit
from ...runtime.stepping import Answer, infer
from .record import Throughput

PASSES = 3


def throughput(engine: Engine, pixels: np.ndarray, policy: ExitPolicy, seconds: float) -> list[Throughput]:
    """Answer all images without early exit and with it, in turn, `PASSES` times, or fewer once the seconds are over.

    At the end of the images the places of the batch run empty: take many more images than it has places.
    Shapes: pixels uint8 `[image, channel, y, x]`.
    """
    endless = without_exit(policy)
    ways: dict[bool, Callable[[], object]] = {
        False: lambda: in_batches(engine, pixels, endless),
        True: lambda: continuously(engine, pixels, policy),
    }
    found: dict[bool, list[float]] = {early_exit: [] for early_exit in ways}
    in_batches(engine, pixels[: engine.batch], endless)  # warms up
    end = time.perf_counter() + seconds
    for done in range(PASSES):
        if done and time.perf_counter() > end:
            break
        for early_exit, run in ways.items():
            started = time.perf_counter()
            run()
            found[early_exit].append(len(pixels) / (time.perf_counter() - started))
    return [
        Throughput(batch=engine.batch, early_exit=early_exit, images_per_second=float(np.median(passes)), passes=passes)
        for early_exit, passes in found.items()
    ]


def in_batches(engine: Engine, pixels: np.ndarray, policy: ExitPolicy) -> list[Answer]:
    """Answer one batch after another; each runs until its last input has stopped."""
    found = []
    for start in range(0, len(pixels), engine.batch):
        found += infer(engine, pixels[start : start + engine.batch], policy).rows
    return found


def continuously(engine: Engine, pixels: np.ndarray, policy: ExitPolicy) -> list[Answer]:
    """Answer with continuous batching; in the order of the images."""
    return [answer for _, answer in sorted(answer_stream(engine, pixels, policy), key=lambda found: found[0])]
