"""A trace on disk: a folder of shards (.npz), each whole or not there, and a header that says what they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime.errors import DynamicConfidenceError
from ..runtime.files import atomic_path
from ..runtime.images import listed
from ..runtime.manifest import Manifest
from ..runtime.pixels import BROKEN_ARRAY
from .trace import Trace
from .trace_header import TraceHeader, read_header


@dataclass(frozen=True, eq=False)
class Shard:
    """The samples of one shard; spikes int64 `[sample, step, layer]` are sums over the steps 1 … t."""

    trace: Trace
    names: np.ndarray
    images_sha256: str
    spikes: np.ndarray | None
    net_spikes: np.ndarray | None


class BrokenShard(DynamicConfidenceError):
    """A shard that is missing, damaged, or of another trace: `dc-eval` makes it again."""

    def __init__(self, path: Path, reason: str) -> None:
        self.reason = f"{path}: {reason}"
        super().__init__(f"{self.reason}. Run `dc-eval` again as before: it makes what is not whole.")


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.npz"


def missing_shards(folder: Path, header: TraceHeader) -> list[int]:
    """The shards that are not there yet."""
    return [shard for shard in range(header.shards) if not shard_path(folder, shard).exists()]


def write_shard(folder: Path, header: TraceHeader, shard: int, content: Shard) -> None:
    """Write a shard whole or not at all; the same content always gives the same bytes.

    Raises: as `runtime.files.atomic_path`.
    """
    arrays = {
        "trace_sha256": np.array(header.digest()),
        "number": np.array(shard),
        "images_sha256": np.array(content.images_sha256),
        "name": content.names,
        "label": content.trace.label,
        "last_step": content.trace.last_step,
        "logits": content.trace.logits,
    }
    for name in _counts(header):
        arrays[name] = getattr(content, name).astype(_count_dtype(header))
    with atomic_path(shard_path(folder, shard)) as part:
        np.savez(part, **arrays)  # type: ignore[arg-type]


def read_shard(folder: Path, header: TraceHeader, shard: int) -> Shard:
    """Read a shard and check all of it: every byte is under a checksum of the .npz.

    Raises: BrokenShard when it is missing, damaged, or of another trace.
    """
    path, rows = shard_path(folder, shard), header.rows(shard)
    samples = rows.stop - rows.start
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if str(arrays["trace_sha256"]) != header.digest():
            raise ValueError("it belongs to another trace")
        if int(arrays["number"]) != shard:
            raise ValueError(f"it is number {arrays['number']}, expected {shard}")
        trace = Trace(arrays["logits"], arrays["label"], arrays["last_step"])
        counts = {name: arrays[name] for name in _counts(header)}
        expected = [("logits", trace.logits, (samples, header.steps, len(header.class_names)))]
        expected += [(name, count, (samples, header.steps, len(header.layers))) for name, count in counts.items()]
        for name, found, shape in (*expected, ("name", arrays["name"], (samples,))):
            if found.shape != shape:
                raise ValueError(f"{name} has shape {found.shape}, expected {shape}")
        spikes = {name: count.astype(np.int64) for name, count in counts.items()}
        images = str(arrays["images_sha256"])
    except (*BROKEN_ARRAY, KeyError, DynamicConfidenceError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise BrokenShard(path, "is missing" if missing else f"not a whole shard of this trace ({error})") from error
    return Shard(trace, arrays["name"], images, spikes.get("spikes"), spikes.get("net_spikes"))


def read_shards(folder: Path, header: TraceHeader) -> Iterator[Shard]:
    """Yield every shard, in order. Raises: DynamicConfidenceError when one is missing, damaged, or of another trace."""
    missing = missing_shards(folder, header)
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
        raise DynamicConfidenceError(
            f"{folder}: {len(missing)} of {header.shards} shards are not there yet ({shown}). Run `dc-eval` again as "
            "before: it makes those that are missing."
        )
    for shard in range(header.shards):
        yield read_shard(folder, header, shard)


def load_trace(folder: Path, manifest: Manifest | None = None) -> Trace:
    """Read a whole trace into memory; with a `manifest`, the trace of that network only.

    Raises: DynamicConfidenceError for another network's trace, or one that is not whole.
    """
    header = read_header(folder)
    if manifest is not None and manifest.provenance.graph_sha256 != header.graph_sha256:
        raise DynamicConfidenceError(
            f"{folder}: holds a trace of {header.network} (graph {header.graph_sha256[:12]}), expected one of "
            f"{manifest.name} (graph {manifest.provenance.graph_sha256[:12]}). Make it: "
            f"`dc-eval {manifest.name}.onnx --data DIR -o DIR`."
        )
    if manifest is not None and manifest.class_names != header.class_names:
        raise DynamicConfidenceError(
            f"{folder}: its labels count the classes as {listed(header.class_names)}, the network as "
            f"{listed(manifest.class_names)}. Trace it again: `dc-eval {manifest.name}.onnx --data DIR -o DIR`."
        )
    logits = np.empty((header.samples, header.steps, len(header.class_names)), np.float32)
    label, last_step = np.empty(header.samples, np.int64), np.empty(header.samples, np.int64)
    for shard, content in enumerate(read_shards(folder, header)):
        rows = header.rows(shard)
        logits[rows], label[rows], last_step[rows] = content.trace.logits, content.trace.label, content.trace.last_step
    return Trace(logits, label, last_step)


def _counts(header: TraceHeader) -> list[str]:
    return ["spikes"] * bool(header.layers) + ["net_spikes"] * header.net_spikes


def _count_dtype(header: TraceHeader) -> type[np.signedinteger]:
    """The smaller type that holds one spike of every neuron of a layer in every step."""
    largest = header.steps * max(layer.neurons for layer in header.layers)
    return np.int32 if largest <= np.iinfo(np.int32).max else np.int64
