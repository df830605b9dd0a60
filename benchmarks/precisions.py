"""What precision costs: fp32, int8 and fp16 forms of networks on the same images, with paired intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ..runtime.cli import command_errors
from ..runtime.manifest import Precision

if TYPE_CHECKING:
    import numpy as np

    from ..calib.trace import Trace
    from ..models.checkpoint import Checkpoint
    from ..runtime.manifest import Calibration
    from .model_and_data import Images

METHODS = ("qcfs", "qffs")
REFERENCE: Precision = "fp32"


@click.command()
@click.argument("networks", nargs=-1, required=True, metavar="MODEL=DATA…")
@click.option("-T", "--steps", type=int, default=32, show_default=True, help="Time steps to choose T of QCFS from.")
@click.option("--calibration-images", type=int, default=1000, show_default=True, help="Of `validation`.")
@click.option("--limit", type=int, help="Only so many images of `test`.")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice([name for name in get_args(Precision) if name != REFERENCE]),
    multiple=True,
    default=("int8",),
    show_default=True,
    help="What to compare with fp32, several times.",
)
@click.option("--threads", type=int, help="CPU threads of the engines. [default: their own choice]")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The record (.json).")
@command_errors
def main(
    networks: tuple[str, ...],
    steps: int,
    calibration_images: int,
    limit: int | None,
    precisions: tuple[Precision, ...],
    threads: int | None,
    output: Path,
) -> None:
    """Export every MODEL (model.pt) in fp32 and other precisions, by both methods, and compare the answers.

    DATA is a folder with the parts `validation` and `test`, as `dc-data` writes them. T is chosen on the first with
    fp32: the first step that comes within 0.1 points of the best accuracy. Every form is calibrated there by itself, as
    it would be deployed, and reported on the second. The page docs/precisions.md begins with what this prints.
    What OUTPUT already holds is kept, so the command goes on where it was stopped; remove the file to begin anew.

    \b
    Example:
      python -m dynamic_confidence.benchmarks.precisions models/pretrained/resnet20_cifar10.pt=cifar10 \\
          models/pretrained/resnet8_mnist.pt=mnist -o precisions.json
    """
    from ..models.checkpoint import load_checkpoint, sha256_of
    from ..runtime.images import labelled_arrays
    from .model_and_data import model_and_parts, spread
    from .precisions_page import page
    from .record import write_study

    wanted = [(model, load_checkpoint(model), parts) for model, parts in map(model_and_parts, networks)]
    known = json.loads(output.read_text(encoding="utf-8"))["results"]["settings"] if output.exists() else []
    settings: list[dict[str, Any]] = []
    for model, checkpoint, parts in wanted:
        images = [labelled_arrays(part, checkpoint.preprocessing, checkpoint.class_names) for part in parts]
        calibration, test = map(spread, images, (calibration_images, limit))
        for method in METHODS:
            setting = {
                "network": model.stem,
                "architecture": checkpoint.architecture,
                "checkpoint_sha256": sha256_of(model),
                "method": method,
                "traced_steps": steps if method == "qcfs" else None,
                "data": parts[0].parent.name,
                "calibration_images": len(calibration[0]),
                "test_images": len(test[0]),
            }
            done = next((other for other in known if setting.items() <= other.items()), None)
            if done is None or not {*precisions} <= done["precisions"].keys():
                done = setting | measured(checkpoint, setting, (REFERENCE, *precisions), calibration, test, threads)
                known.append(done)
                write_study(output, "precisions", {"settings": known})
            settings.append(done)
    write_study(output, "precisions", {"settings": settings})
    click.echo(page(settings))


def measured(
    checkpoint: Checkpoint,
    setting: dict[str, Any],
    precisions: tuple[Precision, ...],
    calibration: Images,
    test: Images,
    threads: int | None,
) -> dict[str, Any]:
    """Accuracies (fractions) of one network by one method in these precisions, and how they differ from the first."""
    import tempfile

    import numpy as np

    from ..calib.calibrate import Settings, calibrate_network, trace_from_file
    from ..calib.thresholds import fixed_accuracy
    from ..runtime.cli import progress
    from ..toolchain.export import ExportOptions, ann_logits, export
    from .tables.setting import CLOSE

    method, name = setting["method"], f"{setting['network']}, {setting['method']}"

    def traced(network: Path, images: Images, what: str) -> Trace:
        return trace_from_file(
            network, *images, what, lambda calls: progress(calls, f"{name}, {what}"), threads=threads
        )

    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder) / "network.onnx"

        def write(precision: Precision, steps: int | None) -> None:
            options = ExportOptions(method, steps, precision=precision)
            made = export(checkpoint, setting["checkpoint_sha256"], options, calibration_set=calibration)
            network.write_bytes(made.content)

        write(precisions[0], setting["traced_steps"])
        accuracy = fixed_accuracy(traced(network, calibration, "choosing T"))
        steps = int(np.flatnonzero(accuracy >= accuracy.max() - CLOSE)[0]) + 1
        found: dict[str, tuple[Trace, Calibration]] = {}
        for precision in precisions:
            write(precision, steps)
            trace = traced(network, calibration, f"{precision}, calibrating")
            report = calibrate_network(network, trace, Settings(), setting["data"])
            found[precision] = traced(network, test, f"{precision}, testing"), report.calibration
    ann = ann_logits(checkpoint.network(), checkpoint.preprocessing, test[0])
    return {
        "steps": steps,
        "ann_accuracy": float((ann.argmax(axis=1) == test[1]).mean()),
        "precisions": {precision: compared(*one, *found[precisions[0]]) for precision, one in found.items()},
    }


def compared(trace: Trace, calibration: Calibration, other: Trace, other_calibration: Calibration) -> dict[str, Any]:
    """What one form answers, and its accuracy less that of another form on the same images; fractions."""
    import numpy as np

    from ..calib.exits import replay

    exits = [replay(t, c) for t, c in ((trace, calibration), (other, other_calibration))]
    rows = np.arange(trace.samples)
    stopped = [t.correct[rows, e - 1] for t, e in zip((trace, other), exits, strict=True)]
    return {
        "accuracy_at_step": trace.correct.mean(axis=0).tolist(),
        "threshold": calibration.threshold,
        "accuracy_with_exit": float(stopped[0].mean()),
        "mean_steps": float(exits[0].mean()),
        "difference_at_T": _paired(trace.correct[:, -1], other.correct[:, -1]),
        "difference_with_exit": _paired(*stopped),
        "equal_labels_at_T": float((trace.logits[:, -1].argmax(1) == other.logits[:, -1].argmax(1)).mean()),
    }


def _paired(right: np.ndarray, reference: np.ndarray) -> list[float]:
    """The difference of two accuracies on the same images, and half the width of its 95 % interval."""
    from .tables.setting import paired_interval

    lost = reference.astype(int) - right.astype(int)
    return [0.0 - float(lost.mean()), paired_interval(lost)]


if __name__ == "__main__":
    main()
