"""The step contract as a typed, versioned record: written by the exporter, read by every engine (docs/contract.md)."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from .errors import InvalidRecord

VERSION = 1
METADATA_KEY = "dynamic_confidence.manifest"
FLOAT32_BITS = 24
FLOAT32_RANGE = 2.0**-126, 2.0**127
"""Positive float32 numbers that no device flushes to zero and no rounding takes to infinity."""

Dim = int | str  # "N" is the batch, any other dimension is fixed
Precision = Literal["fp32", "fp16", "int8"]
GraphForm = Literal["conv", "matmul"]
Metric = Literal["max-softmax", "softmax-margin", "logit-margin", "entropy", "patience"]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every part of the manifest: immutable, checked when made, and an unknown key is an error.

    A default serves code that makes a record; in a file every key must stand (manifest_json.py). A part that a file may
    leave out is declared `part: Part | msgspec.UnsetType = msgspec.UNSET`.
    """


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InvalidRecord(message)


def _fixed(shape: tuple[Dim, ...]) -> bool:
    return all(isinstance(dim, int) and dim > 0 for dim in shape)


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

    def __post_init__(self) -> None:
        _require(min(self.height, self.width) > 0, f"height {self.height} and width {self.width} must be at least 1")
        for name, values in (("mean", self.mean), ("std", self.std)):
            fits = len(values) == self.channels and all(map(math.isfinite, values))
            _require(fits, f"{name} {list(values)}: expected {self.channels} finite numbers for color {self.color}")
        _require(min(self.std) > 0, f"std {list(self.std)} must be positive")
        shorter, largest = self.resize_shorter_side, max(self.height, self.width)
        _require(
            shorter is None or shorter >= largest,
            f"resize_shorter_side {shorter}: expected at least {largest}, what the crop needs, or null",
        )

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

    def __post_init__(self) -> None:
        fits = self.shape[:1] == ("N",) and _fixed(self.shape[1:])
        _require(fits, f"state {self.input}: shape {list(self.shape)}, expected 'N' and positive sizes")
        _require(math.isfinite(self.initial), f"state {self.input}: initial {self.initial} must be finite")


class Output(_Record, frozen=True):
    """One output, `[K, N, …]`: it comes back for every step of the call."""

    name: Literal["logits", "confidence", "label", "spikes", "net_spikes"]
    shape: tuple[Dim, ...]
    dtype: Literal["float32", "int64"]

    def __post_init__(self) -> None:
        wanted = "int64" if self.name == "label" else "float32"
        _require(self.dtype == wanted, f"output {self.name}: dtype {self.dtype}, expected {wanted}")


class Method(_Record, frozen=True):
    """How the spiking network was made from the quantised one."""

    name: Literal["qcfs", "qffs"]
    levels: int
    """Largest level of the activation quantiser: 2^bits - 1 with LSQ, any L with QCFS."""
    injection_steps: int | None
    """QFFS: image and biases enter in steps 1..injection_steps only; null: in every step."""

    def __post_init__(self) -> None:
        _require(self.levels >= 1, f"levels {self.levels} must be at least 1")
        steps = self.injection_steps
        fits = steps is None if self.name == "qcfs" else steps is not None and steps >= 1
        expected = "null" if self.name == "qcfs" else "at least 1"
        _require(fits, f"injection_steps {steps}: expected {expected} with {self.name}")


class Calibration(_Record, frozen=True):
    """What decides when to stop: the score that `metric` gives logits / (alpha * temperature), and a threshold."""

    alpha: float
    temperature: float = 1.0
    threshold: float = 1.0
    """A score is never above 1, so the value of an uncalibrated network never exits early."""
    metric: Metric = "max-softmax"
    min_step: int = 1
    data: str | None = None
    """Where the threshold comes from; null until `dc-calibrate` has run."""
    samples: int | None = None
    rule: str | None = None
    expected_accuracy: float | None = None
    expected_mean_steps: float | None = None

    def __post_init__(self) -> None:
        _require(0.0 <= self.threshold <= 1.0, f"threshold {self.threshold:g} is outside [0, 1]")
        numbers = f"alpha {self.alpha:g} and temperature {self.temperature:g}"
        _require(
            0 < self.alpha < math.inf and 0 < self.temperature < math.inf, f"{numbers} must be positive and finite"
        )
        low, high = FLOAT32_RANGE
        _require(low <= self.scale <= high, f"{numbers}: their product must lie in the range of float32")
        _require(self.min_step >= 1, f"min_step {self.min_step} must be at least 1")

    @property
    def scale(self) -> float:
        """The graph's `alpha` input: alpha times temperature."""
        return self.alpha * self.temperature


class Schedule(_Record, frozen=True):
    """How many time steps each call of an input takes, one after another: what `dc-tune` found to answer soonest."""

    calls: tuple[int, ...]
    """Steps of the first call, the second, …; what comes after the last is like it."""
    cost_ms: tuple[tuple[int, float], ...]
    """Steps and measured milliseconds of every call there is to choose from."""
    engine: str
    """What ran them."""
    threads: int | None
    """CPU threads that were asked for; null: the engine's choice."""
    expected_ms: float
    """Mean milliseconds until the answer, by the costs and the exits."""
    measured_ms: float

    def __post_init__(self) -> None:
        known = [steps for steps, _ in self.cost_ms]
        _require(len(set(known)) == len(known), f"schedule.cost_ms {known}: a number of steps stands twice")
        fits = len(self.calls) > 0 and set(self.calls) <= set(known)
        _require(fits, f"schedule.calls {list(self.calls)}: expected at least one, each with its cost_ms, {known}")
        times = self.expected_ms, self.measured_ms, *(ms for _, ms in self.cost_ms)
        _require(all(0 < ms < math.inf for ms in times), f"schedule: {list(times)} ms must be positive and finite")


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

    def __post_init__(self) -> None:
        _require(1 <= self.exponent <= 40, f"layer {self.layer}: exponent {self.exponent}, expected 1 to 40")
        head_room = 2.0 ** (FLOAT32_BITS - self.exponent)
        _require(self.head_room == head_room, f"layer {self.layer}: head_room {self.head_room}, expected {head_room}")
        _require(
            0 <= self.bound <= head_room, f"layer {self.layer}: bound {self.bound}, expected 0 to head_room {head_room}"
        )


class Numerics(_Record, frozen=True):
    precision: Precision
    """Of the convolutions between spikes; image, membranes and read-out are float32 in all of them."""
    exact: bool
    """Every uint8 input gives the same bits on every engine."""
    tf32: bool
    grids: tuple[Grid, ...]
    """Layer by layer, the read-out last; none with fp16, whose convolutions round."""
    form: GraphForm = "conv"
    """What synapses are: convolutions, or integer matrix products, which ONNX Runtime runs on the CPU only."""

    def __post_init__(self) -> None:
        half = self.precision == "fp16"
        _require(self.form == "conv" or not half, f"form {self.form} with precision fp16: expected conv")
        _require(not (half and self.exact), "exact true with precision fp16: expected false, its convolutions round")
        _require(
            bool(self.grids) != half,
            f"{len(self.grids)} grids with precision {self.precision}: expected "
            f"{'none' if half else 'one for each layer'}",
        )


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
    more_steps_per_call: tuple[int, ...] = ()
    """Other K, ascending, whose calls the graph holds as well (`variants.py`)."""
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        _require(self.version == VERSION, f"version {self.version}, this release reads version {VERSION}")
        _require(
            min(self.steps_per_call, self.max_steps) >= 1,
            f"steps_per_call {self.steps_per_call} and max_steps {self.max_steps} must be at least 1",
        )
        last, first = self.max_steps, self.calibration.min_step
        _require(first <= last, f"calibration.min_step {first}: expected at most max_steps {last}")
        names = [self.input.name, self.scale_input, *(state.input for state in self.states)]
        made = [*(state.output for state in self.states), *(output.name for output in self.outputs)]
        names += made + [name_at(name, k) for k in self.more_steps_per_call for name in made]
        _require(len(set(names)) == len(names), f"inputs, states and outputs {sorted(names)}: a name stands twice")
        steps: tuple[Dim, ...] = (self.steps_per_call, "N")
        image = (*(steps if self.input.frames else steps[1:]), *self.input.preprocessing.shape)
        _require(self.input.shape == image, f"input shape {self.input.shape}, expected {image} from its preprocessing")
        wanted = {"logits": (*steps, len(self.class_names)), "confidence": steps, "label": steps}
        found = {output.name: output.shape for output in self.outputs}
        spikes, net_spikes = found.pop("spikes", None), found.pop("net_spikes", None)
        _require(
            found == wanted and len(self.class_names) > 0,
            f"outputs {found}, expected {wanted} from steps_per_call and class_names",
        )
        _require(
            spikes is None or (spikes[:2] == steps and len(spikes) == 3 and _fixed(spikes[2:])),
            f"output spikes {spikes}, expected {(*steps, 'layers')}",
        )
        _require(spikes is not None or self.method.name != "qffs", "a qffs network has the output spikes, expected it")
        _require(
            net_spikes is None or (self.method.name == "qffs" and net_spikes == spikes),
            f"output net_spikes {net_spikes}: expected with qffs only, and of the shape of spikes, {spikes}",
        )

        sizes = self.call_sizes
        _require(
            list(sizes) == sorted(set(sizes)),
            f"more_steps_per_call {list(sizes[1:])}: expected ascending numbers above steps_per_call, {sizes[0]}",
        )
        _require(
            len(sizes) == 1 or not self.input.frames,
            f"more_steps_per_call {list(sizes[1:])} with frames: expected none, a call takes an image per step",
        )
        planned = sizes if self.schedule is None else self.schedule.calls
        _require(set(planned) <= set(sizes), f"schedule.calls {list(planned)}: expected some of {list(sizes)}")
        costs = sizes if self.schedule is None else [steps for steps, _ in self.schedule.cost_ms]
        _require(set(sizes) <= set(costs), f"schedule.cost_ms {list(costs)}: expected all of {list(sizes)}")

    @property
    def call_sizes(self) -> tuple[int, ...]:
        """Every K: how many time steps one call may take."""
        return self.steps_per_call, *self.more_steps_per_call

    def has_output(self, name: str) -> bool:
        return any(output.name == name for output in self.outputs)


def name_at(name: str, steps: int) -> str:
    """What a tensor of the graph is called that belongs to the call of `steps`, one of `more_steps_per_call`."""
    return f"{name}@{steps}"
