"""One network by one method: exported, traced on two sets, calibrated on the first and evaluated on the second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ...calib.alpha import default_alpha
from ...calib.evaluation import evaluation_of
from ...calib.exits import capped_curve, exit_steps, replay
from ...calib.policy import Goal, Rule, calibrate
from ...calib.reliability import Reliability
from ...calib.thresholds import PAPER_GRID, fixed_accuracy
from ...calib.trace import Trace
from ...calib.trace_folder import Shard, load_trace, read_shards
from ...calib.trace_header import TraceHeader, read_header
from ...calib.write_trace import write_trace
from ...models.checkpoint import Checkpoint, load_checkpoint, sha256_of
from ...runtime.files import write_atomically
from ...runtime.images import labelled_arrays
from ...runtime.manifest import Calibration
from ...runtime.network_file import read_manifest
from ...toolchain.export import ExportOptions, ann_logits, export
from .published import CIFAR_SAVING

METHODS = ("qcfs", "qffs")
RULES: tuple[Rule, ...] = ("safe", "grid", "exact")
"""The first is the one that the tables show."""
CLOSE = 0.001
"""Table 1 takes the first step whose accuracy comes this close to the best one."""
Track = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class Setting:
    """A network's files for one method, and its accuracy before conversion."""

    network: Path
    calibration: Path
    """Folder of the trace that thresholds and steps are chosen on."""
    test: Path
    """Folder of the trace that is reported."""
    ann_calibration: float
    ann_test: float
    """Accuracies (fractions) of the quantised network itself."""
    notes: dict[str, Any]


def prepared(
    model: Path, method: str, steps: int | None, calibration: Path, test: Path, folder: Path, track: Track
) -> Setting:
    """Export a model.pt and trace it on both sets; shards of the traces that an earlier call made whole are kept.

    Raises: DynamicConfidenceError for data or a model that cannot be used.
    """
    checkpoint = load_checkpoint(model)
    arrays = [labelled_arrays(data, checkpoint.preprocessing, checkpoint.class_names) for data in (calibration, test)]
    network = folder / f"{model.stem}_{method}.onnx"
    exported = export(
        checkpoint,
        sha256_of(model),
        ExportOptions(method, steps, count_spikes=True),
        name=network.stem,
        calibration_set=arrays[0],
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(network, exported.content)
    traces = [folder / f"{network.stem}_{role}" for role in ("calibration", "test")]
    for data, trace in zip((calibration, test), traces, strict=True):
        write_trace(network, data, trace, track=track)
    ann = [_ann_accuracy(checkpoint, *part) for part in arrays]
    return Setting(network, traces[0], traces[1], ann[0], ann[1], checkpoint.notes)


def measured(setting: Setting) -> dict[str, Any]:
    """Everything the tables and figures show of one setting, as plain values; accuracies are fractions."""
    manifest = read_manifest(setting.network)
    trace = load_trace(setting.calibration, manifest)
    header, accuracy = read_header(setting.test), fixed_accuracy(trace)
    settled = int(np.flatnonzero(accuracy >= accuracy.max() - CLOSE)[0]) + 1
    reached = np.flatnonzero(accuracy >= setting.ann_calibration)
    test = load_trace(setting.test, manifest)
    alpha = default_alpha(manifest.method, settled)
    return {
        "network": setting.network.stem,
        "architecture": manifest.provenance.architecture,
        "method": manifest.method.name,
        "traced_steps": manifest.max_steps,
        "temperature": manifest.calibration.temperature,
        "ann_accuracy": setting.ann_test,
        "calibration": {"data": read_header(setting.calibration).data, "samples": trace.samples},
        "test": {"data": header.data, "samples": header.samples},
        "accuracy_at_step": fixed_accuracy(test).tolist(),
        "table_1": _row(setting, trace, test, header, settled),
        "table_s1": _row(setting, trace, test, header, int(reached[0]) + 1) if len(reached) else None,
        "threshold_curves": _threshold_curves(trace, manifest.calibration.temperature * alpha, settled),
        "mean_confidence": {
            "before": _mean_confidence(test, manifest.calibration.temperature),
            "after": _mean_confidence(test, alpha * manifest.calibration.temperature),
        },
        "notes": setting.notes,
    }


def _row(setting: Setting, trace: Trace, test: Trace, header: TraceHeader, steps: int) -> dict[str, Any]:
    """A table's row: the network run for `steps` time steps, without and with early exit by every rule."""
    manifest = read_manifest(setting.network)
    shorter = Trace(trace.logits[:, :steps], trace.label, np.minimum(trace.last_step, steps))
    current = Calibration(alpha=default_alpha(manifest.method, steps), temperature=manifest.calibration.temperature)
    reports = {rule: calibrate(shorter, current, Goal(rule)) for rule in RULES}
    main = reports[RULES[0]]
    as_paper = Goal(RULES[0], max_mean_steps=max(1.0, (1 - CIFAR_SAVING[0] / 100) * steps))
    return {
        "steps": steps,
        "answers_stand_from": float(standing_from(test.logits[:, :steps].argmax(axis=2)).mean()),
        "rules": {rule: _ruled(setting, header, steps, report.calibration) for rule, report in reports.items()},
        "saving_as_paper": _ruled(setting, header, steps, calibrate(shorter, current, as_paper).calibration),
        "front": [[point.threshold, point.mean_steps, point.accuracy] for point in main.front],
        "reliability": {
            when: _plain(found)
            for when, found in (("before", main.reliability_before), ("after", main.reliability_after))
        },
    }


def standing_from(answers: np.ndarray) -> np.ndarray:
    """The first step from which an input's answer changes no more: `[sample, step]` -> `[sample]`, in steps from 1."""
    other = answers != answers[:, -1:]
    return np.where(other.any(axis=1), other.shape[1] - other[:, ::-1].argmax(axis=1), 0) + 1


def _ruled(setting: Setting, header: TraceHeader, steps: int, calibration: Calibration) -> dict[str, Any]:
    def shards() -> Iterator[Shard]:
        return (_shortened(shard, steps) for shard in read_shards(setting.test, header))

    evaluation = evaluation_of(msgspec.structs.replace(header, steps=steps), shards(), calibration)
    lost = np.concatenate([_lost(shard.trace, calibration) for shard in shards()])
    return {
        "evaluation": msgspec.to_builtins(evaluation),
        "drop": float(lost.mean()),
        "drop_95": paired_interval(lost),
    }


def _plain(found: Reliability) -> dict[str, Any]:
    return {"ece": found.ece, "nll": found.nll, "bins": [[b.confidence, b.accuracy, b.count] for b in found.bins]}


def paired_interval(lost: np.ndarray) -> float:
    """Half the width of a 95 % interval of the mean of -1, 0 and 1: `[sample]` -> a fraction.

    With half a sample more in each cell of the 2 x 2 table, so that it is not 0 where no answer differs.
    Source: Agresti and Min, "Simple improved confidence intervals for comparing matched proportions" (2005).
    """
    samples, worse, better = len(lost) + 2, (lost > 0).sum() + 0.5, (lost < 0).sum() + 0.5
    return float(1.96 * np.sqrt(worse + better - (worse - better) ** 2 / samples) / samples)


def _lost(trace: Trace, calibration: Calibration) -> np.ndarray:
    """Right after the last step less right at the exit: `[sample]` -1, 0 or 1."""
    correct, exits = trace.correct.astype(np.int64), replay(trace, calibration)
    return correct[:, -1] - correct[np.arange(trace.samples), exits - 1]


def _shortened(shard: Shard, steps: int) -> Shard:
    """Return what the network answers when it is run for fewer steps: the beginning of the trace."""
    trace = shard.trace
    cut = Trace(trace.logits[:, :steps], trace.label, np.minimum(trace.last_step, steps))
    spikes, net = (None if counts is None else counts[:, :steps] for counts in (shard.spikes, shard.net_spikes))
    return replace(shard, trace=cut, spikes=spikes, net_spikes=net)


def _threshold_curves(trace: Trace, scale: float, steps: int) -> list[dict[str, Any]]:
    """For each of the paper's thresholds: mean steps and accuracy on the calibration set with every cap to `steps`."""
    scores, curves = trace.confidence(scale)[:, :steps], []
    last_step = np.minimum(trace.last_step, steps)
    for threshold in PAPER_GRID:
        mean_steps, accuracy = capped_curve(trace.correct[:, :steps], exit_steps(scores, threshold, last_step))
        curves.append({"threshold": threshold, "mean_steps": mean_steps.tolist(), "accuracy": accuracy.tolist()})
    return curves


def _mean_confidence(trace: Trace, scale: float) -> list[float]:
    return trace.confidence(scale).mean(axis=0).tolist()


def _ann_accuracy(checkpoint: Checkpoint, pixels: np.ndarray, label: np.ndarray) -> float:
    logits = ann_logits(checkpoint.network(), checkpoint.preprocessing, pixels)
    return float((logits.argmax(axis=1) == label).mean())
