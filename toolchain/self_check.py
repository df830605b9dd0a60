"""The self-check of an export: graph, torch simulation and float64 oracle agree bit for bit, or nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch

from ..calib.exits import exit_steps
from ..runtime.confidence import max_softmax
from ..runtime.engines.onnxruntime_session import load_onnxruntime
from ..runtime.errors import BackendMissing, CheckFailed
from ..runtime.manifest import Manifest
from ..runtime.signature import shape_at
from .oracle import oracle_steps
from .simulate import simulate, simulation_from_snn
from .snn import Snn

THRESHOLDS = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class CheckReport:
    """What was compared and held."""

    images: int
    steps: int
    layers: int
    spikes: int
    """Spikes emitted by all neurons over all steps."""
    equal_labels: float = 1.0
    """Share of the images that are answered, after T steps, as by the network without rounding."""
    equal_exits: float = 1.0
    """Share of the exits, at three thresholds, that come at the same step as without rounding."""


def self_check(
    snn: Snn,
    deployed: onnx.ModelProto,
    probed: onnx.ModelProto,
    manifest: Manifest,
    pixels: np.ndarray,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> CheckReport:
    """Step graph, simulation and oracle side by side and compare logits, spikes of every layer and exit steps.

    `deployed` is the graph that will be written, `probed` the same graph with its spike trains as outputs. Pixels
    `[image, channel, y, x]`. `track` wraps the calls, for a progress bar.
    Raises: CheckFailed at the first difference, naming step and layer; BackendMissing without ONNX Runtime.
    """
    k, spiking = manifest.steps_per_call, [layer.name for layer in snn.layers]
    steps = manifest.max_steps
    pixels = input_of_all_calls(pixels, manifest)
    images = pixels.shape[-4]
    oracle = oracle_steps(snn, pixels, steps)
    simulation = simulate(simulation_from_snn(snn), pixels, steps)
    graph, probe = GraphRun(deployed, manifest, pixels), GraphRun(probed, manifest, pixels)
    total, confidences, engine_confidences = 0, [], []
    for call in track(range(-(-steps // k))):
        results, trains = graph.call(), probe.call()
        for step in range(min(k, steps - call * k)):
            where = f"step {call * k + step + 1}"
            expected = next(oracle)
            spikes, state = next(simulation)
            simulated = state.logits.numpy()
            _equal(expected.logits, simulated, f"{where}: logits of the oracle and of the torch simulation")
            _equal(simulated, results["logits"][step], f"{where}: logits of the torch simulation and of the graph")
            _equal(results["logits"][step], trains["logits"][step], f"{where}: logits of the graph and of its probe")
            _equal(simulated.argmax(1), results["label"][step], f"{where}: labels of the simulation and of the graph")
            for output, counts in spike_counts(snn, expected.spikes).items():
                if output in results:
                    _equal(counts, results[output][step], f"{where}: {output} of the oracle and of the graph")
            for name in spiking:
                train = step_of(trains[f"spikes.{name}"], step, k)
                _equal(expected.spikes[name], spikes[name].numpy(), f"{where}, layer {name}: oracle and simulation")
                _equal(expected.spikes[name], train, f"{where}, layer {name}: oracle and graph")
                total += int(np.abs(train).sum())
            confidences.append(max_softmax(expected.logits, manifest.calibration.scale))
            engine_confidences.append(results["confidence"][step])
    exits = zip(THRESHOLDS, exits_of(confidences), exits_of(engine_confidences), strict=True)
    for threshold, expected, found in exits:
        _equal(expected, found, f"threshold {threshold}: exit steps of the oracle and of the graph")
    return CheckReport(images, manifest.max_steps, len(spiking), total)


def input_of_all_calls(pixels: np.ndarray, manifest: Manifest) -> np.ndarray:
    """Images `[image, …]` as they are, or for a network that takes frames `[step, image, …]`, others in every step."""
    if not manifest.input.frames:
        return pixels
    k = manifest.steps_per_call
    return np.stack([np.roll(pixels, step, axis=0) for step in range(-(-manifest.max_steps // k) * k)])


def step_of(train: np.ndarray, step: int, k: int) -> np.ndarray:
    """`[K * N, channel, y, x]` -> one step's `[N, channel, y, x]`"""
    return train.reshape(k, -1, *train.shape[1:])[step]


def spike_counts(snn: Snn, spikes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the outputs `spikes` (of either sign) and `net_spikes` must be in one step, each `[image, layer]`."""
    trains = [spikes[layer.name] for layer in snn.layers]
    gross, net = ([z.sum(axis=(1, 2, 3)) for z in part] for part in (map(np.abs, trains), trains))
    return {"spikes": np.stack(gross, axis=1), "net_spikes": np.stack(net, axis=1)}


def exits_of(confidences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Exit steps `[image]` at each of `THRESHOLDS`, from the confidences `[image]` of every step."""
    last = np.full(len(confidences[0]), len(confidences))
    return [exit_steps(np.stack(confidences, axis=1), threshold, last) for threshold in THRESHOLDS]


def synthetic_pixels(shape: tuple[int, int, int], images: int, seed: int = 0) -> np.ndarray:
    """Images to check with when there is no data: noise of several grain sizes over a random grey, uint8."""
    generator = np.random.default_rng(seed)
    channels, height, width = shape
    result = np.zeros((images, *shape))
    for grain in (1, 2, 4, 8):
        coarse = generator.normal(0.0, 30.0, (images, channels, -(-height // grain), -(-width // grain)))
        result += np.kron(coarse, np.ones((1, 1, grain, grain)))[:, :, :height, :width]
    return np.clip(result + generator.uniform(64, 192, (images, 1, 1, 1)), 0, 255).astype(np.uint8)


class GraphRun:
    """A plain ONNX Runtime session that carries the state in a feed; the product's engine is checked by the tests."""

    def __init__(self, model: onnx.ModelProto, manifest: Manifest, pixels: np.ndarray) -> None:
        try:
            onnxruntime = load_onnxruntime()
        except BackendMissing as error:
            raise BackendMissing(
                "the self-check needs ONNX Runtime: `pip install 'dynamic-confidence[cpu]'`."
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]
        self._manifest, self._pixels, self._steps = manifest, pixels, 0
        scale = np.array(manifest.calibration.scale, np.float32)
        self._feed = {manifest.scale_input: scale}
        for state in manifest.states:
            shape = shape_at(state.shape, pixels.shape[-4])
            self._feed[state.input] = np.full(shape, state.initial, np.float32)

    def call(self) -> dict[str, np.ndarray]:
        manifest, first = self._manifest, self._steps
        self._steps += manifest.steps_per_call
        frames = self._pixels[first : self._steps] if manifest.input.frames else self._pixels
        self._feed[manifest.input.name] = frames
        values = self._session.run(self._names, self._feed)
        results = {name: np.asarray(value) for name, value in zip(self._names, values, strict=True)}
        for state in manifest.states:
            self._feed[state.input] = results[state.output]
        return results


def _equal(expected: np.ndarray, found: np.ndarray, what: str) -> None:
    if not np.array_equal(expected, found):
        count = int((expected != found).sum())
        largest = float(np.abs(np.asarray(expected, np.float64) - found).max())
        raise CheckFailed(
            f"self-check: {what} differ in {count} of {found.size} values (by {largest:.3g} at most), expected none. "
            "Nothing was written. This is a bug or a backend that does not compute in float32: please report it."
        )
