"""dc-import: convert a checkpoint that somebody else trained into a model.pt."""

from __future__ import annotations

from pathlib import Path

import click

from ..runtime.cli import command_errors

NORMALISATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
CLASS_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--normalisation",
    required=True,
    type=click.Choice(sorted(NORMALISATIONS)),
    help="Mean and standard deviation the network was trained with; a checkpoint does not say.",
)
@click.option(
    "--size", type=click.IntRange(1), help="Side of the square images. [default: 32 pixels, 224 with a 7x7 stem]"
)
@click.option("--resize", type=int, help="Shorter side before the centre crop to --size. [default: straight to --size]")
@click.option("--class-names", help="cifar10, a file with one name per line, or a,b,c. [default: 0, 1, …]")
@click.option("--bits", type=int, default=2, show_default=True, help="Bits of the activation quantiser.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="[default: CHECKPOINT_model.pt in this folder]")
@click.version_option(package_name="dynamic-confidence")
@command_errors
def main(
    checkpoint: Path,
    normalisation: str,
    size: int | None,
    resize: int | None,
    class_names: str | None,
    bits: int,
    output: Path | None,
) -> None:
    """Convert CHECKPOINT (a state_dict of a known family) into a model.pt.

    Architecture, width, number of classes and shortcuts are read off the weights. Known families: residual networks of
    the paper's demo, of torchvision and of akamaster/pytorch_resnet_cifar10. Nothing in the file is executed.

    \b
    Examples:
      dc-import resnet20_lsq2.pt --normalisation imagenet --class-names cifar10 -o resnet20.pt
    """
    from ..models.checkpoint import FORMAT, safe_load, save_checkpoint
    from ..runtime.errors import DynamicConfidenceError
    from ..runtime.manifest import Preprocessing
    from .foreign import import_checkpoint

    output = output or Path(f"{checkpoint.stem}_model.pt")
    if output.resolve() == checkpoint.resolve():
        raise DynamicConfidenceError(f"{output}: is the checkpoint itself; choose another name with -o.")
    content, names = safe_load(checkpoint), _names(class_names)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        raise DynamicConfidenceError(f"{checkpoint}: is a model.pt already: `dc-export {checkpoint}`.")
    mean, std = NORMALISATIONS[normalisation]

    def preprocessing(form: str) -> Preprocessing:
        side = size or (224 if form == "imagenet" else 32)
        if resize is not None and resize < side:
            raise DynamicConfidenceError(f"--resize {resize}: expected at least --size {side}, which is cut out of it.")
        return Preprocessing(color="RGB", height=side, width=side, mean=mean, std=std, resize_shorter_side=resize)

    imported = import_checkpoint(content, str(checkpoint), preprocessing, names, bits)
    save_checkpoint(output, imported.checkpoint)
    result = imported.checkpoint
    dropped = f", dropped {', '.join(imported.dropped)}" if imported.dropped else ""
    click.echo(
        f"{output}: {result.architecture} ({imported.layout} layout), {result.arguments['activation']} activations, "
        f"{len(result.class_names)} classes, {len(result.state_dict)} tensors, {len(imported.renamed)} renamed{dropped}"
    )


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    if text in CLASS_NAMES:
        return CLASS_NAMES[text]
    if Path(text).is_file():
        return tuple(Path(text).read_text(encoding="utf-8").splitlines())
    return tuple(text.split(","))
