"""The header of a trace on disk: what its shards belong to, and how they are to be read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np

from ..runtime.errors import DynamicConfidenceError
from ..runtime.files import write_atomically
from ..runtime.manifest import Manifest, Method
from ..runtime.manifest_json import decode_whole
from .labelled_images import LabelledImages

VERSION = 1
HEADER = "trace.json"
SHARD_BYTES = 2**26
"""A shard holds about this many bytes of logits, …"""
SHARD_SAMPLES = 1024
"""… and at most so many samples: what is lost when a run is killed."""
MEMBRANE = "v_in."
SPIKES_SENT = "n_in."
"""What QFFS keeps of a layer in the form `matmul`, which needs no membranes."""


class LayerSize(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    neurons: int


class TraceHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every shard of a folder has in common."""

    version: int
    network: str
    data: str
    """Names, for people: they do not tell one trace from another."""
    graph_sha256: str
    samples_sha256: str
    """Of the names and labels of all samples, in order."""
    samples: int
    shard_size: int
    """Samples per shard; the last shard has what is left."""
    steps: int
    """T"""
    class_names: tuple[str, ...]
    method: Method
    layers: tuple[LayerSize, ...]
    """The axis `layer` of the spike counts; empty when the network does not count spikes."""
    net_spikes: bool
    """Whether net counts stand beside those of spikes of either sign."""
    engine: str | None
    """What ran the network, where its bits depend on that (half precision); null for an exact network."""

    @property
    def shards(self) -> int:
        return -(-self.samples // self.shard_size)

    def rows(self, shard: int) -> slice:
        """The samples of a shard."""
        return slice(shard * self.shard_size, min((shard + 1) * self.shard_size, self.samples))

    def differences(self, other: TraceHeader) -> list[str]:
        """The keys in which two headers speak of different traces."""
        mine, others = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        return [key for key in mine if key not in ("network", "data") and mine[key] != others[key]]

    def digest(self) -> str:
        """SHA-256 of what tells this trace from others: every shard bears it."""
        return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(self, network="", data=""))).hexdigest()


def header_of(manifest: Manifest, images: LabelledImages, shard_size: int | None) -> TraceHeader:
    """Describe the trace of a network on a data set; `shard_size` None: about `SHARD_BYTES` bytes of logits."""
    bytes_per_sample = 4 * manifest.max_steps * len(manifest.class_names)
    size = shard_size or max(1, min(SHARD_SAMPLES, SHARD_BYTES // bytes_per_sample))
    return TraceHeader(
        version=VERSION,
        network=manifest.name,
        data=images.title,
        graph_sha256=manifest.provenance.graph_sha256,
        samples_sha256=images.identity(),
        samples=len(images),
        shard_size=size,
        steps=manifest.max_steps,
        class_names=manifest.class_names,
        method=manifest.method,
        layers=counted_layers(manifest),
        net_spikes=manifest.has_output("net_spikes"),
        engine=None,
    )


def counted_layers(manifest: Manifest) -> tuple[LayerSize, ...]:
    """The layers whose spikes the network counts, in the order of its output `spikes`; none when it does not.

    Raises: DynamicConfidenceError when the output has another number of layers than there are membranes.
    """
    counted = next((int(output.shape[-1]) for output in manifest.outputs if output.name == "spikes"), 0)
    prefix = SPIKES_SENT if manifest.numerics.form == "matmul" and manifest.method.name == "qffs" else MEMBRANE
    layers = tuple(
        LayerSize(state.input.removeprefix(prefix), int(np.prod([int(dim) for dim in state.shape[1:]])))
        for state in manifest.states
        if state.input.startswith(prefix)
    )
    if counted and counted != len(layers):
        raise DynamicConfidenceError(
            f"{manifest.name}: counts the spikes of {counted} layers, expected {len(layers)}, one per state "
            f"'{prefix}…'. Export it again with `dc-export`."
        )
    return layers if counted else ()


def write_header(folder: Path, header: TraceHeader) -> None:
    """Write the header of a new trace, whole or not at all. Raises: as `runtime.files.atomic_path`."""
    write_atomically(folder / HEADER, msgspec.json.format(msgspec.json.encode(header), indent=1) + b"\n")


def read_header(folder: Path) -> TraceHeader:
    """Read what the shards of a folder have in common.

    Raises: DynamicConfidenceError for a folder without a trace, or one of another version.
    """
    path = folder / HEADER
    try:
        header = decode_whole(path.read_bytes(), TraceHeader)
    except OSError as error:
        raise DynamicConfidenceError(
            f"{folder}: holds no trace ({HEADER}: {error.strerror}). Make one: "
            f"`dc-eval net.onnx --data DIR -o {folder}`."
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DynamicConfidenceError(
            f"{path}: not a header of a trace ({error}). Make the trace again in an empty folder."
        ) from error
    if header.version != VERSION or min(header.samples, header.shard_size, header.steps) < 1:
        raise DynamicConfidenceError(
            f"{path}: version {header.version} with {header.samples} samples, {header.steps} steps and shards of "
            f"{header.shard_size}; expected version {VERSION} and at least 1 of each. Make the trace again in an empty "
            "folder."
        )
    return header
