"""Build a plan and write it with its sidecar, both or neither: for `dc-build` and `dc-export --plan`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import msgspec

from ..runtime.errors import DynamicConfidenceError
from ..runtime.files import atomic_path
from ..runtime.manifest import Precision
from ..runtime.plan_file import LIBRARIES, json_from_sidecar, sidecar_path
from .plan_from_onnx import plan_from_onnx

Facts = dict[str, Any]


def plan_path(network: Path, output: Path | None = None, *, force: bool = False) -> Path:
    """Where the plan of a network goes. Raises: DynamicConfidenceError when that is no place for one, or taken."""
    output = output or network.with_suffix(".plan")
    if output.suffix != ".plan":
        raise DynamicConfidenceError(f"{output}: a plan is named .plan: -o {output.with_suffix('.plan')}")
    for path in (output, sidecar_path(output)):
        if path.is_dir():
            raise DynamicConfidenceError(f"{path}: is a folder, expected a file. Choose another place with -o.")
        if path.exists() and not force:
            raise DynamicConfidenceError(f"{path}: exists already. Replace plan and sidecar with --force.")
    return output


def target_names(text: str | None) -> tuple[str, ...]:
    """`sm86, SM89` -> `("sm86", "sm89")`. Raises: DynamicConfidenceError for a text without a name."""
    if text is None:
        return ()
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    if not names:
        raise DynamicConfidenceError(
            f"--target '{text}': expected GPUs such as sm86,sm89. Leave it out for the default."
        )
    return names


def write_plan(
    network: Path,
    output: Path,
    *,
    flavour: str = "auto",
    targets: tuple[str, ...] = (),
    batch: int = 1,
    precision: Precision | None = None,
    steps_per_call: int | None = None,
    timing_cache: bool = True,
    force: bool = False,
) -> Facts:
    """Build the plan of an exported network with bars on stderr, write both files, and return what there is to say.

    Raises: as `plan_from_onnx`, and DynamicConfidenceError when a file cannot be written.
    """
    started, sidecar = time.perf_counter(), sidecar_path(output)
    # The inner file is moved into place first, so the sidecar comes last. Should that fail, its hash is not the plan's.
    with atomic_path(sidecar) as sidecar_part, atomic_path(output) as part, _Bars() as report:
        plan = plan_from_onnx(
            network,
            flavour=flavour,
            targets=targets,
            batch=batch,
            precision=precision,
            steps_per_call=steps_per_call,
            timing_cache=timing_cache,
            report=report,
        )
        plan_path(network, output, force=force)  # somebody else may have built it meanwhile
        part.write_bytes(plan.content)
        sidecar_part.write_bytes(json_from_sidecar(plan.sidecar))
    for note in plan.notes:
        click.echo(f"Note: {note}", err=True)
    return {
        "output": str(output),
        "sidecar": str(sidecar),
        "bytes": len(plan.content),
        "layers": plan.layers,
        "precision": plan.sidecar.manifest.numerics.precision,
        "engine": msgspec.to_builtins(plan.sidecar.engine),
        "seconds": round(time.perf_counter() - started, 2),
    }


def describe_plan(facts: Facts) -> str:
    """The facts of `write_plan` for people."""
    engine = facts["engine"]
    return (
        f"{facts['output']}: {facts['bytes'] / 1e6:.2f} MB, {facts['precision']}, {LIBRARIES[engine['flavour']]} "
        f"{engine['version']} for {', '.join(engine['targets'])}, batch {engine['batch']} at most, "
        f"{facts['seconds']:.1f} s\n{facts['sidecar']}: its manifest; keep both together"
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
