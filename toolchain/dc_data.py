"""dc-data: make the three sets that a network needs, one to train, one to choose on, one to report on."""

from __future__ import annotations

from pathlib import Path

import click

from ..runtime.cli import command_errors

DEFAULT_ROOT = Path("data")


@click.command()
@click.argument("source")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help=f"Folder that holds torchvision's files of SOURCE. [default: {DEFAULT_ROOT}]",
)
@click.option("--download", is_flag=True, help="Fetch that set into --root where it is missing.")
@click.option("--test", type=click.Path(path_type=Path), help="Test images of your own, in SOURCE's layout.")
@click.option(
    "--size", type=click.IntRange(1, 4096), help="Resize images to SIZE x SIZE pixels. [default: the first image's]"
)
@click.option("--validation-fraction", type=float, default=0.1, show_default=True, help="Of SOURCE, of every class.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the split.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write; must be new.")
@click.version_option(package_name="dynamic-confidence")
@command_errors
def main(
    source: str,
    root: Path | None,
    download: bool,
    test: Path | None,
    size: int | None,
    validation_fraction: float,
    seed: int,
    output: Path,
) -> None:
    """Write train.npz, validation.npz and, where there is one, test.npz into a folder.

    SOURCE is cifar10, cifar100, mnist or fashion-mnist, or your own images: one folder per class, or an .npz. The
    validation set is taken out of the training images; train with the first, calibrate on the second, report the third.

    \b
    Examples:
      dc-data cifar10 --download -o cifar10
      dc-data photos/train --test photos/test --size 64 -o photos_sets
      dc-train --data cifar10/train.npz --validation cifar10/validation.npz -o model.pt
    """
    import tempfile

    from ..runtime.errors import DynamicConfidenceError
    from .data import split
    from .sets import parts_of_named, parts_of_own, write_part
    from .torchvision_sets import SETS

    if output.exists():
        raise DynamicConfidenceError(f"{output}: exists. Choose another folder with -o, or remove it.")
    if source in SETS:
        if test is not None or size is not None:
            raise DynamicConfidenceError(f"{source} has a test set and a size of its own: leave --test and --size out.")
        whole, test_set = parts_of_named(source, root or DEFAULT_ROOT, download)
    else:
        if root is not None or download:
            raise DynamicConfidenceError(
                f"--root and --download are for {', '.join(SETS)}; '{source}' is taken as images of your own."
            )
        if test is not None and test.resolve() == Path(source).resolve():
            raise DynamicConfidenceError(f"--test {test}: is SOURCE itself, expected other images.")
        if output.resolve().is_relative_to(Path(source).resolve()):
            raise DynamicConfidenceError(
                f"{output}: lies in SOURCE and would be read as a class of it. Choose another -o."
            )
        whole, test_set = parts_of_own(Path(source), test, size)
    train, validation = split(whole, validation_fraction, seed)
    parts = {"train": train, "validation": validation, **({"test": test_set} if test_set else {})}
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
            folder = Path(temporary) / output.name
            folder.mkdir()
            for name, part in parts.items():
                write_part(folder / f"{name}.npz", part)
            folder.rename(output)
    except OSError as error:
        raise DynamicConfidenceError(f"{output}: cannot write there ({error.strerror}). Choose another -o.") from error
    sizes = ", ".join(f"{name}.npz {len(part)}" for name, part in parts.items())
    image = whole.preprocessing
    form = f"{image.width} x {image.height} pixels, {image.color}"
    click.echo(f"{output}: {sizes} images of {len(whole.class_names)} classes, {form}")
