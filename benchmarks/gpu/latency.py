"""Milliseconds per time step at batch 1: plans with and without CUDA graphs and speculation, by K and precision."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ...runtime.engine import Engine, open_engine
from ...runtime.errors import BackendMissing
from ...runtime.exit_policy import policy_from_manifest
from ...runtime.manifest import Precision
from ...runtime.plan_file import LIBRARIES, Flavour
from ...runtime.stepping import infer
from ...toolchain.export import ExportOptions, export
from ...toolchain.self_check import synthetic_pixels
from ..networks import random_checkpoint
from ..preprocessings import CIFAR
from .plans import build, installed

NETWORKS = ("resnet20", "resnet18", "vgg16")
STEPS = 16
STEPS_PER_CALL = (1, 2, 4, 8)
WARM_UP_S = 0.2
ROUNDS = 5
INFERENCES = 20
"""Of one candidate in one round; the rounds go through all candidates, in turn forwards and backwards."""
VARIANTS = {"plain": (False, False), "graphs": (True, False), "graphs, speculating": (True, True)}
"""CUDA graphs, speculation."""


def latency_table(save: Callable[[Any], None], seconds: float) -> str:
    """Measure every flavour that is installed, on random networks and noise images, all T steps, no early exit.

    Each network and precision is one interleaved run; every sample (milliseconds per inference over T) is kept. Where
    the next run would probably not end within `seconds`, the rest is left out, and the answer says so.
    """
    flavours: list[Flavour] = [flavour for flavour in LIBRARIES if installed(flavour)]
    if not flavours:
        raise BackendMissing("neither TensorRT nor TensorRT-RTX is installed: `pip install 'dynamic-confidence[rtx]'`.")
    rows: list[dict[str, Any]] = []
    runs, started, longest = list(product(NETWORKS, get_args(Precision))), time.monotonic(), 0.0
    for done, (architecture, precision) in enumerate(runs):
        begun = time.monotonic()
        if begun - started + 1.5 * longest > seconds:
            runs = runs[:done]
            break
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            rows += _measure(list(_candidates(architecture, precision, flavours, Path(folder), stack)))
        save(rows)
        longest = max(longest, time.monotonic() - begun)
    best = min((row for row in rows if row["variant"] != "cpu"), key=lambda row: row["ms_per_step"])
    return (
        f"{len(runs)} of {len(NETWORKS) * len(get_args(Precision))} runs in the time given; fastest: {best['network']} "
        f"{best['precision']}, K = {best['k']}, {best['variant']}: {best['ms_per_step']:.4f} ms per step"
    )


def _candidates(
    architecture: str, precision: Precision, flavours: list[Flavour], folder: Path, stack: ExitStack
) -> Iterator[tuple[dict[str, Any], Engine]]:
    """Open every engine of one run: the CPU's, and per K and flavour the plan in each variant."""
    checkpoint = random_checkpoint(architecture, CIFAR)
    for k in STEPS_PER_CALL:
        network = folder / f"k{k}.onnx"
        options = ExportOptions(steps=STEPS, steps_per_call=k, precision=precision)
        network.write_bytes(export(checkpoint, "0" * 64, options).content)
        about = {"network": architecture, "precision": precision, "k": k}
        if k == 1:
            yield {**about, "variant": "cpu"}, stack.enter_context(open_engine(network))
        for flavour in flavours:
            plan = build(network, flavour)
            for variant, (graphs, speculate) in VARIANTS.items():
                engine = stack.enter_context(open_engine(plan, cuda_graphs=graphs, speculate=speculate))
                yield {**about, "flavour": flavour, "variant": variant}, engine


def _measure(candidates: list[tuple[dict[str, Any], Engine]]) -> list[dict[str, Any]]:
    pixels = synthetic_pixels(CIFAR.shape, INFERENCES)
    samples: list[list[float]] = [[] for _ in candidates]
    for _, engine in candidates:
        end = time.perf_counter() + WARM_UP_S
        while time.perf_counter() < end:
            _inference(engine, pixels[:1])
    for round_ in range(ROUNDS):
        order = range(len(candidates)) if round_ % 2 == 0 else reversed(range(len(candidates)))
        for index in order:
            engine = candidates[index][1]
            samples[index] += [_inference(engine, image[None]) for image in pixels]
    return [
        {**about, "backend": engine.backend, "ms_per_step": float(np.median(found)) / STEPS, "ms_per_inference": found}
        for (about, engine), found in zip(candidates, samples, strict=True)
    ]


def _inference(engine: Engine, pixels: np.ndarray) -> float:
    """Milliseconds of one inference with reset and all its steps."""
    policy = policy_from_manifest(engine.manifest, threshold=1.0)
    started = time.perf_counter()
    infer(engine, pixels, policy)
    return (time.perf_counter() - started) * 1e3
