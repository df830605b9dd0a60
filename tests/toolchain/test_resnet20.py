"""The trained 2-bit ResNet-20 that lies beside the clone: published accuracies, exactness, early exit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dynamic_confidence.benchmarks.evaluate import evaluate
from dynamic_confidence.calib.calibrate import calibrate_file
from dynamic_confidence.models.checkpoint import Checkpoint
from dynamic_confidence.toolchain.export import ExportOptions, export
from dynamic_confidence.toolchain.oracle import oracle_steps
from dynamic_confidence.toolchain.simulate import simulate, simulation_from_snn
from dynamic_confidence.toolchain.snap import snap
from dynamic_confidence.toolchain.snn_from_ann import snn_from_ann

Images = tuple[np.ndarray, np.ndarray]


def test_float64_oracle_gives_the_known_accuracies(resnet20: Checkpoint, lossless: Images) -> None:
    """71.2, 82.2 and 86.6 % after 4, 8 and 16 steps on 500 images, within one image."""
    pixels, label = lossless
    snn = snn_from_ann(resnet20.network(), resnet20.preprocessing, "qcfs")
    right = np.zeros(16)
    for start in range(0, 500, 50):
        for t, step in enumerate(oracle_steps(snn, pixels[start : start + 50], 16)):
            right[t] += (step.logits.argmax(1) == label[start : start + 50]).sum()
    assert np.abs(right[[3, 7, 15]] - [356, 411, 433]).max() <= 1


@pytest.mark.parametrize("method", ["qcfs", "qffs"])
def test_exported_network_is_exact_accurate_and_exits_early(
    resnet20: Checkpoint, lossless: Images, method: str, tmp_path: Path
) -> None:
    pixels, label = lossless
    exported = export(resnet20, "0" * 64, ExportOptions(method=method))
    path = tmp_path / "resnet20.onnx"
    path.write_bytes(exported.content)
    report = calibrate_file(path, pixels[::2], label[::2], data_name="even")
    assert report.chosen.accuracy >= report.baseline_accuracy
    unseen = evaluate(path, pixels[1::2], label[1::2])
    assert unseen.saved > 0.4
    assert unseen.accuracy > unseen.fixed_accuracy - 0.02
    snn = snn_from_ann(resnet20.network(), resnet20.preprocessing, method)
    snapped, _ = snap(snn, unseen.trace.steps)
    simulation = simulation_from_snn(snapped)
    states = [state for _, state in simulate(simulation, pixels[1:201:2], unseen.trace.steps)]
    simulated = np.stack([state.logits.numpy() for state in states], axis=1)
    assert np.array_equal(simulated, unseen.trace.logits[:100])
