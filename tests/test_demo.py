"""The demo as a user runs it, and what its trained network must do on the test split of the digits."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dynamic_confidence.benchmarks.evaluate import evaluate
from dynamic_confidence.models.checkpoint import load_checkpoint, sha256_of
from dynamic_confidence.runtime.engine import open_engine
from dynamic_confidence.runtime.exit_policy import policy_from_manifest
from dynamic_confidence.runtime.images import labelled_arrays
from dynamic_confidence.runtime.onnx_file import read_onnx
from dynamic_confidence.runtime.stepping import infer
from dynamic_confidence.toolchain.export import ExportOptions, export


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a whole demo."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "dynamic_confidence.benchmarks.demo", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def split(folder: Path, network: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    manifest = read_onnx(folder / network)[1]
    return labelled_arrays(folder / "digits" / part, manifest.input.preprocessing, manifest.class_names)


def test_it_shows_every_step_and_ends_with_a_table_and_a_picture(demo: tuple[Path, str]) -> None:
    folder, output = demo
    for text in ("$ dc-train", "$ dc-export", "$ dc-calibrate", "$ dc-run", "all at T", "Dynamic", "upper", "█"):
        assert text in output
    assert (folder / "digits.png").stat().st_size > 20_000


@pytest.mark.parametrize("network", ["model_qcfs.onnx", "model_qffs.onnx"])
def test_early_exit_costs_nothing_in_calibration_and_saves_forty_percent_in_test(
    demo: tuple[Path, str], network: str
) -> None:
    folder, _ = demo
    calibration = evaluate(folder / network, *split(folder, network, "calibration"))
    test = evaluate(folder / network, *split(folder, network, "test"))
    assert calibration.accuracy >= calibration.fixed_accuracy
    assert test.saved >= 0.4
    assert test.accuracy > 0.95
    assert test.bound_accuracy >= test.accuracy


def test_no_setting_changes_a_bit_of_any_test_image(demo: tuple[Path, str], tmp_path: Path) -> None:
    """K = 1, 2, 4, 8, batch 1, 7, 64, one and two threads, optimisations on and off: the same logits and exits."""
    folder, _ = demo
    pixels, _ = split(folder, "model_qcfs.onnx", "test")
    checkpoint, sha256 = load_checkpoint(folder / "model.pt"), sha256_of(folder / "model.pt")
    reference = None
    for k in (1, 2, 4, 8):
        path = tmp_path / f"k{k}.onnx"
        path.write_bytes(export(checkpoint, sha256, ExportOptions(steps=8, steps_per_call=k)).content)
        for batch, threads, optimize in itertools.product((1, 7, 64), (1, 2), (True, False)):
            with open_engine(path, batch=batch, threads=threads, optimize=optimize) as engine:
                policy = policy_from_manifest(engine.manifest, threshold=0.5)
                parts = [infer(engine, pixels[i : i + batch], policy) for i in range(0, len(pixels), batch)]
            found = np.concatenate([p.logits for p in parts]), np.concatenate([p.steps for p in parts])
            reference = reference or found
            assert np.array_equal(found[0], reference[0]), (k, batch, threads, optimize)
            assert np.array_equal(found[1], reference[1]), (k, batch, threads, optimize)
    assert reference is not None
    assert len(set(reference[1])) > 3
