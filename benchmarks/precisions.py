"""What precision costs: fp32, int8 and fp16 forms of one network on the same images, with paired intervals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ..runtime.cli import command_errors
from ..runtime.manifest import Precision

if TYPE_CHECKING:
    from .evaluate import Evaluation


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), multiple=True, required=True, help="Labelled images.")
@click.option("--calibration", type=click.Path(path_type=Path), required=True, help="Others, for the thresholds.")
@click.option("--limit", type=int, help="Only the first so many images of each set.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The record (.json).")
@command_errors
def main(model: Path, data: tuple[Path, ...], calibration: Path, limit: int | None, output: Path) -> None:
    """Export MODEL in every precision and with both methods, and compare the answers with those of fp32.

    Every form is calibrated by itself, as it would be deployed.

    \b
    Example:
      python -m dynamic_confidence.benchmarks.precisions model.pt --calibration data/val --data data/test -o record.json
    """
    import tempfile

    from ..calib.calibrate import calibrate_file
    from ..models.checkpoint import load_checkpoint, sha256_of
    from ..runtime.cli import progress
    from ..runtime.images import labelled_arrays
    from ..toolchain.export import ExportOptions, export
    from .evaluate import evaluate
    from .record import write_record

    checkpoint, sha256 = load_checkpoint(model), sha256_of(model)
    seen, *sets = (
        labelled_arrays(path, checkpoint.preprocessing, checkpoint.class_names) for path in (calibration, *data)
    )
    results: dict[str, Any] = {"model": model.name, "checkpoint_sha256": sha256, "methods": {}}
    for method in ("qcfs", "qffs"):
        table: dict[str, Any] = {path.name: {} for path in data}
        reference: dict[str, Evaluation] = {}
        for precision in get_args(Precision):
            made = export(checkpoint, sha256, ExportOptions(method=method, precision=precision))
            with tempfile.TemporaryDirectory() as folder:
                network = Path(folder) / "network.onnx"
                network.write_bytes(made.content)
                calibrate_file(network, *seen, data_name=calibration.name)
                for path, (pixels, label) in zip(data, sets, strict=True):
                    what = f"{method} {precision} {path.name}"
                    found = evaluate(network, pixels[:limit], label[:limit], lambda s, what=what: progress(s, what))
                    table[path.name][precision] = _compare(found, reference.setdefault(path.name, found))
                    click.echo(f"{what}: {table[path.name][precision]}")
        results["methods"][method] = table
    write_record(output, "precisions", results)


def _compare(found: Evaluation, fp32: Evaluation) -> dict[str, Any]:
    """Accuracies in percent; differences from fp32 in points, image by image, with their 95 % interval."""
    import numpy as np

    difference = found.trace.correct[:, -1].astype(float) - fp32.trace.correct[:, -1]
    labels = [run.trace.logits[:, -1].argmax(1) for run in (found, fp32)]
    return {
        "images": found.trace.samples,
        "steps": found.trace.steps,
        "accuracy_at_T": 100 * found.fixed_accuracy,
        "difference_points": 100 * float(difference.mean()),
        "difference_95_interval_points": 100 * 1.96 * float(difference.std(ddof=1) / np.sqrt(len(difference))),
        "equal_labels_at_T": float(np.equal(*labels).mean()),
        "threshold": found.manifest.calibration.threshold,
        "accuracy_with_exit": 100 * found.accuracy,
        "mean_steps": found.mean_steps,
    }


if __name__ == "__main__":
    main()
