"""The step contract as a typed, versioned record: written by the exporter, read by every engine (docs/contract.md)."""

from __future__ import annotations

from typing import Literal

import msgspec

from .errors import DynamicConfidenceError

VERSION = 1
METADATA_KEY = "dynamic_confidence.manifest"
SIZE_LIMIT = 16 * 1024 * 1024

Dim = int | str  # "N" is the batch, any other dimension is fixed


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every part of the manifest: immutable, and an unknown key is an error."""


class Preprocessing(_Record, frozen=True):
    """How an image file becomes pixels. `mean` and `std` (of pixels / 255) are already folded into the network."""

    color: Literal["RGB", "L"]
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_shorter_side: int | None = None
    """Pixels of the shorter side before the centre crop; null resizes straight to height x width."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"

    @property
    def channels(self) -> int:
        return 3 if self.color == "RGB" else 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """[channel, height, width]"""
        return self.channels, self.height, self.width


class Input(_Record, frozen=True):
    """The graph's image input: uint8 pixels `[N, channel, height, width]`, or `[K, N, …]` when `frames` is true."""

    name: str
    shape: tuple[Dim, ...]
    dtype: Literal["uint8"]
    frames: bool
    preprocessing: Preprocessing


class State(_Record, frozen=True):
    """One state: fed to `input`, read from `output`, and `initial` everywhere before the first step."""

    input: str
    output: str
    shape: tuple[Dim, ...]
    dtype: Literal["float32"]
    initial: float


class Output(_Record, frozen=True):
    """One output, `[K, N, …]`: it comes back for every step of the call."""

    name: Literal["logits", "confidence", "label", "spikes"]
    shape: tuple[Dim, ...]
    dtype: Literal["float32", "int64"]


class Method(_Record, frozen=True):
    """How the spiking network was made from the quantised one."""

    name: Literal["qcfs", "qffs"]
    levels: int
    """Largest level of the activation quantiser: 2^bits - 1."""
    injection_steps: int | None
    """QFFS: image and biases enter in steps 1..injection_steps only; null: in every step."""


class Calibration(_Record, frozen=True):
    """What decides when to stop. The confidence is max softmax(logits / (alpha * temperature))."""

    alpha: float
    temperature: float = 1.0
    threshold: float = 1.0
    """A confidence is never above 1, so the value of an uncalibrated network never exits early."""
    metric: Literal["max-softmax"] = "max-softmax"
    min_step: int = 1
    data: str | None = None
    """Where the threshold comes from; null until `dc-calibrate` has run."""
    samples: int | None = None
    rule: str | None = None
    expected_accuracy: float | None = None
    expected_mean_steps: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold {self.threshold:g} is outside [0, 1]")
        if not (self.alpha > 0 and self.temperature > 0):
            raise ValueError(f"alpha {self.alpha:g} and temperature {self.temperature:g} must be positive")
        if self.min_step < 1:
            raise ValueError(f"min_step {self.min_step} must be at least 1")

    @property
    def scale(self) -> float:
        """The graph's `alpha` input: alpha times temperature."""
        return self.alpha * self.temperature


class Grid(_Record, frozen=True):
    """The dyadic grid of one layer: weights, biases, membrane and threshold are multiples of 2^-exponent.

    `head_room` is the largest partial sum, in units of the threshold (of the logits for the read-out), that stays
    exact in float32: 2^(24 - exponent). `bound` is what can occur (worst case) or what was seen (measured).
    """

    layer: str
    exponent: int
    head_room: float
    bound: float
    source: Literal["worst case", "measured"]


class Numerics(_Record, frozen=True):
    precision: Literal["fp32"]
    exact: bool
    tf32: bool
    grids: tuple[Grid, ...]


class Provenance(_Record, frozen=True):
    checkpoint_sha256: str
    graph_sha256: str
    """Hash of the serialised graph; metadata such as the calibration may change, the graph may not."""
    architecture: str
    tools: dict[str, str]


class Manifest(_Record, frozen=True):
    version: int
    name: str
    input: Input
    scale_input: str
    """Name of the scalar float32 graph input that takes alpha * temperature."""
    states: tuple[State, ...]
    outputs: tuple[Output, ...]
    steps_per_call: int
    max_steps: int
    method: Method
    class_names: tuple[str, ...]
    calibration: Calibration
    numerics: Numerics
    provenance: Provenance

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version}, this release reads version {VERSION}")
        if self.steps_per_call < 1 or self.max_steps < 1:
            raise ValueError(f"steps_per_call {self.steps_per_call} and max_steps {self.max_steps} must be at least 1")
        steps: tuple[Dim, ...] = (self.steps_per_call, "N")
        image = (*(steps if self.input.frames else steps[1:]), *self.input.preprocessing.shape)
        if self.input.shape != image:
            raise ValueError(f"input shape {self.input.shape}, expected {image} from its preprocessing")
        wanted = {"logits": (*steps, len(self.class_names)), "confidence": steps, "label": steps}
        found = {output.name: output.shape for output in self.outputs if output.name != "spikes"}
        if found != wanted:
            raise ValueError(f"outputs {found}, expected {wanted} from steps_per_call and class_names")

    def has_output(self, name: str) -> bool:
        return any(output.name == name for output in self.outputs)


def manifest_from_json(text: str | bytes, source: str) -> Manifest:
    """Parse and validate a manifest; `source` names the file in the error.

    Raises: DynamicConfidenceError that names the offending key.
    """
    if len(text) > SIZE_LIMIT:
        raise DynamicConfidenceError(f"{source}: the manifest has {len(text)} bytes, at most {SIZE_LIMIT} are read.")
    try:
        return msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DynamicConfidenceError(
            f"{source}: the manifest is not one this version understands: {error}. "
            "Export the network again with `dc-export model.pt`."
        ) from error


def json_from_manifest(manifest: Manifest) -> str:
    """Serialise a manifest; the same manifest always gives the same bytes."""
    return msgspec.json.encode(manifest).decode()
