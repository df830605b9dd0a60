"""dc-train: train a network from scratch, or fine-tune one, until its activations are quantised."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.cli import command_errors
from ..runtime.errors import DynamicConfidenceError
from .training_output import check_output, held

if TYPE_CHECKING:
    from ..models.checkpoint import Checkpoint
    from .data import ImageSet
    from .distributed import Workers

_PATH = click.Path(path_type=Path)
_NOT_WITH_FROM = ("architecture", "width", "form", "shortcut", "size", "resize")
_RECIPE = ("epochs", "batch", "lr", "weight_decay", "schedule", "augment", "seed", "amp")


@click.command()
@click.option(
    "--data",
    required=True,
    type=_PATH,
    help="Training set: one folder per class, .npz (image, label), or torchvision's folder of CIFAR or MNIST.",
)
@click.option("--validation", type=_PATH, help="Validation set. [default: a part of --data]")
@click.option(
    "--validation-fraction",
    type=float,
    default=0.1,
    show_default=True,
    help="Share of --data held back without --validation.",
)
@click.option(
    "--split-seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of what is held back: keep it from stage to stage.",
)
@click.option("--from", "start", type=_PATH, help="Start from this model.pt; a ReLU network is quantised.")
@click.option(
    "--architecture",
    help="resnet8, resnet18, resnet20, resnet32, resnet34, resnet44, resnet50, resnet56, resnet110 or vgg16. "
    "[default: resnet8]",
    metavar="NAME",
)
@click.option("--width", type=int, help="Channels of the first stage. [default: the architecture's]")
@click.option(
    "--form", type=click.Choice(["cifar", "imagenet"]), help="Stem for small or large images. [default: cifar]"
)
@click.option("--shortcut", type=click.Choice(["conv", "pad"]), help="Where a ResNet changes size. [default: conv]")
@click.option(
    "--activation",
    type=click.Choice(["lsq", "qcfs", "relu"]),
    help="lsq and qcfs are quantised. [default: lsq, or the checkpoint's if that is quantised]",
)
@click.option("--bits", type=int, help="Bits of lsq activations, 1 to 8. [default: 2]")
@click.option("--levels", type=int, help="Levels L of qcfs activations, 1 to 255. [default: 4]")
@click.option("--size", type=int, help="Resize images to SIZE x SIZE pixels. [default: the first image's size]")
@click.option("--resize", type=int, help="Shorter side before the centre crop to --size. [default: straight to --size]")
@click.option(
    "--recipe",
    type=click.Choice(["fast", "paper"]),
    default="fast",
    show_default=True,
    help="What the options below default to: few epochs, or those of the paper (section 6.1).",
)
@click.option("--epochs", type=int, help="Passes over the training set. [default: 20; paper: 60]")
@click.option("--batch", type=int, help="Images per update. [default: 16, or 128 from 10000 images on; paper: 32]")
@click.option(
    "--lr",
    type=float,
    help="Largest learning rate. [default: 0.05, with --from 0.01; from 10000 images on 0.2 and 0.05; paper: 0.01]",
)
@click.option("--weight-decay", type=float, help="Of all but the quantisers' scales. [default: 5e-4; paper: 2.5e-5]")
@click.option(
    "--schedule",
    type=click.Choice(["cosine", "exponential"]),
    help="Decay of the learning rate. [default: cosine; paper: exponential]",
)
@click.option(
    "--augment",
    type=click.Choice(["none", "shift", "crop-flip"]),
    help="Random changes of the images; crop-flip only where a mirrored image keeps its class. [default: shift; "
    "paper: crop-flip]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of weights, order, augmentation.",
)
@click.option(
    "--device", type=click.Choice(["cpu", "cuda", "auto"]), default="auto", show_default=True, help="Where to run."
)
@click.option("--amp", is_flag=True, help="Mixed precision: convolutions in bfloat16.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads. [default: 1 for small networks]")
@click.option("--fresh", is_flag=True, help="Begin anew even where a resume file or -o exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
@click.option("-o", "--output", required=True, type=_PATH, help="The model.pt to write.")
@click.version_option(package_name="dynamic-confidence")
@command_errors
def main(**given: Any) -> None:
    """Train a network with quantised activations, ready for `dc-export`.

    Every epoch ends with a resume file OUTPUT.training: after Ctrl-C, the same command goes on where it stopped. The
    weights of the best epoch on the validation set are written; until then the best network so far is
    OUTPUT.training.best.pt. Validation images are never trained on; without --validation they are a tenth of --data
    (5,000 of CIFAR-10's training images). The test set is not looked at.

    Several GPUs, or processes, of one machine: torchrun --nproc-per-node 2 --no-python dc-train …

    \b
    Examples:
      dc-train --data demo/digits/train --architecture resnet8 --width 8 --epochs 15 -o demo/model.pt
      dc-train --data train/ --validation val/ --architecture resnet18 --augment crop-flip --epochs 100 -o model.pt
    The paper's way, a float network first and then its recipe:
      dc-train --data train/ --architecture resnet18 --activation relu --augment crop-flip --epochs 100 -o float.pt
      dc-train --data train/ --from float.pt --bits 2 --recipe paper -o quantised.pt
    """
    output: Path = given["output"]
    check_output(output)
    _check_combination(given)

    from .distributed import workers
    from .train import torch_device

    with workers(torch_device(given["device"])) as team, held(output) if team.first else contextlib.nullcontext():
        _train(given, output, team)


def _train(given: dict[str, Any], output: Path, team: Workers) -> None:
    from ..models.checkpoint import save_checkpoint
    from ..runtime.images import listed
    from .data import classes_missing
    from .recipe import recipe
    from .threads import operations_per_batch, use_threads
    from .train import best_path, check_fit, train
    from .training_view import TrainingView

    state = output.with_name(f"{output.name}.training")
    if output.exists() and not given["fresh"] and not state.exists():
        raise DynamicConfidenceError(f"{output}: exists. Train another one with another -o, or replace it: --fresh.")
    checkpoint, train_set, validation_set = _starting_point(given)
    missing = classes_missing(validation_set, train_set)
    if missing and team.first:
        click.echo(
            f"{given['validation']}: no image of {listed(missing)}: the best epoch is chosen without "
            f"{len(missing)} of {len(train_set.class_names)} classes.",
            err=True,
        )
    changes = {name: given[name] for name in _RECIPE}
    options = recipe(given["recipe"], len(train_set), fine_tuning=bool(given["start"]), **changes)
    check_fit(checkpoint.network(), checkpoint, train_set)
    use_threads(given["threads"], operations_per_batch(checkpoint, options.batch))
    if given["fresh"] and team.first:
        for old in (state, best_path(state)):
            old.unlink(missing_ok=True)
    team.wait()
    began = time.monotonic()
    try:
        with TrainingView(options.epochs, shown=team.first) as view:
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
                workers=team,
            )
    except (KeyboardInterrupt, DynamicConfidenceError) as error:
        if team.first and best_path(state).exists() and isinstance(error, DynamicConfidenceError):
            raise type(error)(f"{error} The best network so far is kept: {best_path(state)}.") from error
        if team.first and isinstance(error, KeyboardInterrupt):
            click.echo(
                f"The same command resumes from {state}." if state.exists() else "No epoch was finished.", err=True
            )
        raise
    if not team.first:
        return
    trained = replace(trained, notes={**trained.notes, "data": given["data"].resolve().name})
    save_checkpoint(output, trained)
    for leftover in (state, best_path(state)):
        leftover.unlink(missing_ok=True)
    accuracy, seconds = trained.notes["validation_accuracy"], time.monotonic() - began
    if given["as_json"]:
        click.echo(json.dumps({"model": str(output), "seconds": round(seconds, 3), **trained.notes}))
    click.echo(
        f"{output}: validation accuracy {100 * accuracy:.2f} % of {len(validation_set)} images "
        f"(epoch {trained.notes['best_epoch']} of {options.epochs}), {seconds:.1f} s",
        err=given["as_json"],
    )


def _check_combination(given: dict[str, Any]) -> None:
    if given["start"]:
        for name in _NOT_WITH_FROM:
            if given[name] is not None:
                raise DynamicConfidenceError(
                    f"--{name} cannot be set with --from: the checkpoint says it. Leave it out."
                )
    for name in ("batch", "lr", "size", "epochs"):
        if given[name] is not None and given[name] <= 0:
            raise DynamicConfidenceError(f"--{name} {given[name]}: expected a number above 0.")
    if given["validation"] and given["validation"].resolve() == given["data"].resolve():
        raise DynamicConfidenceError(
            "--validation is the training set itself: leave it out and a part of --data is held back."
        )


def _starting_point(given: dict[str, Any]) -> tuple[Checkpoint, ImageSet, ImageSet]:
    """Read the data and make or load the network to start from."""
    from ..models.activations import activation_arguments
    from ..models.checkpoint import load_checkpoint
    from .data import load_image_set, split
    from .starting_network import continued, untrained

    before = load_checkpoint(given["start"]) if given["start"] else None
    if before:
        whole = load_image_set(given["data"], before.preprocessing, before.class_names)
        checkpoint = continued(before, given["activation"], given["bits"], given["levels"])
    else:
        whole = load_image_set(given["data"], size=given["size"], resize=given["resize"])
        named = {name: given[name] for name in ("width", "form", "shortcut") if given[name] is not None}
        activation = activation_arguments(given["activation"] or "lsq", given["bits"], given["levels"])
        arguments = {**named, **activation}
        name = given["architecture"] or "resnet8"
        checkpoint = untrained(name, arguments, whole.preprocessing, whole.class_names, given["seed"])
    if given["validation"]:
        return checkpoint, whole, load_image_set(given["validation"], whole.preprocessing, whole.class_names)
    return checkpoint, *split(whole, given["validation_fraction"], given["split_seed"])
