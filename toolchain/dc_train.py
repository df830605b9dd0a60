"""dc-train: train a network from scratch, or fine-tune one, until its activations are quantised."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.cli import command_errors
from ..runtime.errors import DynamicConfidenceError

if TYPE_CHECKING:
    from ..models.checkpoint import Checkpoint
    from .data import ImageSet

LARGE_SET = 10_000
_PATH = click.Path(path_type=Path)
_NOT_WITH_FROM = ("architecture", "width", "form", "shortcut", "size")


@click.command()
@click.option("--data", required=True, type=_PATH, help="Training set: one folder per class, or .npz (image, label).")
@click.option("--validation", type=_PATH, help="Validation set. [default: a part of --data]")
@click.option("--validation-fraction", type=float, default=0.1, show_default=True, help="That part, of every class.")
@click.option("--from", "start", type=_PATH, help="Start from this model.pt; a ReLU network is quantised.")
@click.option(
    "--architecture",
    help="resnet8, resnet18, resnet20, resnet34, resnet50 or vgg16. [default: resnet8]",
    metavar="NAME",
)
@click.option("--width", type=int, help="Channels of the first stage. [default: the architecture's]")
@click.option(
    "--form", type=click.Choice(["cifar", "imagenet"]), help="Stem for small or large images. [default: cifar]"
)
@click.option("--shortcut", type=click.Choice(["conv", "pad"]), help="Where a ResNet changes size. [default: conv]")
@click.option(
    "--activation", type=click.Choice(["lsq", "relu"]), default="lsq", show_default=True, help="lsq is quantised."
)
@click.option("--bits", type=int, help="Bits of the activations, 1 to 8. [default: 2]")
@click.option("--size", type=int, help="Resize images to SIZE x SIZE pixels. [default: the first image's size]")
@click.option("--epochs", type=int, default=20, show_default=True, help="Passes over the training set.")
@click.option("--batch", type=int, help=f"Images per update. [default: 16, or 128 from {LARGE_SET} images on]")
@click.option("--lr", type=float, help="Largest learning rate. [default: 0.05, or 0.01 with --from]")
@click.option("--weight-decay", type=float, default=5e-4, show_default=True, help="Of all but the quantisers' scales.")
@click.option(
    "--schedule", type=click.Choice(["cosine", "exponential"]), default="cosine", show_default=True, help="Decay."
)
@click.option(
    "--augment",
    type=click.Choice(["none", "shift", "crop-flip"]),
    default="shift",
    show_default=True,
    help="Random changes of the images; crop-flip only where a mirrored image keeps its class.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of weights, order, split, augmentation.",
)
@click.option(
    "--device", type=click.Choice(["cpu", "cuda", "auto"]), default="auto", show_default=True, help="Where to run."
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads. [default: 1 for small networks]")
@click.option("--fresh", is_flag=True, help="Begin anew even where a resume file exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
@click.option("-o", "--output", required=True, type=_PATH, help="The model.pt to write.")
@click.version_option(package_name="dynamic-confidence")
@command_errors
def main(**given: Any) -> None:
    """Train a network with quantised activations, ready for `dc-export`.

    Every epoch ends with a resume file OUTPUT.training: after Ctrl-C, the same command goes on where it stopped. The
    weights of the best epoch on the validation set are written.

    \b
    Examples:
      dc-train --data demo/digits/train --architecture resnet8 --width 8 --epochs 15 -o demo/model.pt
      dc-train --data train/ --validation val/ --architecture resnet18 --augment crop-flip --epochs 100 -o model.pt
      dc-train --data train/ --from float.pt --bits 2 --epochs 60 --schedule exponential -o quantised.pt
    """
    output: Path = given["output"]
    _check_writable(output)
    _check_combination(given)

    from ..models.checkpoint import save_checkpoint
    from .threads import operations_per_batch, use_threads
    from .train import TrainingOptions, torch_device, train
    from .training_view import TrainingView

    torch_device(given["device"])
    checkpoint, train_set, validation_set = _starting_point(given)
    options = TrainingOptions(
        epochs=given["epochs"],
        batch=given["batch"] or (128 if len(train_set) >= LARGE_SET else 16),
        lr=given["lr"] or (0.01 if given["start"] else 0.05),
        weight_decay=given["weight_decay"],
        schedule=given["schedule"],
        augment=given["augment"],
        seed=given["seed"],
    )
    use_threads(given["threads"], operations_per_batch(checkpoint, options.batch))
    state = output.with_name(f"{output.name}.training")
    if given["fresh"]:
        state.unlink(missing_ok=True)
    began = time.monotonic()
    try:
        with TrainingView(options.epochs) as view:
            trained = train(
                checkpoint,
                train_set,
                validation_set,
                options,
                state,
                on_epoch=view.epoch,
                on_batch=view.batch,
                on_resume=view.resume,
                device=given["device"],
            )
    except KeyboardInterrupt:
        resumable = f"The same command resumes from {state}." if state.exists() else "No epoch was finished."
        click.echo(resumable, err=True)
        raise
    trained = replace(trained, notes={**trained.notes, "data": given["data"].resolve().name})
    save_checkpoint(output, trained)
    state.unlink(missing_ok=True)
    accuracy, seconds = trained.notes["validation_accuracy"], time.monotonic() - began
    if given["as_json"]:
        click.echo(json.dumps({"model": str(output), "seconds": round(seconds, 3), **trained.notes}))
    click.echo(
        f"{output}: validation accuracy {100 * accuracy:.2f} % of {len(validation_set)} images "
        f"(epoch {trained.notes['best_epoch']} of {options.epochs}), {seconds:.1f} s",
        err=given["as_json"],
    )


def _check_writable(output: Path) -> None:
    """Raise now what would otherwise be raised after hours of training."""
    if output.is_dir():
        raise DynamicConfidenceError(f"{output}: is a folder, expected a file name. Choose another place with -o.")
    if output.suffix not in (".pt", ".pth"):
        raise DynamicConfidenceError(f"{output}: a checkpoint is named .pt: -o {output.with_suffix('.pt')}")
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise DynamicConfidenceError(
            f"{output}: cannot write there ({error.strerror}). Choose another place with -o."
        ) from error


def _check_combination(given: dict[str, Any]) -> None:
    if given["start"]:
        for name in _NOT_WITH_FROM:
            if given[name] is not None:
                raise DynamicConfidenceError(
                    f"--{name} cannot be set with --from: the checkpoint says it. Leave it out."
                )
    if given["bits"] is not None and given["activation"] == "relu":
        raise DynamicConfidenceError("--bits is for quantised activations. Leave it out, or use --activation lsq.")
    for name in ("batch", "lr", "size"):
        if given[name] is not None and given[name] <= 0:
            raise DynamicConfidenceError(f"--{name} {given[name]}: expected a number above 0.")


def _starting_point(given: dict[str, Any]) -> tuple[Checkpoint, ImageSet, ImageSet]:
    """Read the data and make or load the network to start from."""
    from ..models.checkpoint import load_checkpoint
    from .data import load_image_set, split
    from .train import untrained

    before = load_checkpoint(given["start"]) if given["start"] else None
    if before:
        whole = load_image_set(given["data"], before.preprocessing, before.class_names)
        checkpoint = _with_activation(before, given["activation"], given["bits"])
    else:
        whole = load_image_set(given["data"], size=given["size"])
        named = {name: given[name] for name in ("width", "form", "shortcut") if given[name] is not None}
        arguments = {**named, "activation": given["activation"], "bits": given["bits"] or 2}
        name = given["architecture"] or "resnet8"
        checkpoint = untrained(name, arguments, whole.preprocessing, whole.class_names, given["seed"])
    if given["validation"]:
        return checkpoint, whole, load_image_set(given["validation"], whole.preprocessing, whole.class_names)
    return checkpoint, *split(whole, given["validation_fraction"], given["seed"])


def _with_activation(checkpoint: Checkpoint, activation: str, bits: int | None) -> Checkpoint:
    """Quantise a float checkpoint where lsq is asked for; a quantised one is fine-tuned as it is."""
    from .train import quantised_from_float

    has, has_bits = checkpoint.arguments.get("activation", "lsq"), checkpoint.arguments.get("bits", 2)
    if has == "relu":
        return checkpoint if activation == "relu" else quantised_from_float(checkpoint, bits or 2)
    if activation == "relu" or bits not in (None, has_bits):
        raise DynamicConfidenceError(
            f"the checkpoint is quantised already (lsq, {has_bits} bits). Leave --activation and --bits out to "
            "fine-tune it, or start from the float network."
        )
    return checkpoint
