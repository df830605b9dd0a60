"""From a checkpoint to a checked .onnx with its manifest inside: conversion, snapping, graph, self-check."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from .. import __version__
from ..calib.alpha import default_alpha
from ..calib.temperature import fit_temperature
from ..models.checkpoint import Checkpoint
from ..runtime.errors import DynamicConfidenceError
from ..runtime.manifest import (
    VERSION,
    Calibration,
    GraphForm,
    Grid,
    Input,
    Manifest,
    Numerics,
    Precision,
    Preprocessing,
    Provenance,
)
from ..runtime.onnx_file import bytes_with_manifest, graph_sha256
from ..runtime.variants import variant
from .conversion_check import check_conversion
from .data import normalised
from .onnx_from_snn import SCALE_INPUT, StepGraph, onnx_from_snn
from .onnx_joined import joined
from .rounding_check import rounding_check
from .self_check import CheckReport, self_check, synthetic_pixels
from .snap import snap
from .snn import INPUT, Snn, default_steps
from .snn_from_ann import snn_from_ann

CHECK_BUDGET = 1.5e10
"""Multiply-accumulates the float64 oracle may spend on the self-check: some seconds on one core."""
CHECK_IMAGES = 16


@dataclass(frozen=True)
class ExportOptions:
    method: str = "qcfs"
    steps: int | None = None
    """Largest number of time steps T; None: `default_steps`."""
    steps_per_call: int = 1
    frames: bool = False
    count_spikes: bool = False
    precision: Precision = "fp32"
    form: GraphForm = "conv"
    more_steps_per_call: tuple[int, ...] = ()
    """Other K that the file holds as well."""

    def __post_init__(self) -> None:
        sizes = self.call_sizes
        if min(sizes) < 1 or (self.steps is not None and self.steps < 1):
            raise DynamicConfidenceError(
                f"T = {self.steps}, K = {_listed(sizes)}: expected at least 1 time step and 1 step per call."
            )
        if list(sizes) != sorted(set(sizes)):
            raise DynamicConfidenceError(f"K = {_listed(sizes)}: expected each once, the smallest first.")
        if len(sizes) > 1 and self.frames:
            raise DynamicConfidenceError(
                f"--frames with K = {_listed(sizes)}: its calls take an image for each of their steps, so the file has "
                f"one K. Give one: -K {sizes[-1]}."
            )
        if self.form == "matmul" and self.precision == "fp16":
            raise DynamicConfidenceError(
                "--form matmul with --precision fp16: its matrix products are of integers, expected fp32 or int8. "
                "Leave --form out otherwise."
            )

    @property
    def call_sizes(self) -> tuple[int, ...]:
        return self.steps_per_call, *self.more_steps_per_call


@dataclass(frozen=True)
class Exported:
    content: bytes
    """The .onnx file."""
    manifest: Manifest
    settled: int
    """Time steps after which the network's QFFS form computed what the quantised network does, to float64 rounding."""
    check: CheckReport
    """Of the first K; the others, where there are such, gave the same."""
    quantised_accuracy: float | None
    """Of the quantised network on the calibration set, a fraction; None without one."""


def export(
    checkpoint: Checkpoint,
    checkpoint_sha256: str,
    options: ExportOptions,
    *,
    name: str = "network",
    calibration_set: tuple[np.ndarray, np.ndarray] | None = None,
    settled: int | None = None,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Exported:
    """Convert, snap, write and check a network. The same input always gives the same bytes.

    `calibration_set` (pixels `[image, channel, y, x]`, labels `[image]`) gives the temperature of the quantised
    network, the measured head-room and the images of the self-check; without it the temperature is 1 and noise is
    checked with.
    `settled`: what a check of this network's conversion said before; it is then not made again.
    `track` wraps the self-check's calls, for a progress bar.
    Raises: DynamicConfidenceError for a network that cannot be converted, CheckFailed when the conversion is not the
    network or the graph is not exact.
    """
    network = checkpoint.network()
    converted = snn_from_ann(network, checkpoint.preprocessing, options.method)
    if len(checkpoint.class_names) != converted.readout.shape[0]:
        raise DynamicConfidenceError(
            f"the checkpoint names {len(checkpoint.class_names)} classes, the network has {converted.readout.shape[0]}."
        )
    steps = options.steps or default_steps(options.method, converted.method.levels, len(converted.layers))
    pixels = None if calibration_set is None else calibration_set[0]
    sizes = options.call_sizes
    count = int(np.clip(CHECK_BUDGET / (macs_per_step(converted) * steps * len(sizes)), 1, CHECK_IMAGES))
    images = synthetic_pixels(converted.input_shape, count) if pixels is None else pixels[:count]
    if settled is None:
        settled = check_conversion(network, checkpoint.preprocessing, images[:2])
    # Not for the steps a last call does beyond T: nobody reads them, and the network must not depend on K.
    snn, grids = snap(converted, steps, pixels, options.precision)

    def written(size: int, *, probe: bool = False) -> StepGraph:
        kind = {"frames": options.frames, "count_spikes": options.count_spikes, "form": options.form}
        return onnx_from_snn(snn, steps_per_call=size, probe=probe, **kind)

    graph = joined({size: written(size) for size in sizes})
    temperature, accuracy = 1.0, None
    if calibration_set is not None and pixels is not None:
        logits, label = ann_logits(network, checkpoint.preprocessing, pixels), calibration_set[1]
        # Without an optimum (every answer right) the network's own confidence is as good as any.
        temperature = fit_temperature(logits, label) or 1.0
        accuracy = float((logits.argmax(axis=1) == label).mean())
    manifest = Manifest(
        version=VERSION,
        name=name,
        input=Input(
            name=INPUT,
            shape=graph.input_shape,
            dtype="uint8",
            frames=options.frames,
            preprocessing=checkpoint.preprocessing,
        ),
        scale_input=SCALE_INPUT,
        states=graph.states,
        outputs=graph.outputs,
        steps_per_call=options.steps_per_call,
        max_steps=steps,
        method=snn.method,
        class_names=checkpoint.class_names,
        calibration=Calibration(alpha=default_alpha(snn.method, steps), temperature=temperature),
        numerics=_numerics(options, grids),
        provenance=Provenance(
            checkpoint_sha256=checkpoint_sha256,
            graph_sha256=graph_sha256(graph.model),
            architecture=checkpoint.architecture,
            tools={"dynamic-confidence": __version__, "onnx": onnx.__version__, "torch": str(torch.__version__)},
        ),
        more_steps_per_call=options.more_steps_per_call,
    )
    check_form = rounding_check if options.precision == "fp16" else self_check
    checks = []
    for size in sizes:
        alone, described = variant(graph.model, manifest, size)
        checks.append(check_form(snn, alone, written(size, probe=True).model, described, images, track))
    return Exported(bytes_with_manifest(graph.model, manifest), manifest, settled, checks[0], accuracy)


def _numerics(options: ExportOptions, grids: tuple[Grid, ...]) -> Numerics:
    if options.precision == "fp16":
        return Numerics(precision="fp16", exact=False, tf32=False, grids=())
    exact = all(grid.source == "worst case" for grid in grids)
    return Numerics(precision=options.precision, exact=exact, tf32=False, grids=grids, form=options.form)


@torch.no_grad()
def ann_logits(network: nn.Module, preprocessing: Preprocessing, pixels: np.ndarray, batch: int = 100) -> np.ndarray:
    """Logits `[image, class]` of the quantised network itself on uint8 pixels `[image, channel, y, x]`."""
    batches = (torch.from_numpy(pixels[start : start + batch]) for start in range(0, len(pixels), batch))
    return torch.cat([network(normalised(part, preprocessing)) for part in batches]).flatten(1).numpy()


def _listed(sizes: tuple[int, ...]) -> str:
    return ",".join(map(str, sizes))


def macs_per_step(snn: Snn) -> int:
    """Multiply-accumulates of one dense time step."""
    total = 0
    for layer in (*snn.layers, snn.readout):
        area = layer.shape[1] * layer.shape[2]
        total += sum(synapse.weight.size * area for synapse in layer.synapses)
    return total


def describe(manifest: Manifest) -> dict[str, Any]:
    """What a person wants to know of an export, as plain values."""
    grids = manifest.numerics.grids
    return {
        "method": manifest.method.name,
        "max_steps": manifest.max_steps,
        "steps_per_call": manifest.steps_per_call,
        "more_steps_per_call": list(manifest.more_steps_per_call),
        "precision": manifest.numerics.precision,
        "form": manifest.numerics.form,
        "exact": manifest.numerics.exact,
        "input": list(manifest.input.shape),
        "states": len(manifest.states),
        "coarsest_grid": min((grid.exponent for grid in grids), default=None),
        "measured_head_room": [grid.layer for grid in grids if grid.source == "measured"],
    }
