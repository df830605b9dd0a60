"""Which networks become plans on a machine without a GPU: sizes, build times, and whether two builds are alike."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import click

from ..runtime.cli import command_errors
from ..runtime.manifest import Precision

if TYPE_CHECKING:
    import onnx

    from ..models.checkpoint import Checkpoint
    from ..runtime.signature import Signature

STUDY = "plans"
TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120")
METHODS = ("qcfs", "qffs")
STEPS_PER_CALL = (1, 4)
NETWORKS = {  # form and number of classes
    "resnet8": ("cifar", 10),
    "resnet20": ("cifar", 10),
    "resnet18": ("cifar", 10),
    "vgg16": ("cifar", 10),
    "resnet50": ("imagenet", 1000),
}


class Cell(NamedTuple):
    network: str
    method: str
    precision: Precision
    steps_per_call: int

    def __str__(self) -> str:
        return f"{self.network}/{self.method}/{self.precision}/K{self.steps_per_call}"


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The record (.json).")
@click.option("--only", multiple=True, help="Only cells that begin so: resnet8, resnet8/qcfs, vgg16/qffs/int8/K4 …")
@click.option("--precision", "precisions", type=click.Choice(get_args(Precision)), multiple=True, help="Only these.")
@command_errors
def main(output: Path, only: tuple[str, ...], precisions: tuple[Precision, ...]) -> None:
    """Build a multi-target TensorRT-RTX plan of every network, method, precision and K, each twice, and record it.

    The weights are random: nothing here is about accuracy. Cells that stand in the record already are kept, so an
    interrupted run goes on where it was.

    \b
    Example:
      python -m dynamic_confidence.benchmarks.plans -o plans.json --only resnet8 --precision fp32
    """
    from ..runtime.cli import progress
    from ..runtime.errors import DynamicConfidenceError
    from .record import write_study

    wanted = [
        cell
        for cell in cells()
        if (not only or str(cell).startswith(only)) and (not precisions or cell.precision in precisions)
    ]
    if not wanted:
        raise DynamicConfidenceError(f"--only {' '.join(only)}: no cell begins so, expected one like {next(cells())}.")
    settings = {"targets": list(TARGETS), "tensorrt_rtx": _version()}
    done = _recorded(output, settings)
    for cell in progress([cell for cell in wanted if str(cell) not in done], "plans"):
        done[str(cell)] = measure(cell)
        write_study(output, STUDY, {**settings, "cells": done})
        click.echo(f"{cell}: {done[str(cell)]}")
    click.echo(f"{output}: {len(done)} of {len(list(cells()))} cells")


def cells() -> Iterator[Cell]:
    """Every cell of the matrix, a network's together."""
    return (Cell(*row) for row in product(NETWORKS, METHODS, get_args(Precision), STEPS_PER_CALL))


def measure(cell: Cell) -> dict[str, Any]:
    """Export and build one cell, the plan twice.

    Raises: CheckFailed when an export fails its self-check or the parsed network is not the manifest's.
    """
    import tempfile
    import time

    import onnx

    from ..runtime.plan_file import plan_header
    from ..runtime.signature import signature_of_manifest
    from ..toolchain.export import ExportOptions, export
    from ..toolchain.plan_from_onnx import plan_from_onnx

    checkpoint = checkpoint_of(cell.network)
    options = ExportOptions(method=cell.method, precision=cell.precision, steps_per_call=cell.steps_per_call)
    started = time.perf_counter()
    exported = export(checkpoint, "0" * 64, options, name=str(cell).replace("/", "_"))
    export_seconds = time.perf_counter() - started
    plans, build_seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        path.write_bytes(exported.content)
        for _ in range(2):
            started = time.perf_counter()
            plans.append(plan_from_onnx(path, flavour="rtx", targets=TARGETS))
            build_seconds.append(time.perf_counter() - started)
    first, second = plans
    header, signature = plan_header(first.content), signature_of_manifest(first.sidecar.manifest)
    return {
        "onnx_bytes": len(exported.content),
        "plan_bytes": len(first.content),
        "export_seconds": round(export_seconds, 2),
        "build_seconds": [round(seconds, 2) for seconds in build_seconds],
        "layers": first.layers,
        "io_tensors": len(signature),
        "signature_is_the_graphs": signature == io_of(onnx.load_model_from_string(exported.content)),
        "header": header and list(header),
        "identical": first.content == second.content,
    }


def io_of(model: onnx.ModelProto) -> Signature:
    """Inputs and outputs as the graph itself declares them."""
    from onnx.helper import tensor_dtype_to_np_dtype

    from ..runtime.signature import Tensor

    def tensor(mode: Literal["input", "output"], value: onnx.ValueInfoProto) -> Tensor:
        kind = value.type.tensor_type
        shape = tuple(-1 if dim.dim_param else dim.dim_value for dim in kind.shape.dim)
        return Tensor(mode, tensor_dtype_to_np_dtype(kind.elem_type).name, shape)

    inputs = {value.name: tensor("input", value) for value in model.graph.input}
    return inputs | {value.name: tensor("output", value) for value in model.graph.output}


@functools.lru_cache(maxsize=1)
def checkpoint_of(network: str) -> Checkpoint:
    """The network of the matrix with this name; torch is told to use as many threads as `dc-export` would."""
    from ..toolchain.export import CHECK_IMAGES
    from ..toolchain.threads import operations_per_batch, use_threads
    from .networks import random_checkpoint
    from .preprocessings import CIFAR, IMAGENET

    form, classes = NETWORKS[network]
    preprocessing = {"cifar": CIFAR, "imagenet": IMAGENET}[form]
    checkpoint = random_checkpoint(network, preprocessing, form=form, classes=classes)
    use_threads(None, operations_per_batch(checkpoint, CHECK_IMAGES))
    return checkpoint


def _recorded(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Cells measured before. Raises: DynamicConfidenceError for a record of another machine or other versions."""
    import json

    from ..runtime.errors import DynamicConfidenceError
    from .record import differing, machine

    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_bytes())
        before = {**record["machine"], **{key: record["results"][key] for key in settings}}
        found = record["results"]["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise DynamicConfidenceError(
            f"{path}: not a record of this study ({type(error).__name__}). Choose another -o."
        ) from error
    different = sorted(set(differing(before, {**machine(), **settings})) - {"commit"})
    if different:
        raise DynamicConfidenceError(
            f"{path}: was measured with another {', '.join(different)}; one record holds one machine and its "
            "versions. Choose another -o."
        )
    return found


def _version() -> str:
    from ..runtime.tensorrt_library import load_library

    return str(load_library("rtx").__version__)


if __name__ == "__main__":
    main()
