"""What exactness costs: the exported network against the unsnapped one, the engine against the simulation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.cli import command_errors

if TYPE_CHECKING:
    import numpy as np

    from ..toolchain.simulate import Simulation

REPORTED = (1, 2, 4, 8, 16)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--half", type=click.Path(path_type=Path), required=True, help="Labelled images: every other calibrates.")
@click.option("--test", type=click.Path(path_type=Path), multiple=True, help="More labelled images, only tested on.")
@click.option("--limit", type=int, help="Only so many images of each --test set.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The record (.json).")
@command_errors
def main(model: Path, half: Path, test: tuple[Path, ...], limit: int | None, output: Path) -> None:
    """Export MODEL with both methods and compare, image by image.

    For every set: accuracy of the float64 network before snapping and of the exported one (with the 95 % interval of
    the paired difference), whether the engine's logits, labels and exit steps equal the torch simulation's on every
    image, and Dynamic Confidence with a threshold from one half of --half.

    \b
    Example:
      python -m dynamic_confidence.benchmarks.exactness model.pt --half data/validation --test data/test -o record.json
    """
    import tempfile

    from ..calib.calibrate import calibrate_file
    from ..models.checkpoint import load_checkpoint, sha256_of
    from ..runtime.images import labelled_arrays
    from ..toolchain.export import ExportOptions, ann_logits, export
    from .model_and_data import spread
    from .record import write_study

    checkpoint = load_checkpoint(model)
    sets = {
        path.name: labelled_arrays(path, checkpoint.preprocessing, checkpoint.class_names) for path in (half, *test)
    }
    for path in test:
        sets[path.name] = spread(sets[path.name], limit)
    pixels, label = sets.pop(half.name)
    sets = {half.name: (pixels, label), **sets}
    # Dynamic Confidence is judged on images that its threshold has not seen.
    unseen = {name: slice(1, None, 2) if name == half.name else slice(None) for name in sets}
    network = checkpoint.network()
    results: dict[str, Any] = {"model": model.name, "checkpoint_sha256": sha256_of(model), "methods": {}}
    results["ann_accuracy"] = {
        name: float((ann_logits(network, checkpoint.preprocessing, x).argmax(1) == y).mean())
        for name, (x, y) in sets.items()
    }
    for method in ("qcfs", "qffs"):
        exported = export(checkpoint, results["checkpoint_sha256"], ExportOptions(method=method))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            path.write_bytes(exported.content)
            calibrate_file(path, pixels[::2], label[::2], data_name=f"{half.name} (even)", rule="grid")
            results["methods"][method] = {
                name: _compare(checkpoint, path, method, x, y, unseen[name], f"{method} {name}")
                for name, (x, y) in sets.items()
            }
        results["methods"][method]["grids"] = [
            [grid.layer, grid.exponent, grid.source] for grid in exported.manifest.numerics.grids
        ]
        click.echo(f"{method}:")
        for name in sets:
            click.echo(f"  {name}: {results['methods'][method][name]}")
    write_study(output, "exactness", results)


def _compare(
    checkpoint: Any, path: Path, method: str, x: np.ndarray, y: np.ndarray, unseen: slice, what: str
) -> dict[str, Any]:
    import numpy as np
    import torch

    from ..calib.exits import replay
    from ..runtime.cli import progress
    from ..toolchain.simulate import simulation_from_snn
    from ..toolchain.snap import snap
    from ..toolchain.snn_from_ann import snn_from_ann
    from .evaluate import evaluate

    evaluation = evaluate(path, x, y, lambda starts: progress(starts, f"engine, {what}"))
    steps, trace = evaluation.trace.steps, evaluation.trace
    converted = snn_from_ann(checkpoint.network(), checkpoint.preprocessing, method)
    snapped, _ = snap(converted, steps)
    simulated = _logits(simulation_from_snn(snapped), x, steps, f"simulation, {what}")
    unsnapped = _logits(simulation_from_snn(converted, torch.float64), x, steps, f"unsnapped float64, {what}")
    calibration = evaluation.manifest.calibration
    exits = replay(type(trace)(simulated, y, trace.last_step), calibration)
    right, before = trace.correct, unsnapped.argmax(2) == y[:, None]
    difference = right[:, -1].astype(float) - before[:, -1]
    reported = [t for t in REPORTED if t <= steps]
    return {
        "images": len(y),
        "steps": steps,
        "accuracy_unsnapped_float64": {t: float(before[:, t - 1].mean()) for t in [*reported, steps]},
        "accuracy_exported": {t: float(right[:, t - 1].mean()) for t in [*reported, steps]},
        "difference_at_T_points": 100 * float(difference.mean()),
        "difference_95_interval_points": 100 * 1.96 * float(difference.std(ddof=1) / np.sqrt(len(y))),
        "engine_equals_simulation": {
            "logits": bool(np.array_equal(simulated, trace.logits)),
            "labels": bool(np.array_equal(simulated.argmax(2), trace.logits.argmax(2))),
            "exit_steps": bool(np.array_equal(exits, evaluation.exits)),
        },
        "threshold": calibration.threshold,
        "dynamic_confidence": {
            "images": len(y[unseen]),
            "accuracy": float(right[np.arange(len(y)), exits - 1][unseen].mean()),
            "accuracy_at_T": float(right[unseen, -1].mean()),
            "mean_steps": float(exits[unseen].mean()),
            "mean_steps_without_confidence": float(trace.last_step[unseen].mean()),
        },
    }


def _logits(simulation: Simulation, x: np.ndarray, steps: int, what: str, batch: int = 50) -> np.ndarray:
    """Accumulated logits `[sample, step, class]`, float32."""
    import numpy as np

    from ..runtime.cli import progress
    from ..toolchain.simulate import simulate

    parts = []
    for start in progress(range(0, len(x), batch), what):
        states = [state for _, state in simulate(simulation, x[start : start + batch], steps)]
        parts.append(np.stack([state.logits.numpy() for state in states], axis=1))
    return np.concatenate(parts).astype(np.float32)


if __name__ == "__main__":
    main()
