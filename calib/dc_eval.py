"""dc-eval: run a network on a whole data set, keep what it answers at every step, and say what that comes to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.cli import command_errors, engine_options

if TYPE_CHECKING:
    from .evaluation import Evaluation, SpikesPerNeuron

SUMMARY = "summary.json"
ROWS = 16
NOT_COUNTED = "not counted (export with --count-spikes)"


@click.command()
@click.argument("network", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Labelled images: one folder per class, or .npz."
)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the trace; made if need be."
)
@click.option("--batch", type=click.IntRange(1), help="Inputs that run together. [default: 64, or what a plan takes]")
@click.option("--shard-size", type=int, help="Samples per shard. [default: 1024, fewer where these exceed 64 MiB]")
@click.option(
    "--rank",
    type=int,
    default=0,
    envvar="RANK",
    show_envvar=True,
    show_default=True,
    help="Number of this process; it makes the shards rank, rank + world size, …",
)
@click.option(
    "--world-size",
    type=int,
    default=1,
    envvar="WORLD_SIZE",
    show_envvar=True,
    show_default=True,
    help="Number of processes that share the data set, on one machine or several.",
)
@engine_options
@click.option("--rows", type=click.IntRange(2), default=ROWS, show_default=True, help="Steps in the table, at most.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object, with every step.")
@click.version_option(package_name="dynamic-confidence")
@command_errors
def main(
    network: Path,
    data: Path,
    output: Path,
    batch: int | None,
    shard_size: int | None,
    rank: int,
    world_size: int,
    rows: int,
    as_json: bool,
    **engine_kind: Any,
) -> None:
    """Evaluate NETWORK (.onnx or .plan) on labelled images: run every one of them to the last step.

    What it answers at every step is kept in a folder, in shards. Started again after it was stopped, even killed, it
    goes on with the first shard that is missing; images are read shard by shard, so that no data set is too large.

    Once all shards are there it prints, and writes to summary.json in the folder: the accuracy at every step, what the
    calibrated exit makes of it, the upper bound that no exit rule passes, and spikes per neuron.

    Several processes share a data set when each is told its --rank and the --world-size (torchrun says so by itself).
    They need one folder, or one to which all shards are copied; there the last of them, or the same command again
    without ranks, prints the summary of all. With several GPUs, give each process its own: CUDA_VISIBLE_DEVICES=1.

    \b
    Examples:
      dc-eval net.onnx --data data/test -o traces/net
      dc-eval net.onnx --data test.npz -o traces/net --json
      dc-eval net.plan --data imagenet/val -o traces/net --batch 128
      dc-eval net.onnx --data data/test -o traces/net --rank 0 --world-size 2
      torchrun --nproc-per-node 4 --no-python dc-eval net.onnx --data data/test -o traces/net --threads 1
    """
    import json

    import msgspec

    from ..runtime.cli import progress
    from ..runtime.files import write_atomically
    from ..runtime.network_file import read_manifest
    from .evaluation import evaluation_of
    from .trace_folder import BrokenShard, missing_shards, read_shards
    from .write_trace import write_trace

    def resuming(whole: int, own: int) -> None:
        whose = "" if world_size == 1 else f" of rank {rank}"
        click.echo(f"{output}: {whole} of {own} shards{whose} are there; going on.", err=True)

    try:
        written = write_trace(
            network,
            data,
            output,
            rank=rank,
            world_size=world_size,
            shard_size=shard_size,
            batch=batch,
            track=progress,
            on_resume=resuming,
            **engine_kind,
        )
    except KeyboardInterrupt:
        click.echo(f"Finished shards stay in {output}; the same command goes on with those that are missing.", err=True)
        raise
    header = written.header
    for broken in written.broken:
        click.echo(f"made again: {broken}", err=True)
    missing = missing_shards(output, header)
    if missing:
        if as_json:
            click.echo(json.dumps({"shards": header.shards, "made": written.made, "missing": missing}))
            return
        click.echo(
            f"rank {rank} of {world_size} is done: it made {len(written.made)} shards; {len(missing)} of "
            f"{header.shards} are still missing in {output}. The process that makes the last one prints the summary."
        )
        return
    shards = progress(read_shards(output, header), "adding up", total=header.shards)
    try:
        evaluation = evaluation_of(header, shards, read_manifest(network).calibration)
    except BrokenShard as error:
        if world_size == 1:
            raise
        # Another process's, which makes it again: failing here would make torchrun end that process.
        click.echo(
            f"rank {rank} of {world_size} is done; {error.reason}: the process whose shard it is makes it again."
        )
        return
    summary = msgspec.json.encode(evaluation)
    write_atomically(output / SUMMARY, msgspec.json.format(summary, indent=1) + b"\n")
    if as_json:
        click.echo(summary.decode())
        return
    _show(evaluation, rows)
    click.echo(f"{output}: {header.shards} shards, {len(written.made)} of them made now, and {SUMMARY}")


def _show(evaluation: Evaluation, rows: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("step", title="If T were this step")
    for column in ("accuracy %", "exits %", "early exit %", "mean steps", "bound %", "bound steps"):
        table.add_column(column, justify="right")
    capped, bound = evaluation.capped, evaluation.upper_bound
    for step in _some(evaluation.steps, rows):
        row = step - 1
        shares = evaluation.accuracy_at_step[row], evaluation.exit_histogram[row], capped.accuracy[row]
        table.add_row(
            str(step),
            *(f"{100 * share:.2f}" for share in shares),
            f"{capped.mean_steps[row]:.3f}",
            f"{100 * bound.accuracy[row]:.2f}",
            f"{bound.mean_steps[row]:.3f}",
        )
    console = Console()
    console.print(table)
    for sentence in _sentences(evaluation):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    if evaluation.gross_spikes is not None:
        console.print(_spike_table(evaluation))


def _some(steps: int, rows: int) -> list[int]:
    """At most so many of the steps 1 … T, evenly spread, the first and the last among them."""
    if steps <= rows:
        return list(range(1, steps + 1))
    return sorted({1 + round(row * (steps - 1) / (rows - 1)) for row in range(rows)})


def _sentences(evaluation: Evaluation) -> Iterator[str]:
    calibration, steps = evaluation.calibration, evaluation.steps
    silent = f", {evaluation.fixed_steps:.2f} of them until it is silent" if evaluation.fixed_steps < steps else ""
    yield (
        f"{evaluation.network} on {evaluation.samples} images of {evaluation.data}: "
        f"{100 * evaluation.accuracy_at_step[-1]:.2f} % after {steps} steps{silent}"
    )
    if calibration.data is None:
        yield "it is not calibrated, and nothing stops early for confidence: `dc-calibrate` finds the threshold"
    if calibration.data == evaluation.data:
        yield (
            f"its threshold was fitted to images of that name, {evaluation.data}: if they are these, report accuracies "
            "on others"
        )
    yield (
        f"early exit ({calibration.metric} > {calibration.threshold:.4g}): {100 * evaluation.accuracy:.2f} % in "
        f"{evaluation.mean_steps:.2f} steps on average, {100 * evaluation.saved:.1f} % saved"
    )
    yield f"spikes per neuron, net: {_text(evaluation.net_spikes)}"
    if evaluation.method != "qcfs":
        yield f"spikes per neuron, gross (of either sign): {_text(evaluation.gross_spikes)}"


def _text(spikes: SpikesPerNeuron | None) -> str:
    if spikes is None:
        return NOT_COUNTED
    return f"{spikes.at_step[-1]:.4f} after all steps, {spikes.at_exit:.4f} with early exit"


def _spike_table(evaluation: Evaluation) -> Any:
    from rich.table import Table

    kinds = {"net": evaluation.net_spikes, "gross": evaluation.gross_spikes}
    if evaluation.method == "qcfs":
        del kinds["gross"]  # the same
    counted = {name: spikes for name, spikes in kinds.items() if spikes is not None}
    table = Table("layer", title="Spikes per neuron and inference: after all steps, and up to the exit")
    table.columns[0].overflow = "fold"
    for column in ("neurons", *(heading for name in counted for heading in (name, f"{name}, exit"))):
        table.add_column(column, justify="right", no_wrap=True)

    def cells(values: Iterable[float]) -> list[str]:
        return [f"{value:.4f}" for value in values]

    for row, (layer, neurons) in enumerate(zip(evaluation.layers, evaluation.neurons, strict=True)):
        found = ((s.per_layer[row], s.per_layer_at_exit[row]) for s in counted.values())
        table.add_row(layer, str(neurons), *cells(value for pair in found for value in pair))
    table.add_section()
    found = ((s.at_step[-1], s.at_exit) for s in counted.values())
    table.add_row("all", str(sum(evaluation.neurons)), *cells(value for pair in found for value in pair))
    return table
