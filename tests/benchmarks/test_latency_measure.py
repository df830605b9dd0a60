"""Inferences take turns and every sample is kept, also of a measurement that is stopped; on a clock of the tests'."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from latency_records import MACHINE
from memory_network import manifest_of
from scripted_engine import ScriptedEngine, numbered_images

from dynamic_confidence.benchmarks.latency import measure
from dynamic_confidence.benchmarks.latency import overhead as overhead_module
from dynamic_confidence.benchmarks.latency.bench import Asked
from dynamic_confidence.benchmarks.latency.measure import Measured, take_turns, warm_up
from dynamic_confidence.benchmarks.latency.memory import MemoryUse
from dynamic_confidence.benchmarks.latency.overhead import overhead
from dynamic_confidence.benchmarks.latency.record import Memory, NotMeasured
from dynamic_confidence.benchmarks.latency.subjects import Subject, chosen_rows, subset
from dynamic_confidence.benchmarks.latency.throughput import PASSES, continuously, in_batches, throughput
from dynamic_confidence.benchmarks.latency.write_up import record_of, run_of, step_times
from dynamic_confidence.calib.labelled_images import LabelledImages
from dynamic_confidence.runtime.engine import StepOutput
from dynamic_confidence.runtime.errors import CheckFailed, DynamicConfidenceError
from dynamic_confidence.runtime.exit_policy import ExitPolicy
from dynamic_confidence.runtime.manifest import Schedule

STEPS = 4
EXITS = [1, 3, 4]
"""Of three images: sure at once, sure later, never sure."""
PARTS = ("loop_us", "bare_us", "loop_once_us", "bare_once_us", "confidence_us")
LABELS = [2, 1, 1]


def script() -> np.ndarray:
    """Logits `[input, step, class]`: the answers are LABELS from the exit on, before that class 0."""
    logits = np.zeros((3, STEPS, 3), np.float32)
    for image, (exit_step, label) in enumerate(zip(EXITS, LABELS, strict=True)):
        logits[image, : exit_step - 1, 0] = 0.1
        logits[image, exit_step - 1 :, label] = 0.5 if image == 2 else 20.0
    return logits


class Clock:
    """Time stands still but for what the engines take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ns = 0
        self.log: list[tuple[str, int, int]] = []
        """Engine, image, steps of every inference."""
        monkeypatch.setattr(time, "perf_counter", lambda: self.ns / 1e9)
        monkeypatch.setattr(time, "perf_counter_ns", lambda: self.ns)

    @property
    def seconds(self) -> float:
        return self.ns / 1e9


class TimedScript(ScriptedEngine):
    """Takes so many milliseconds per step."""

    def __init__(self, clock: Clock, name: str, ms: float, **manifest: int) -> None:
        super().__init__(manifest_of([([3], 0.5)], max_steps=STEPS, **manifest), 1, script())
        self._clock, self._name, self._ms = clock, name, ms
        self.before_step: Callable[[], None] = lambda: None

    def reset(self, scale: float) -> None:
        super().reset(scale)
        self._clock.log.append((self._name, -1, 0))

    def step(self, pixels: np.ndarray | None = None, steps: int | None = None) -> StepOutput:
        self.before_step()
        output = super().step(pixels, steps)
        size = len(output.logits)
        self._clock.ns += int(size * self._ms * 1e6)
        name, _, done = self._clock.log[-1]
        self._clock.log[-1] = name, int(self._input[0]), done + size
        return output


def images() -> LabelledImages:
    """Labels of which the last one is not what is answered."""
    preprocessing = manifest_of([([3], 0.5)]).input.preprocessing
    return LabelledImages("set", ("a", "b", "c"), np.array([2, 1, 0]), preprocessing, numbered_images(3))


def measured(engine: ScriptedEngine, name: str = "net.onnx") -> Measured:
    subject = Subject(Path(name), images(), numbered_images(3))
    policy = ExitPolicy(1.0, 0.9, STEPS)
    return Measured(subject, engine, policy, 1, 12.0, 3.0, MemoryUse(10.0, None, 20.0, 30.0))


def untracked(items: Iterable[int], what: str) -> Iterator[int]:
    yield from items


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def ms_of(one: Measured) -> list[list[tuple[float, float]]]:
    return [[(sample.ms, sample.ms_without_exit) for sample in round_] for round_ in one.rounds]


def test_every_sample_is_kept(clock: Clock):
    one = measured(TimedScript(clock, "A", 2.0))
    take_turns([one], 3, 1e9, untracked)
    assert ms_of(one) == [[(2.0 * step, 2.0 * STEPS) for step in EXITS]] * 3
    assert [(sample.steps, sample.label, sample.label_without_exit) for sample in one.rounds[0]] == list(
        zip(EXITS, LABELS, LABELS, strict=True)
    )
    assert one.ms_per_image == 8.0


def test_engines_and_ways_take_turns_in_the_order_of_the_images(clock: Clock):
    engines = [measured(TimedScript(clock, name, 1.0)) for name in "AB"]
    take_turns(engines, 2, 1e9, untracked)
    forwards = [(name, image, steps) for image, step in enumerate(EXITS) for name in "AB" for steps in (step, STEPS)]
    backwards = [(name, image, steps) for image, step in enumerate(EXITS) for name in "BA" for steps in (STEPS, step)]
    assert clock.log == forwards + backwards


def test_the_warm_up_lasts_and_leaves_no_sample(clock: Clock):
    one = measured(TimedScript(clock, "A", 3.0))
    assert warm_up(one) == pytest.approx((3 + 4) * 3.0)
    assert clock.seconds >= measure.WARM_UP_S
    assert clock.seconds < measure.WARM_UP_S + 0.03
    assert {image for _, image, _ in clock.log} == {0, 1, 2}
    assert one.rounds == []


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, [3]), (0.021, [3, 1]), (0.044, [3, 3, 1]), (9.0, [3] * 5)])
def test_when_the_seconds_are_over_it_ends_but_one_round_is_whole(clock: Clock, seconds: float, rounds: list[int]):
    one = measured(TimedScript(clock, "A", 1.0))  # 20 ms a round
    take_turns([one], 5, seconds, untracked)
    assert [len(round_) for round_ in one.rounds if round_] == rounds


def test_the_garbage_collector_rests_meanwhile(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    import gc

    engine, states = TimedScript(clock, "A", 1.0), []
    engine.before_step = lambda: states.append(gc.isenabled())
    assert gc.isenabled()
    take_turns([measured(engine)], 1, 1e9, untracked)
    assert not any(states)
    assert gc.isenabled()


def failing(clock: Clock, calls: int, error: BaseException) -> TimedScript:
    """Raises at its call of this number."""
    engine, left = TimedScript(clock, "A", 1.0), [calls]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise error

    engine.before_step = count
    return engine


@pytest.mark.parametrize("calls", [7, 22, 30])
def test_an_engine_that_fails_leaves_its_samples(clock: Clock, calls: int):
    other, one = measured(TimedScript(clock, "B", 1.0), "other.onnx"), measured(failing(clock, calls, OSError("gone")))
    with pytest.raises(CheckFailed, match=r"net.onnx: script failed on image . \(OSError: gone\). Try another --back"):
        take_turns([other, one], 5, 1e9, untracked)
    asked = Asked((Path("other.onnx"),), Path("set"), against=Path("net.onnx"))
    record = record_of(asked, "dc-bench", MACHINE, [other, one], "it failed")
    assert record is not None
    assert (record.complete, record.stopped) == (False, "it failed")
    kept = [sum(map(len, run.with_exit.ms)) for run in record.runs]
    # An image is 1 + 4, 3 + 4 or 4 + 4 calls, or the other way round.
    assert kept[-1] == {7: 1, 22: 3, 30: 4}[calls]
    assert kept[0] == kept[1] + (calls == 7)  # in the second round it comes after the one that fails
    assert [len(pair.with_exit) for pair in record.pairs] == [2 if calls == 30 else 1]
    assert all((run.complete, run.failure) == (False, "it failed") for run in record.runs)


def test_what_failed_at_once_leaves_nothing(clock: Clock):
    one = measured(failing(clock, 1, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        take_turns([one], 5, 1e9, untracked)
    assert record_of(Asked((Path("net.onnx"),), Path("set")), "dc-bench", MACHINE, [one], "Ctrl-C") is None


def test_what_our_own_errors_say_stays(clock: Clock):
    one = measured(failing(clock, 3, DynamicConfidenceError("our words")))
    with pytest.raises(DynamicConfidenceError, match=r"^our words$"):
        take_turns([one], 1, 1e9, untracked)


def test_an_exact_network_that_answers_otherwise_is_refused(clock: Clock):
    engine = TimedScript(clock, "A", 1.0)
    one, calls = measured(engine), [0]

    def change() -> None:
        calls[0] += 1
        if calls[0] == 21:  # the second round has begun
            engine._logits[0, :, 1] = 30.0

    engine.before_step = change
    with pytest.raises(
        CheckFailed, match="image a was answered 1 after 1 steps and 1 after all, in the first round 2 after 1 steps"
    ):
        take_turns([one], 2, 1e9, untracked)


def test_a_run_is_written_up(clock: Clock):
    one = measured(TimedScript(clock, "A", 2.0, steps_per_call=2))
    take_turns([one], 2, 1e9, untracked)
    one.complete = True
    run = run_of(one, None)
    assert run.file == "net.onnx"
    assert run.exit_steps == EXITS
    assert run.right == run.right_without_exit == [True, True, False]
    assert run.with_exit.ms == [[4.0, 8.0, 8.0]] * 2  # calls of two steps run to their end
    assert run.step_ms == pytest.approx([4.0, 4.0, 8.0, 8.0])
    assert run.network.calls == [2]
    assert run.network.threshold == 0.9
    assert run.network.calibrated_on is None
    assert run.memory == Memory(rss_before=10.0, rss_open=20.0, rss_peak=30.0, gpu=None)
    assert run.energy == NotMeasured(reason="it ended before")
    record = record_of(Asked((Path("net.onnx"),), Path("set")), "dc-bench net.onnx", MACHINE, [one], None)
    assert record is not None
    assert (record.complete, record.stopped, record.pairs) == (True, None, [])
    assert (record.data.title, record.data.images) == ("set", 3)
    assert record.data.samples_sha256 == images().identity()
    assert msgspec.json.decode(msgspec.json.encode(record), type=type(record)) == record


def test_steps_in_calls_of_several_sizes():
    ends = [[4.0, 5.0, 6.0], [4.0, 5.0, 8.0], [1.0, 9.0, 6.0]]
    assert step_times(ends, [3, 1], 5) == [4.0, 4.0, 4.0, 5.0, 6.0]
    assert step_times(ends, [3, 1, 4], 6) == [4.0, 4.0, 4.0, 5.0, 6.0, 6.0]


def scheduled(clock: Clock, calls: tuple[int, ...] | None, usual: int = 1) -> TimedScript:
    """An engine whose inferences make these calls; None: of the usual number of steps."""
    engine = TimedScript(clock, "A", 1.0, steps_per_call=usual)
    if calls is not None:
        costs = tuple((size, 1.0) for size in sorted({usual, *calls}))
        manifest = msgspec.structs.replace(
            engine.manifest,
            more_steps_per_call=tuple(sorted({*calls} - {usual})),
            schedule=Schedule(calls, costs, "script", None, 1.0, 1.0),
        )
        ScriptedEngine.__init__(engine, manifest, 1, script())
    return engine


@pytest.mark.parametrize(("calls", "sizes"), [(None, [1, 1, 1, 1]), ((2, 1), [2, 1, 1]), ((1, 4), [1, 4])])
def test_the_bare_loop_makes_the_calls_of_infer(
    clock: Clock, calls: tuple[int, ...] | None, sizes: list[int], monkeypatch: pytest.MonkeyPatch
):
    engine = scheduled(clock, calls)
    taken: list[list[int]] = []
    step, reset = engine.step, engine.reset

    def noted_reset(scale: float) -> None:
        taken.append([])
        reset(scale)

    def noted(pixels: np.ndarray | None = None, steps: int | None = None) -> StepOutput:
        output = step(pixels, steps)
        taken[-1].append(len(output.logits))
        return output

    monkeypatch.setattr(engine, "step", noted)
    monkeypatch.setattr(engine, "reset", noted_reset)
    found = overhead(engine, numbered_images(3), 5)
    assert taken == [sizes] * 15  # bare, in the loop, and for the logits of the confidence
    assert {key: len(values) for key, values in msgspec.structs.asdict(found).items()} == dict.fromkeys(PARTS, 5)
    # All the time there is passes in the engine.
    assert all(set(getattr(found, key)) == {0.0} for key in PARTS)


@pytest.mark.parametrize(
    ("usual", "calls", "sizes", "step_us", "once_us"),
    [
        (1, None, [1, 1, 1, 1], (12 + 120 + 1200) / 3, 7 + 12000),
        (1, (2, 1), [2, 1, 1], (12 + 120) / 3, 7 + 1200),
        (1, (1, 2), [1, 2, 2], (12 + 120) / 3, 7 + 1200),  # the last call goes beyond T
        (3, None, [3, 3], 12 / 3, 7 + 120),
        (1, (1, 3), [1, 3], 12 / 1, 7 + 120),
        (1, (4,), [4], 0.0, 7 + 12),
        (4, None, [4], 0.0, 7 + 12),
    ],
)
def test_what_passes_between_the_calls_and_what_passes_once(
    clock: Clock,
    usual: int,
    calls: tuple[int, ...] | None,
    sizes: list[int],
    step_us: float,
    once_us: float,
    monkeypatch: pytest.MonkeyPatch,
):
    engine = scheduled(clock, calls, usual)
    reset = engine.reset

    def slow_reset(scale: float) -> None:
        reset(scale)
        clock.ns += 500_000

    def taking(times: int) -> Callable[..., SimpleNamespace]:
        """A loop that takes 3 µs before its reset, 4 behind it, and 12, 120, … after one call after another."""

        def loop(timed: TimedScript, *_: object) -> SimpleNamespace:
            clock.ns += times * 3_000
            timed.reset(1.0)
            clock.ns += times * 4_000
            for call, size in enumerate(sizes):
                output = timed.step(numbered_images(1), size)
                clock.ns += times * 12_000 * 10**call
            return SimpleNamespace(logits=output.logits[-1])

        return loop

    monkeypatch.setattr(engine, "reset", slow_reset)
    monkeypatch.setattr(overhead_module, "_bare", taking(1))
    monkeypatch.setattr(overhead_module, "infer", taking(2))
    found = overhead(engine, numbered_images(1), 2)
    assert (found.bare_us, found.loop_us) == ([step_us] * 2, [2 * step_us] * 2)
    assert (found.bare_once_us, found.loop_once_us) == ([once_us] * 2, [2 * once_us] * 2)


def test_throughput_answers_all_images_in_both_ways():
    pixels = np.concatenate([numbered_images(3)] * 3)
    engine = ScriptedEngine(manifest_of([([3], 0.5)], max_steps=STEPS), 2, script())
    policy = ExitPolicy(1.0, 0.9, STEPS)
    assert [answer.steps for answer in in_batches(engine, pixels, policy)] == EXITS * 3
    assert [answer.steps for answer in continuously(engine, pixels, policy)] == EXITS * 3
    found = throughput(engine, pixels, policy, 1e9)
    assert [(one.batch, one.early_exit, len(one.passes)) for one in found] == [(2, False, PASSES), (2, True, PASSES)]
    assert all(one.images_per_second == np.median(one.passes) > 0 for one in found)
    assert [len(one.passes) for one in throughput(engine, pixels, policy, 0.0)] == [1, 1]


@pytest.mark.parametrize(
    ("total", "count", "rows"), [(3, 5, [0, 1, 2]), (3, 3, [0, 1, 2]), (10, 2, [2, 7]), (10, 1, [5]), (7, 3, [1, 3, 5])]
)
def test_images_are_spread_evenly_in_their_order(total: int, count: int, rows: list[int]):
    assert chosen_rows(total, count) == rows


def test_a_subset_of_images():
    found = subset(images(), [0, 2])
    assert found.names == ("a", "c")
    assert found.label.tolist() == [2, 0]
    np.testing.assert_array_equal(found.pixels(slice(None)), numbered_images(3)[[0, 2]])
    files = LabelledImages("set", ("a", "b"), np.array([0, 1]), images().preprocessing, (Path("a"), Path("b")))
    assert subset(files, [1]).source == (Path("b"),)


def test_a_subject_with_fewer_images_has_their_pixels():
    subject = Subject(Path("net.onnx"), images(), numbered_images(3)).only(1)
    assert subject.images.names == ("b",)
    assert subject.pixels[:, 0, 0, 0].tolist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "--images 0: expected at least 1."),
        ({"rounds": 0}, "--rounds 0: expected at least 1."),
        ({"batch": 0}, "--batch 0: expected at least 1."),
        ({"seconds": 0.0}, "--seconds 0: expected a positive number."),
        ({"seconds": float("nan")}, "--seconds nan: expected a positive number."),
    ],
)
def test_what_cannot_be_asked_for(options: dict, message: str):
    with pytest.raises(DynamicConfidenceError) as caught:
        Asked((Path("net.onnx"),), Path("set"), **options)
    assert str(caught.value) == message
