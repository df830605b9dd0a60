"""dc-build: build a TensorRT or TensorRT-RTX plan from an exported network, with its sidecar."""

from __future__ import annotations

from pathlib import Path

import click

from ..runtime.cli import command_errors
from ..runtime.manifest import Precision


@click.command()
@click.argument("network", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="[default: NETWORK with the suffix .plan]")
@click.option(
    "--flavour",
    type=click.Choice(["auto", "tensorrt", "rtx"]),
    default="auto",
    show_default=True,
    help="Library that builds, and runs, the plan; auto prefers TensorRT for the GPU of this machine.",
)
@click.option(
    "--target",
    "targets",
    help="GPUs, comma-separated: sm75, sm80, sm86, sm89, sm120 …, or current. "
    "[default: current (tensorrt), sm80+ (rtx): compute capability 8.0 and later]",
)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Largest number of inputs a call.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    help="Refuse a NETWORK of another one; it is chosen by `dc-export --precision`. [default: as exported]",
)
@click.option(
    "--timing-cache/--no-timing-cache",
    default=True,
    show_default=True,
    help="Keep TensorRT's timings of kernels in the user's cache folder for the next build (rtx has none).",
)
@click.option("--force", is_flag=True, help="Replace an existing plan, and the calibration in its sidecar.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object about the plan.")
@click.version_option(package_name="dynamic-confidence")
@command_errors
def main(
    network: Path,
    output: Path | None,
    flavour: str,
    targets: str | None,
    batch: int,
    precision: Precision | None,
    timing_cache: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Build a plan from NETWORK (a .onnx of dc-export) and write it with <plan>.json, its manifest.

    TensorRT-RTX builds for desktop GPUs on a machine without one; TensorRT builds on the device that will run the plan.
    Plan and sidecar belong together; the plan alone is a plain one that other tools can load.

    \b
    Examples:
      dc-build net.onnx
      dc-build net.onnx -o net.plan --flavour rtx --target sm86,sm89
      dc-build net.onnx --target current --batch 16 --force
      dc-build net_int8.onnx --precision int8
    """
    import json
    import time

    import msgspec

    from ..runtime.errors import DynamicConfidenceError
    from ..runtime.files import atomic_path
    from ..runtime.plan_file import LIBRARIES, json_from_sidecar, sidecar_path
    from .plan_from_onnx import plan_from_onnx

    started = time.perf_counter()
    output = output or network.with_suffix(".plan")
    if output.suffix != ".plan":
        raise DynamicConfidenceError(f"{output}: a plan is named .plan: -o {output.with_suffix('.plan')}")
    sidecar = sidecar_path(output)
    for path in (output, sidecar):
        if path.is_dir():
            raise DynamicConfidenceError(f"{path}: is a folder, expected a file. Choose another place with -o.")
        if path.exists() and not force:
            raise DynamicConfidenceError(f"{path}: exists already. Replace plan and sidecar with --force.")
    names = tuple(name.strip().lower() for name in targets.split(",") if name.strip()) if targets else ()
    # The inner file is moved into place first, so the sidecar comes last. Should that fail, its hash is not the plan's.
    with atomic_path(sidecar) as sidecar_part, atomic_path(output) as part, _Bars() as report:
        plan = plan_from_onnx(
            network,
            flavour=flavour,
            targets=names,
            batch=batch,
            precision=precision,
            timing_cache=timing_cache,
            report=report,
        )
        part.write_bytes(plan.content)
        sidecar_part.write_bytes(json_from_sidecar(plan.sidecar))
    for note in plan.notes:
        click.echo(f"Note: {note}", err=True)
    engine, precision = plan.sidecar.engine, plan.sidecar.manifest.numerics.precision
    facts = {
        "output": str(output),
        "sidecar": str(sidecar),
        "bytes": len(plan.content),
        "layers": plan.layers,
        "precision": precision,
        "engine": msgspec.to_builtins(engine),
        "seconds": round(time.perf_counter() - started, 2),
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(
        f"{output}: {len(plan.content) / 1e6:.2f} MB, {precision}, {LIBRARIES[engine.flavour]} {engine.version} for "
        f"{', '.join(engine.targets)}, batch {batch} at most, {facts['seconds']:.1f} s\n"
        f"{sidecar}: its manifest; keep both together"
    )


class _Bars:
    """One bar on stderr for each phase of the build under way, on a terminal only."""

    def __enter__(self) -> _Bars:
        from rich.console import Console
        from rich.progress import Progress, TaskID

        console = Console(stderr=True)
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, phase: str, done: int, total: int) -> None:
        if done < total:
            if phase not in self._tasks:
                self._tasks[phase] = self._progress.add_task(phase, total=total)
            self._progress.update(self._tasks[phase], completed=done)
        elif phase in self._tasks:
            self._progress.remove_task(self._tasks.pop(phase))
