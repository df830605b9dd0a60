"""One int8 network run in one of many ways, and compared with the torch simulation: logits of every step, exits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from dynamic_confidence.calib.exits import exit_steps
from dynamic_confidence.models.checkpoint import Checkpoint
from dynamic_confidence.runtime.confidence import max_softmax
from dynamic_confidence.runtime.engine import BACKENDS, Engine, StepOutput, open_engine
from dynamic_confidence.runtime.errors import BackendMissing
from dynamic_confidence.runtime.exit_policy import ExitPolicy, policy_from_manifest
from dynamic_confidence.runtime.onnx_file import read_onnx
from dynamic_confidence.runtime.stepping import infer
from dynamic_confidence.toolchain import export as export_module
from dynamic_confidence.toolchain.export import ExportOptions
from dynamic_confidence.toolchain.simulate import simulate, simulation_from_snn
from dynamic_confidence.toolchain.snap import snap
from dynamic_confidence.toolchain.snn_from_ann import snn_from_ann

SIZES = (1, 2, 4, 8)
LEVELS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
"""Of ONNX Runtime's optimisations of the graph as it was exported."""
FACTORS = {
    "method": ("qcfs", "qffs"),
    "engine": (*(name for name in BACKENDS if name != "onnxruntime"), "matmul", "conv"),
    "level": ("default", *LEVELS),
    "k": SIZES,
    "batch": (64, 7, 1),
    "threads": (1, 2),
}
"""`engine`: a form of the graph in ONNX Runtime, or what else runs the form conv, which has no such levels. The
level `default` is what the engine makes of the graph by itself.

The cheap values stand first: `covering` takes them where it has a choice.
"""


@dataclass(frozen=True)
class Known:
    """What one network answers by one method, from the torch simulation."""

    paths: dict[str, Path]
    """By form: files that hold all K."""
    pixels: np.ndarray
    policy: ExitPolicy
    logits: np.ndarray
    """`[image, step, class]`"""
    exits: np.ndarray
    """`[image]`"""
    quiet: np.ndarray
    """`[image]`: whether it stops since no neuron fires."""


def known(checkpoint: Checkpoint, pixels: np.ndarray, method: str, steps: int, folder: Path) -> Known:
    """Export a network in int8 and simulate it; pixels `[image, channel, y, x]`, all of its `steps`."""
    paths = {form: folder / f"{method}_{form}.onnx" for form in ("conv", "matmul")}
    for form, path in paths.items():
        options = ExportOptions(method, steps, *SIZES[:1], precision="int8", form=form, more_steps_per_call=SIZES[1:])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export_module, "CHECK_IMAGES", 1)  # of its own check; what follows has a thousand
            path.write_bytes(export_module.export(checkpoint, "0" * 64, options).content)
    manifest = read_onnx(paths["conv"])[1]
    snn, _ = snap(snn_from_ann(checkpoint.network(), checkpoint.preprocessing, method), steps, precision="int8")
    logits, silent = [], []
    for start in range(0, len(pixels), 50):
        run = list(simulate(simulation_from_snn(snn), pixels[start : start + 50], steps))
        logits.append(np.stack([state.logits.numpy() for _, state in run], axis=1))
        silent.append(np.stack([sum(z.abs().sum((1, 2, 3)) for z in spikes.values()) == 0 for spikes, _ in run], 1))
    logits, silent = np.concatenate(logits), np.concatenate(silent)
    score = max_softmax(logits, manifest.calibration.scale)
    policy = policy_from_manifest(manifest, threshold=in_a_gap(score))
    window = manifest.method.injection_steps
    last = np.full(len(pixels), steps)
    if window is not None:
        silent[:, :window], silent[:, -1] = False, True
        last = silent.argmax(axis=1) + 1
    exits = exit_steps(score, policy.threshold, last)
    rows = np.arange(len(pixels))
    return Known(paths, pixels, policy, logits, exits, (exits < steps) & (score[rows, exits - 1] <= policy.threshold))


def in_a_gap(scores: np.ndarray) -> float:
    """A threshold near the median of the middle step that no score is close to, since exponentials may round otherwise.

    Shapes: scores `[image, step]`.
    """
    low, high = np.quantile(scores[:, scores.shape[1] // 2], [0.4, 0.6])
    near = np.unique(scores[(scores >= low) & (scores <= high)])
    at = int(np.diff(near).argmax())
    assert near[at + 1] - near[at] > 1e-5
    return float(near[at] + near[at + 1]) / 2


class Remembering:
    """An engine that keeps the logits it returned since the reset."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.logits = engine, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def reset(self, scale: float) -> None:
        self._engine.reset(scale)
        self.logits = []

    def step(self, *arguments: Any) -> StepOutput:
        output = self._engine.step(*arguments)
        self.logits.extend(output.logits.copy())
        return output


def everything(engine: Engine, pixels: np.ndarray, policy: ExitPolicy) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exit steps and labels by the stepping loop; then the network runs on, for the logits of every step."""
    remembering = Remembering(engine)
    answers = infer(remembering, pixels, policy)
    while len(remembering.logits) < policy.max_steps:
        remembering.step()
    logits = np.stack(remembering.logits[: policy.max_steps], axis=1)[: len(pixels)]
    return answers.steps, answers.label, logits


def assert_equal(known: Known, case: dict[str, Any], path: Path | None = None) -> None:
    """Run all images as one of the cases of `FACTORS` says, from `path` where it is given."""
    batch, form = case["batch"], "matmul" if case["engine"] == "matmul" else "conv"
    options = {"batch": batch, "threads": case["threads"], "call_sizes": (case["k"],)}
    with opened(path or known.paths[form], case["engine"], case["level"], options) as engine:
        for start in range(0, len(known.pixels), batch):
            rows = slice(start, start + batch)
            steps, label, logits = everything(engine, known.pixels[rows], known.policy)
            np.testing.assert_array_equal(logits, known.logits[rows])
            np.testing.assert_array_equal(steps, known.exits[rows])
            np.testing.assert_array_equal(label, logits[np.arange(len(steps)), steps - 1].argmax(axis=1))


def opened(path: Path, name: str, level: str, options: dict[str, Any]) -> Engine:
    if name in BACKENDS:
        try:
            return open_engine(path, backend=name, **options)
        except BackendMissing as missing:
            pytest.skip(str(missing))
    if level == "default":
        return open_engine(path, backend="onnxruntime", **options)
    asked = Asked(level)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "GraphOptimizationLevel", asked)
        engine = open_engine(path, backend="onnxruntime", optimize=False, **options)
    assert asked.taken
    return engine


class Asked:
    """What `optimize=False` sets: the graph as it was exported, with ONNX Runtime's optimisations up to this level."""

    def __init__(self, level: str) -> None:
        self._level, self.taken = level, False

    @property
    def ORT_DISABLE_ALL(self) -> Any:
        self.taken = True
        return LEVELS[self._level]
