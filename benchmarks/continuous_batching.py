"""What continuous batching gains: a fixed T, batches whose inputs exit, and slots that are refilled, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.cli import command_errors, engine_options
from .latency.throughput import continuously, in_batches

if TYPE_CHECKING:
    import numpy as np

    from ..runtime.engine import Engine
    from ..runtime.exit_policy import ExitPolicy
    from ..runtime.stepping import Answer

WANTED = 0.85
"""Of what the saved steps allow: T / mean steps times the throughput of a fixed T."""


@click.command()
@click.argument("network", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Labelled images.")
@click.option("--batch", type=int, default=32, show_default=True, help="Inputs that run at once.")
@click.option("--limit", type=int, default=2048, show_default=True, help="Only the first so many images.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Each measures every way, one after the other.")
@click.option("--threshold", type=float, help="[default: calibrated]")
@engine_options
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The record (.json).")
@command_errors
def main(
    network: Path,
    data: Path,
    batch: int,
    limit: int,
    rounds: int,
    threshold: float | None,
    output: Path | None,
    **engine_kind: Any,
) -> None:
    """Answer the same images with NETWORK in three ways and compare the throughputs and the answers.

    At the end of the data the places of the batch run empty: take many more images than the batch has places.
    Exit code 1: the answers differ.

    \b
    Example:
      python -m dynamic_confidence.benchmarks.continuous_batching net.onnx --data data/test --threads 1 -o record.json
    """
    import numpy as np

    from ..runtime.engine import open_engine
    from ..runtime.exit_policy import policy_from_manifest, without_exit
    from ..runtime.images import labelled_arrays
    from ..runtime.network_file import read_manifest
    from .record import write_study

    manifest = read_manifest(network)
    pixels, label = labelled_arrays(data, manifest.input.preprocessing, manifest.class_names)
    pixels, label = pixels[:limit], label[:limit]
    with open_engine(network, batch=batch, **engine_kind) as engine:
        policy = policy_from_manifest(manifest, threshold=threshold)
        fixed = without_exit(policy)
        ways: dict[str, Callable[[], list[Answer]]] = {
            "fixed T": lambda: in_batches(engine, pixels, fixed),
            "static batches": lambda: in_batches(engine, pixels, policy),
            "continuous": lambda: continuously(engine, pixels, policy),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        answers, inside = {}, {}
        for way, run in ways.items():
            answers[way], inside[way] = _looked_into(engine, run)
        same = _same_answers(engine, pixels, policy, answers)
        for _ in range(rounds):
            for way, run in ways.items():
                started = time.perf_counter()
                run()
                seconds[way].append(time.perf_counter() - started)
        backend = engine.backend
    steps = np.array([answer.steps for answer in answers["continuous"]])
    throughput = {way: len(pixels) / np.array(took) for way, took in seconds.items()}
    saved = policy.max_steps / steps.mean()
    calls = {way: int(found["calls"]) for way, found in inside.items()}
    results: dict[str, Any] = {
        "network": network.name,
        "graph_sha256": manifest.provenance.graph_sha256,
        "method": manifest.method.name,
        "precision": manifest.numerics.precision,
        "backend": backend,
        "engine": engine_kind,
        "images": len(pixels),
        "batch": batch,
        "steps_per_call": manifest.steps_per_call,
        "steps": policy.max_steps,
        "threshold": policy.threshold,
        "mean_steps": float(steps.mean()),
        "T_over_mean_steps": float(saved),
        "accuracy": float(np.mean([a.label == t for a, t in zip(answers["continuous"], label, strict=True)])),
        "same_answers": same,
        "seconds": seconds,
        "images_per_second": {way: float(np.median(found)) for way, found in throughput.items()},
        "of_what_the_steps_allow": {
            way: float(np.median(throughput[way] / (saved * throughput["fixed T"]))) for way in ways
        },
        "of_what_the_steps_allow_by_calls": {way: float(calls["fixed T"] / (saved * calls[way])) for way in ways},
        "one_run_inside": inside,
    }
    click.echo(
        f"{len(pixels)} images, batch {batch}, {backend}: {steps.mean():.2f} of {policy.max_steps} steps, so at most "
        f"{saved:.2f} x fixed T (wanted of continuous: {WANTED} of that)"
    )
    for way, found in throughput.items():
        share, by_calls = (results[key][way] for key in ("of_what_the_steps_allow", "of_what_the_steps_allow_by_calls"))
        beside, refills = (1e6 * inside[way][part] / len(pixels) for part in ("loop", "refill"))
        click.echo(
            f"{way:15} {np.median(found):8.1f} images/s ({found.min():.1f} to {found.max():.1f}), {share:.2f} of that, "
            f"{by_calls:.2f} counted in calls; per image {beside:.1f} us of Python, {refills:.1f} us of refills"
        )
    if output:
        write_study(output, "continuous batching", results)
    if not same:
        click.echo("Error: the ways do not give the same answers.", err=True)
        raise SystemExit(1)


def _same_answers(engine: Engine, pixels: np.ndarray, policy: ExitPolicy, answers: dict[str, list[Answer]]) -> bool:
    """Both ways with exits agree, and their logits are those of that step in a run without exits; so are the last."""
    import numpy as np

    from ..runtime.stepping import run_to_the_end

    for start in range(0, len(pixels), engine.batch):
        logits = run_to_the_end(engine, pixels[start : start + engine.batch], policy.scale).logits
        for row, whole in enumerate(logits):
            one, other, at_end = (answers[way][start + row] for way in ("static batches", "continuous", "fixed T"))
            if (
                one._replace(ms=0, logits=whole) != other._replace(ms=0, logits=whole)
                or not np.array_equal(one.logits, whole[one.steps - 1])
                or not np.array_equal(other.logits, whole[one.steps - 1])
                or not np.array_equal(at_end.logits, whole[at_end.steps - 1])
            ):
                return False
    return True


def _looked_into(engine: Engine, run: Callable[[], list[Answer]]) -> tuple[list[Answer], dict[str, float]]:
    """Run once; also return the calls, and the seconds in the engine's calls, in its refills and in the loop around."""
    spent, calls = {"step": 0.0, "refill": 0.0}, 0

    def timed(name: str) -> Callable[..., Any]:
        method = getattr(engine, name)

        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += name == "step"
            started = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                spent[name] += time.perf_counter() - started

        return call

    for name in spent:
        setattr(engine, name, timed(name))
    try:
        started = time.perf_counter()
        answers = run()
        whole = time.perf_counter() - started
    finally:
        for name in spent:
            delattr(engine, name)
    return answers, {"calls": calls, **spent, "loop": whole - sum(spent.values())}


if __name__ == "__main__":
    main()
