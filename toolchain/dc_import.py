"""dc-import: convert a checkpoint that somebody else trained into a model.pt."""

from __future__ import annotations

from pathlib import Path

import click

from ..runtime.cli import command_errors

NORMALISATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((129.3 / 255, 124.1 / 255, 112.4 / 255), (68.2 / 255, 65.4 / 255, 70.4 / 255)),
    "none": ((0.0,), (1.0,)),
}
"""Mean and standard deviation of pixels / 255, of each channel or of all."""
CLASS_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--normalisation",
    required=True,
    metavar="NAME|MEAN/STD",
    help="What the network was trained with; a checkpoint does not say: cifar10, cifar100, imagenet, none (pixels / "
    "255), or mean and standard deviation of these: 0.1307/0.3081, or 0.5,0.5,0.5/0.2,0.2,0.2.",
)
@click.option(
    "--size", type=click.IntRange(1), help="Side of the square images. [default: 32 pixels, 224 with a 7x7 stem]"
)
@click.option("--resize", type=int, help="Shorter side before the centre crop to --size. [default: straight to --size]")
@click.option("--class-names", help="cifar10, a file with one name per line, or a,b,c. [default: 0, 1, …]")
@click.option("--bits", type=int, help="Bits that LSQ activations were trained with, 1 to 8. [default: 2]")
@click.option(
    "--levels", type=int, help="Levels L that QCFS activations were trained with, 1 to 255; required for them."
)
@click.option(
    "--dry-run", is_flag=True, help="Write nothing: show what becomes of each key; exit 1 if it does not fit."
)
@click.option("--json", "as_json", is_flag=True, help="Print what became of each key as one JSON object.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="[default: CHECKPOINT_model.pt in this folder]")
@click.version_option(package_name="dynamic-confidence")
@command_errors
def main(
    checkpoint: Path,
    normalisation: str,
    size: int | None,
    resize: int | None,
    class_names: str | None,
    bits: int | None,
    levels: int | None,
    dry_run: bool,
    as_json: bool,
    output: Path | None,
) -> None:
    """Convert CHECKPOINT (a state_dict of a known family) into a model.pt.

    Architecture, width, number of classes and shortcuts are read off the weights. Known families: the paper's demo;
    torchvision (ResNet-18, -34, -50, VGG-16 with batch normalisation); akamaster/pytorch_resnet_cifar10 (ResNet-20 to
    -110); the networks of the QCFS authors, in their old and new naming. Nothing in the file is executed.

    \b
    Examples:
      dc-import resnet20_lsq2.pt --normalisation imagenet --class-names cifar10 -o resnet20.pt
      dc-import vgg16_L4.pth --normalisation cifar10 --levels 4 --class-names cifar10 -o vgg16.pt
      dc-import resnet50.pth --normalisation imagenet --resize 256 --class-names names.txt -o float.pt
      dc-import unknown.pth --normalisation none --dry-run
    """
    from ..models.checkpoint import FORMAT, safe_load, save_checkpoint
    from ..runtime.errors import CheckFailed, DynamicConfidenceError
    from ..runtime.manifest import Preprocessing
    from .foreign import COLORS, checkpoint_from_plan, plan_import
    from .import_view import hints, print_json, print_table, summary

    mean, std = _normalisation(normalisation)
    output = output or Path(f"{checkpoint.stem}_model.pt")
    if output.resolve() == checkpoint.resolve():
        raise DynamicConfidenceError(f"{output}: is the checkpoint itself; choose another name with -o.")
    content = safe_load(checkpoint)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        raise DynamicConfidenceError(f"{checkpoint}: is a model.pt already: `dc-export {checkpoint}`.")

    def preprocessing(form: str) -> Preprocessing:
        side = size or (224 if form == "imagenet" else 32)
        if resize is not None and resize < side:
            raise DynamicConfidenceError(f"--resize {resize}: expected at least --size {side}, which is cut out of it.")
        channels = plan.arguments["in_channels"]
        if len(mean) > channels:
            raise DynamicConfidenceError(
                f"--normalisation {normalisation}: numbers for red, green and blue, but {checkpoint} takes one channel "
                "(grey images). Expected one mean and one standard deviation, such as `--normalisation 0.1307/0.3081`, "
                "or `--normalisation none`, if it was trained on pixels / 255 as they are."
            )
        means, deviations = (numbers * (channels // len(numbers)) for numbers in (mean, std))
        return Preprocessing(COLORS[channels], side, side, means, deviations, resize_shorter_side=resize)

    plan = plan_import(content, str(checkpoint))
    if dry_run and not as_json:
        print_table(plan)
        click.echo(summary(plan))
    try:
        imported = checkpoint_from_plan(plan, preprocessing, _names(class_names), bits, levels)
    except DynamicConfidenceError as error:
        if not dry_run:
            raise
        if as_json:
            print_json(plan, None, str(error))
        raise CheckFailed(str(error)) from error
    if not dry_run:
        save_checkpoint(output, imported)
    if as_json:
        print_json(plan, None if dry_run else output, None)
    elif dry_run:
        click.echo(f"It fits: without --dry-run, {output} is written.")
    else:
        size_line = f"images of {imported.preprocessing.width} x {imported.preprocessing.height} pixels"
        click.echo("\n".join([f"{output}: {summary(plan)}; {size_line}", *hints(plan, output)]))


def _normalisation(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation, one number each for all channels or three."""
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in text.split("/"))
    except ValueError:
        mean, std = (), ()
    if len(mean) == len(std) and len(mean) in (1, 3):
        return mean, std
    from ..runtime.errors import DynamicConfidenceError

    raise DynamicConfidenceError(
        f"--normalisation {text}: expected {', '.join(sorted(NORMALISATIONS))}, or MEAN/STD with one or three numbers "
        "each: 0.1307/0.3081 or 0.5,0.5,0.5/0.2,0.2,0.2."
    )


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    if text in CLASS_NAMES:
        return CLASS_NAMES[text]
    if "," in text:  # before it is taken for a path: a long list is no possible one
        return tuple(text.split(","))
    try:
        return tuple(Path(text).read_text(encoding="utf-8-sig").splitlines())
    except FileNotFoundError:
        reason = "no such file"
    except UnicodeDecodeError:
        reason = "not UTF-8 text"
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    from ..runtime.errors import DynamicConfidenceError

    raise DynamicConfidenceError(
        f"--class-names {text}: {reason}. Expected a text file with a name per line, names with commas between them, "
        f"or {', '.join(CLASS_NAMES)}."
    )
