"""Tune the calls of a network to this machine: when inputs stop, what calls cost here, and whether it comes true."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.continuous_batching import answer_stream
from ..runtime.engine import Engine, EngineOptions, holds_several, onnx_backend, open_engine
from ..runtime.errors import CheckFailed, DynamicConfidenceError
from ..runtime.exit_policy import ExitPolicy, policy_from_manifest
from ..runtime.manifest import Manifest, Schedule
from ..runtime.stepping import Answer, infer
from .call_costs import CallSample, costs_of_calls, probing_calls, samples_of, typical
from .exits import histogram
from .labelled_images import LabelledImages
from .schedule import best_schedule, expected_latency, shortened

BATCH = 32
WARM_UPS = 3
ROUNDS = 3
FEWEST, MOST = 16, 400
"""Images that are timed."""
WORTH = 0.98
"""A schedule must beat the best fixed K to this, or that one is taken."""
Track = Callable[[Iterable[Any], str], Iterable[Any]]
"""Wraps what is gone through, and a word for it, for a progress bar."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A way to make the calls, and how long it took."""

    name: str
    calls: tuple[int, ...]
    """Steps of one call after another; the last is repeated."""
    expected_ms: float
    samples_ms: np.ndarray
    """Until the answer, `[image, round]`; all candidates in turn on each image."""

    @property
    def measured_ms(self) -> float:
        """Mean over the images of the median over the rounds."""
        return float(np.median(self.samples_ms, axis=1).mean())


@dataclass(frozen=True, eq=False)
class Tuning:
    """What was found."""

    engine: str
    threads: int | None
    histogram: np.ndarray
    """Share of the inputs that stop at each step, `[step]`."""
    costs: dict[int, np.ndarray]
    """Milliseconds of a call of each K, `[switched, step]` (`schedule.Costs`)."""
    call_samples: list[CallSample]
    """What they follow from."""
    fixed: tuple[Candidate, ...]
    """Every K."""
    schedule: Candidate | None
    """None where no mixture is expected to be clearly faster than one K, or the engine has but one."""

    @property
    def cost_ms(self) -> dict[int, float]:
        return typical(self.costs)

    @property
    def best_fixed(self) -> Candidate:
        return min(self.fixed, key=lambda candidate: candidate.measured_ms)

    @property
    def chosen(self) -> Candidate:
        """The schedule where it is clearly faster, else the best fixed K."""
        best, mixed = self.best_fixed, self.schedule
        return best if mixed is None or mixed.measured_ms > WORTH * best.measured_ms else mixed

    @property
    def record(self) -> Schedule:
        """The chosen one for the manifest."""
        chosen, costs = self.chosen, tuple(self.cost_ms.items())
        return Schedule(
            chosen.calls, costs, self.engine, self.threads, round(chosen.expected_ms, 6), round(chosen.measured_ms, 6)
        )


def check_tunable(path: Path, manifest: Manifest) -> None:
    """Raise a DynamicConfidenceError for a network with one K, or one without a calibrated exit."""
    if path.suffix != ".onnx" or not manifest.more_steps_per_call:
        raise DynamicConfidenceError(
            f"{path}: has calls of {manifest.steps_per_call} steps and no others, so there is nothing to choose from. "
            "Export it with several: `dc-export model.pt -K 1,2,4,8`."
        )
    if manifest.calibration.data is None:
        raise DynamicConfidenceError(
            f"{path}: is not calibrated, and a schedule depends on when inputs stop. First: dc-calibrate {path} "
            "--data DIR."
        )


def exits_of_images(path: Path, images: LabelledImages, track: Track, **engine_kind: Any) -> np.ndarray:
    """Run all images with the calibrated exit; return the step `[sample]` at which each stops."""
    found = np.zeros(len(images), np.int64)
    with open_engine(path, batch=min(BATCH, len(images)), **engine_kind) as engine:
        one_by_one = (_image(images, row)[0] for row in track(range(len(images)), "finding the exits"))
        for number, answer in answer_stream(engine, one_by_one, policy_from_manifest(engine.manifest)):
            found[number] = answer.steps
    return found


def representative(exits: np.ndarray, count: int) -> np.ndarray:
    """Choose samples that stop like all of them, evenly from the first exit to the last, in a fixed random order.

    Shapes: exits `[sample]` -> `[count]` sample numbers, fewer where there are fewer samples.
    """
    count = min(count, len(exits))
    middles = ((np.arange(count) + 0.5) * len(exits) / count).astype(np.int64)
    return np.random.default_rng(0).permutation(np.argsort(exits, kind="stable")[middles])


def tune(
    path: Path,
    manifest: Manifest,
    images: LabelledImages,
    exits: np.ndarray,
    *,
    seconds: float,
    shares: np.ndarray | None = None,
    track: Track = lambda items, what: items,
    **engine_kind: Any,
) -> Tuning:
    """Measure every K on real images, solve for the schedule, and measure it against every fixed K, in turn.

    `exits` `[sample]`: when each image stops. `seconds`: about how long each of the two measurements may take. `shares`
    `[step]`: the exit histogram to solve for, where it is not that of `exits`.
    Raises: CheckFailed when the answers of an exact network depend on the calls.
    """
    # Chosen once: for each K alone the choice could be another.
    engine_kind["backend"] = onnx_backend(path, EngineOptions(**engine_kind))
    sizes, several = manifest.call_sizes, holds_several(path, EngineOptions(**engine_kind))
    with ExitStack() as stack:
        groups: list[tuple[int, ...]] = [sizes] if several else [(size,) for size in sizes]
        opened = [stack.enter_context(open_engine(path, call_sizes=group, **engine_kind)) for group in groups]
        engines = {size: engine for group, engine in zip(groups, opened, strict=True) for size in group}
        policy = policy_from_manifest(manifest)
        samples = _call_samples(engines, several, policy, images, exits, seconds, track)
        costs = costs_of_calls(samples, manifest.max_steps)
        shares = histogram(exits, manifest.max_steps) if shares is None else shares
        ways: dict[str, tuple[int, ...]] = {f"K = {size}": (size,) for size in sizes}
        expected = {name: expected_latency(calls, shares, costs) for name, calls in ways.items()}
        if several:
            mixed = shortened(best_schedule(shares, costs))
            latency = expected_latency(mixed, shares, costs)
            if latency <= WORTH * min(expected.values()):
                ways["schedule"], expected["schedule"] = mixed, latency
        chosen = representative(exits, _affordable(seconds, sum(expected.values()) * 2 * ROUNDS))
        exact = manifest.numerics.precision != "fp16"
        times = _latencies(engines, policy, images, chosen, ways, track, exact=exact)
        found = [Candidate(name, calls, expected[name], times[name]) for name, calls in ways.items()]
        return Tuning(
            engine=opened[0].backend,
            threads=engine_kind.get("threads"),
            histogram=shares,
            costs=costs,
            call_samples=samples,
            fixed=tuple(found[: len(sizes)]),
            schedule=found[-1] if "schedule" in ways else None,
        )


def _call_samples(
    engines: Mapping[int, Engine],
    several: bool,
    policy: ExitPolicy,
    images: LabelledImages,
    exits: np.ndarray,
    seconds: float,
    track: Track,
) -> list[CallSample]:
    """Time calls, with all that the loop does around them, of inputs that stop as all do; lengths in random order."""
    sizes, rng, rows = tuple(engines), np.random.default_rng(0), representative(exits, MOST)

    def run(row: int, calls: tuple[int, ...]) -> tuple[tuple[int, ...], list[float]]:
        ends_ms = infer(engines[calls[0]], _image(images, row), policy, calls=calls).call_ends_ms
        return calls, np.diff(ends_ms, prepend=0.0).tolist()

    def drawn() -> Iterator[tuple[int, ...]]:
        while True:  # each first as often as the others, and twice in a row: then it may follow one of its own length
            for size in np.repeat(sizes, 2).tolist():
                yield probing_calls(sizes if several else (size,), size, policy.max_steps, rng)

    warm = [sum(run(row, (size,))[1]) for row in rows[:WARM_UPS] for size in sizes]
    count = len(sizes) * _affordable(seconds, float(np.mean(warm)) * len(sizes))
    # In another order every time, or an image would always begin with the same length.
    mixed = np.concatenate([rng.permutation(rows) for _ in range(0, count, len(rows))])[:count]
    planned = list(zip(mixed.tolist(), islice(drawn(), count), strict=True))
    return samples_of([run(*one) for one in track(planned, "measuring calls")])


def _latencies(
    engines: Mapping[int, Engine],
    policy: ExitPolicy,
    images: LabelledImages,
    rows: np.ndarray,
    ways: Mapping[str, Sequence[int]],
    track: Track,
    *,
    exact: bool,
) -> dict[str, np.ndarray]:
    """Milliseconds until the answer of every way, `[image, round]`; each image goes through all of them in turn."""
    times, order = {name: np.zeros((len(rows), ROUNDS)) for name in ways}, np.random.default_rng(0)
    for index, row in enumerate(track(rows.tolist(), "measuring latency")):
        before, pixels, first = _image(images, rows[index - 1]), _image(images, row), None
        for turn in range(ROUNDS):
            for name in order.permutation(list(ways)).tolist():
                calls = ways[name]
                # What ran before, another K perhaps, has left another cache: so first an image by these calls, too.
                infer(engines[calls[0]], before, policy, calls=calls)
                answer = infer(engines[calls[0]], pixels, policy, calls=calls).rows[0]
                times[name][index, turn] = answer.ms
                first = first or answer
                if exact and not _same(answer, first):
                    raise CheckFailed(
                        f"image {images.names[row]}: {name} answers {answer.label} after {answer.steps} steps, another "
                        f"way {first.label} after {first.steps}, expected the same. Nothing was written. This is a bug "
                        "or a backend that does not compute in float32: please report it."
                    )
    return times


def _same(one: Answer, other: Answer) -> bool:
    return (one.label, one.steps, one.reason) == (other.label, other.steps, other.reason) and np.array_equal(
        one.logits, other.logits
    )


def _affordable(seconds: float, ms: float) -> int:
    """How many images, each of so many milliseconds, are timed."""
    return int(np.clip(seconds * 1e3 / ms, FEWEST, MOST))


def _image(images: LabelledImages, row: int) -> np.ndarray:
    """uint8 `[1, channel, y, x]`"""
    return images.pixels(slice(row, row + 1))
