"""dc-calibrate: find the confidence threshold of a network on labelled data and write it into its manifest."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click
from click.core import ParameterSource

from ..runtime.cli import command_errors, engine_options

if TYPE_CHECKING:
    from ..runtime.manifest import Manifest
    from .trace import Trace

METRICS = ("max-softmax", "softmax-margin", "logit-margin", "entropy", "patience")
"""As in `runtime.manifest.Metric`, which --help must not import."""
DELTA = 0.1


@click.command()
@click.argument("network", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Labelled images: one folder per class, or .npz.")
@click.option(
    "--trace", type=click.Path(path_type=Path), help="In place of --data: the folder of a trace, from dc-eval."
)
@click.option(
    "--rule",
    type=click.Choice(["safe", "grid", "exact", "certified"]),
    default="safe",
    show_default=True,
    help="grid: the paper's 11 thresholds; exact: all; safe: all, from 1 down to the first that loses accuracy; "
    "certified: those that lose at most --max-drop on all data like this, with probability 1 - --delta.",
)
@click.option("--no-loss", is_flag=True, help="Target: the fewest steps that lose no accuracy.  [default]")
@click.option("--max-drop", type=float, help="Target: the fewest steps that lose at most so many points of accuracy.")
@click.option("--max-steps", type=float, help="Target: the best accuracy with at most so many steps on average.")
@click.option("--delta", type=float, help=f"Probability that a certified threshold is wrong. [default: {DELTA}]")
@click.option("--metric", type=click.Choice(METRICS), help="What the threshold is compared with. [default: keep]")
@click.option("--min-step", type=int, help="First time step that may stop an input. [default: keep]")
@click.option(
    "--alpha",
    default="keep",
    show_default=True,
    help="Divisor of the logits: keep, method (T for qcfs, levels for qffs: what dc-export writes), a number, "
    "sweep (1/4, 1/2, 1, 2 and 4 times the method's), or several numbers with commas; the best of several is taken.",
)
@click.option("--temperature", default="keep", show_default=True, help="keep, fit, or a number; multiplies alpha.")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the front and the choice.")
@click.version_option(package_name="dynamic-confidence")
@command_errors
def main(
    network: Path,
    data: Path | None,
    trace: Path | None,
    rule: str,
    no_loss: bool,
    max_drop: float | None,
    max_steps: float | None,
    delta: float | None,
    metric: str | None,
    min_step: int | None,
    alpha: str,
    temperature: str,
    as_json: bool,
    **engine_kind: Any,
) -> None:
    """Calibrate NETWORK (.onnx or .plan): run it on labelled images and choose when to stop.

    Run it on what will run it later: with a .plan, on the device it was built for. What dc-eval traced need not be run
    again: --trace gives the calibration that --data with the same images gives.

    The threshold taken is the one with the fewest mean time steps that loses no accuracy against running all of them,
    or the one of another target. It is fitted to DATA: report accuracies on other images only, never on these.

    \b
    Examples:
      dc-calibrate net.onnx --data data/validation
      dc-calibrate net.onnx --data data/validation --rule grid --max-drop 0.5
      dc-calibrate net.onnx --data data/validation --max-steps 3.0
      dc-calibrate net.onnx --data data/validation --rule certified --max-drop 1
      dc-calibrate net.onnx --data data/validation --temperature fit
      dc-calibrate net.onnx --data data/validation --alpha sweep --json
      dc-calibrate net.onnx --data data/validation --metric entropy --min-step 3
      dc-calibrate net.onnx --trace traces/validation
      dc-calibrate net.plan --data data/validation.npz
    """
    from ..runtime.network_file import read_manifest
    from .alpha import alphas_from_text
    from .calibrate import FEW, Settings, calibrate_network
    from .calibration_report import json_from_report, print_report
    from .policy import Goal, Rule

    source = _one_source(data, trace, engine_kind)
    _one_target(rule, no_loss, max_drop, max_steps)
    if delta is not None and rule != "certified":
        raise _bad(f"--delta {delta:g} is for --rule certified. Leave it out.")
    manifest = read_manifest(network)
    goal = Goal(cast(Rule, rule), (max_drop or 0.0) / 100, max_steps, DELTA if delta is None else delta)
    alphas = alphas_from_text(alpha, manifest)
    settings = Settings(goal, alphas, _temperature(temperature), cast(Any, metric), min_step)
    settings.current(manifest)  # what does not fit is said before the long work
    answers, title = _traced(network, source, manifest, **engine_kind) if data else _kept(source, manifest)
    report = calibrate_network(network, answers, settings, title)
    if answers.samples < FEW and rule != "certified":  # its promise takes their number into account
        click.echo(
            f"{title}: {answers.samples} images say little about others: give {FEW} or more, or let --rule certified "
            "say what they can promise.",
            err=True,
        )
    before = manifest.calibration
    if rule == "certified" and before.data == title and not (before.rule or "").startswith("certified"):
        click.echo(
            f"{title}: alpha, temperature or metric may have been chosen on these images before ({before.rule}). The "
            "promise holds for images that nothing was chosen on: certify on others.",
            err=True,
        )
    if manifest.schedule is not None:
        click.echo(
            f"{network}: its schedule was tuned to the exits of before and is gone. Tune it again: dc-tune {network} "
            "--data DIR.",
            err=True,
        )
    if as_json:
        click.echo(json_from_report(report))
    else:
        print_report(report, goal, network, source)


def _traced(network: Path, data: Path, manifest: Manifest, **engine_kind: Any) -> tuple[Trace, str]:
    """Run the network on images; return its answers and the images' name."""
    from ..runtime.cli import progress
    from ..runtime.images import labelled_arrays
    from .calibrate import trace_from_file

    pixels, label = labelled_arrays(data, manifest.input.preprocessing, manifest.class_names)
    title, track = data.resolve().name, functools.partial(progress, what="tracing")
    return trace_from_file(network, pixels, label, title, track, **engine_kind), title


def _kept(folder: Path, manifest: Manifest) -> tuple[Trace, str]:
    """Read the answers that dc-eval kept, and the name of the images."""
    from .trace_folder import load_trace
    from .trace_header import read_header

    trace, header = load_trace(folder, manifest), read_header(folder)
    if header.engine is not None:
        click.echo(
            f"{folder}: half precision, answered by {header.engine}. What runs the network later must be the same.",
            err=True,
        )
    return trace, header.data


def _one_source(data: Path | None, trace: Path | None, engine_kind: Iterable[str]) -> Path:
    """Return where the answers come from. Raises: DynamicConfidenceError unless it is exactly one of the two."""
    if (data is None) == (trace is None):
        raise _bad(
            "give --data (labelled images to run) or --trace (a folder that dc-eval wrote), "
            + ("not both." if data else "for example --data data/validation.")
        )
    context = click.get_current_context()
    asked = [name for name in engine_kind if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if trace is not None and asked:
        raise _bad(f"--trace runs nothing: leave the options of the engine out ({', '.join(asked)}).")
    return cast(Path, data or trace)


def _one_target(rule: str, no_loss: bool, max_drop: float | None, max_steps: float | None) -> None:
    given = {"--no-loss": no_loss or None, "--max-drop": max_drop, "--max-steps": max_steps}
    targets = [name if value is True else f"{name} {value:g}" for name, value in given.items() if value is not None]
    if len(targets) > 1:
        raise _bad(f"{' and '.join(targets)}: choose one target.")
    if max_drop is not None and not max_drop >= 0:
        raise _bad(f"--max-drop {max_drop:g}: expected 0 or more points (0.5 is half a point).")
    if rule == "certified" and not max_drop:
        raise _bad("--rule certified needs --max-drop above 0, in points: --max-drop 1 (one point).")


def _temperature(text: str) -> float | Literal["keep", "fit"]:
    if text in ("keep", "fit"):
        return cast(Literal["keep", "fit"], text)
    try:
        return float(text)
    except ValueError:
        raise _bad(f"--temperature {text}: expected keep, fit or a number.") from None


def _bad(message: str) -> Exception:
    from ..runtime.errors import DynamicConfidenceError

    return DynamicConfidenceError(message)
