"""Run a data set through a network and keep every step's answers: shard by shard, on as many processes as there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..runtime.engine import Engine, open_engine
from ..runtime.errors import DynamicConfidenceError
from ..runtime.network_file import largest_batch, read_manifest
from ..runtime.stepping import FullRun, run_to_the_end
from .labelled_images import LabelledImages, labelled_images
from .trace import Trace
from .trace_folder import BrokenShard, Shard, read_shard, shard_path, write_shard
from .trace_header import HEADER, TraceHeader, header_of, read_header, write_header

BATCH = 64
Track = Callable[[Iterable[Any], str], Iterable[Any]]
"""Wraps what is gone through, and a word for it, for a progress bar."""


@dataclass(frozen=True)
class Written:
    """What one process did."""

    header: TraceHeader
    made: list[int]
    """Shards that it ran."""
    broken: list[str]
    """What was wrong with some that were there: it made them again."""


def write_trace(
    network: Path,
    data: Path,
    folder: Path,
    *,
    rank: int = 0,
    world_size: int = 1,
    shard_size: int | None = None,
    batch: int | None = None,
    track: Track = lambda items, what: items,
    on_resume: Callable[[int, int], None] | None = None,
    **engine_kind: Any,
) -> Written:
    """Make the shards k = rank, rank + world_size, …: those that are whole stay, broken ones are made again.

    The images of a shard are read when it is made, so that no data set is too large. An exact network gives the same
    shards on every machine and engine and with any batch (None: 64, or what a plan takes); `engine_kind` goes to
    `open_engine`. `on_resume(whole, own)` tells how many of this process's shards are there, where some are.
    Raises: DynamicConfidenceError for a rank outside 0 … world_size - 1, a folder that holds the trace of another
    network or data set, or an image that cannot be read: the shards made before it stay.
    """
    if world_size < 1:
        raise DynamicConfidenceError(f"{world_size} processes: expected at least 1.")
    if not 0 <= rank < world_size:
        raise DynamicConfidenceError(
            f"rank {rank} of {world_size} processes: expected 0 to {world_size - 1}. Give both --rank and --world-size."
        )
    if shard_size is not None and shard_size < 1:
        raise DynamicConfidenceError(f"shard size {shard_size}: expected at least 1 sample.")
    manifest = read_manifest(network)
    images = labelled_images(data, manifest.input.preprocessing, manifest.class_names)
    found = _header_there(folder)
    header = header_of(manifest, images, shard_size or (found and found.shard_size))
    if found is not None:
        header = msgspec.structs.replace(header, engine=found.engine)
        _require_same(folder, header, found)
    own = range(rank, header.shards, world_size)
    broken = _broken(folder, header, own, images, track)
    wanted = [shard for shard in own if shard in broken or not shard_path(folder, shard).exists()]
    if on_resume and 0 < len(wanted) < len(own):
        on_resume(len(own) - len(wanted), len(own))
    if wanted:
        batch = min(batch or min(BATCH, largest_batch(network) or BATCH), header.samples, header.shard_size)
        with open_engine(network, batch=batch, **engine_kind) as engine:
            if not manifest.numerics.exact:
                header = msgspec.structs.replace(header, engine=f"{engine.backend}, batch {engine.batch}")
            _claim(folder, header)
            _make(engine, images, folder, header, wanted, track)
    return Written(header, wanted, list(broken.values()))


def _header_there(folder: Path) -> TraceHeader | None:
    if folder.exists() and not folder.is_dir():
        raise DynamicConfidenceError(f"{folder}: is a file, expected a folder for the trace. Choose another with -o.")
    return read_header(folder) if (folder / HEADER).exists() else None


def _require_same(folder: Path, header: TraceHeader, found: TraceHeader) -> None:
    differences = header.differences(found)
    if differences:
        raise DynamicConfidenceError(
            f"{folder}: holds a trace of {found.network} on {found.data}, which differs from that of {header.network} "
            f"on {header.data} in {', '.join(differences)}. Choose another folder with -o."
        )


def _claim(folder: Path, header: TraceHeader) -> None:
    """Write the header where there is none yet; processes that start together write the same."""
    if (there := _header_there(folder)) is not None:
        return _require_same(folder, header, there)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DynamicConfidenceError(
            f"{folder}: cannot be made ({error.strerror}). Choose another folder with -o."
        ) from error
    write_header(folder, header)


def _broken(
    folder: Path, header: TraceHeader, own: Iterable[int], images: LabelledImages, track: Track
) -> dict[int, str]:
    """Read the shards that are there; return what is wrong with them.

    Raises: DynamicConfidenceError for a whole shard made from images that have changed since.
    """
    wrong = {}
    for shard in track([shard for shard in own if shard_path(folder, shard).exists()], "checking shards"):
        try:
            content = read_shard(folder, header, shard)
        except BrokenShard as error:
            wrong[shard] = error.reason
            continue
        if content.images_sha256 != images.digest(header.rows(shard)):
            raise DynamicConfidenceError(
                f"{shard_path(folder, shard)}: was made from other images of the same names than those in "
                f"{images.title}. Choose another folder with -o, or bring the images back."
            )
    return wrong


def _make(
    engine: Engine, images: LabelledImages, folder: Path, header: TraceHeader, shards: list[int], track: Track
) -> None:
    rows = {shard: header.rows(shard) for shard in shards}
    work = [(shard, start) for shard in shards for start in range(rows[shard].start, rows[shard].stop, engine.batch)]
    scale = engine.manifest.calibration.scale
    runs: list[FullRun] = []
    for shard, start in track(work, "running"):
        stop = min(start + engine.batch, rows[shard].stop)
        runs.append(run_to_the_end(engine, images.pixels(slice(start, stop)), scale))
        if stop == rows[shard].stop:
            write_shard(folder, header, shard, shard_from_runs(runs, images, rows[shard]))
            runs = []


def shard_from_runs(runs: list[FullRun], images: LabelledImages, rows: slice) -> Shard:
    """Put the batches of a shard together; `rows` are its samples."""

    def joined(counts: list[np.ndarray | None]) -> np.ndarray | None:
        parts = [part for part in counts if part is not None]
        return np.concatenate(parts) if parts else None

    logits, last_step = (np.concatenate(parts) for parts in ([r.logits for r in runs], [r.last_step for r in runs]))
    return Shard(
        trace=Trace(logits, images.label[rows], last_step),
        names=np.array(images.names[rows]),
        images_sha256=images.digest(rows),
        spikes=joined([run.spikes for run in runs]),
        net_spikes=joined([run.net_spikes for run in runs]),
    )
