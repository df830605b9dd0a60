"""Continuous batching: every input is answered as if it ran alone, and no place waits while inputs do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from memory_network import manifest_of
from scripted_engine import ScriptedEngine, numbered_images

from dynamic_confidence.runtime import continuous_batching
from dynamic_confidence.runtime.continuous_batching import Slots, answer_stream
from dynamic_confidence.runtime.engine import StepOutput
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.exit_policy import ExitPolicy
from dynamic_confidence.runtime.manifest import Manifest, Metric
from dynamic_confidence.runtime.stepping import Answer, infer

CLASSES, STEPS = 3, 7


@dataclass(frozen=True)
class Script:
    """What some inputs answer at each step, and when they may stop."""

    logits: np.ndarray
    spikes: np.ndarray | None
    steps_per_call: int
    policy: ExitPolicy

    @property
    def manifest(self) -> Manifest:
        spikes = self.spikes is not None
        return manifest_of([([3], 0.5)], classes=CLASSES, steps_per_call=self.steps_per_call, spikes=spikes)

    def engine(self, batch: int) -> ScriptedEngine:
        return ScriptedEngine(self.manifest, batch, self.logits, self.spikes)


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """Logits of few values, so that answers repeat and scores meet the threshold, and layers that fall silent."""
    count = draw(st.integers(1, 24))
    logits = draw(arrays.arrays(np.float32, (count, STEPS, CLASSES), elements=st.sampled_from([0.0, 1.0, 2.0, 6.0])))
    counts = st.none() | arrays.arrays(np.float32, (count, STEPS, 2), elements=st.sampled_from([0.0, 0.0, 1.0]))
    spikes = draw(counts)
    max_steps = draw(st.integers(1, STEPS))
    policy = ExitPolicy(
        scale=draw(st.sampled_from([0.5, 1.0, 4.0])),
        threshold=draw(st.sampled_from([0.0, 1 / 3, 0.5, 2 / 3, 0.75, 0.9, 1.0])),
        max_steps=max_steps,
        min_step=draw(st.integers(1, max_steps)),
        metric=draw(st.sampled_from(get_args(Metric))),
        quiet_after=None if spikes is None else draw(st.none() | st.integers(0, STEPS)),
    )
    return Script(logits, spikes, draw(st.integers(1, 4)), policy)


def assert_same(found: Answer, expected: Answer) -> None:
    np.testing.assert_array_equal(found.logits, expected.logits)
    assert found._replace(ms=0, logits=expected.logits) == expected._replace(ms=0)


@settings(max_examples=300, deadline=None)
@given(scripts(), st.integers(1, 9))
def test_every_input_is_answered_as_alone(script: Script, batch: int):
    images, engine = numbered_images(len(script.logits)), script.engine(batch)
    found = dict(answer_stream(engine, iter(images), script.policy))
    alone = script.engine(1)
    expected = [infer(alone, image[None], script.policy).rows[0] for image in images]
    assert sorted(found) == list(range(len(images)))
    for number, answer in enumerate(expected):
        assert_same(found[number], answer)
        assert found[number].ms > 0
    # No place is free while an input waits: Graham's bound for jobs that are taken in any order.
    calls = [-(-answer.steps // script.steps_per_call) for answer in expected]
    assert engine.calls <= sum(calls) / batch + (1 - 1 / batch) * max(calls)


@settings(max_examples=60, deadline=None)
@given(scripts())
def test_a_batch_that_holds_all_is_a_plain_batch(script: Script):
    """Calls and all: nothing is refilled."""
    images, count = numbered_images(len(script.logits)), len(script.logits)
    one, other = script.engine(count), script.engine(count)
    answers = infer(one, images, script.policy)
    for number, answer in answer_stream(other, images, script.policy):
        assert_same(answer, answers.rows[number])
    assert one.calls == other.calls


def script_of(exits: list[int], *, steps_per_call: int = 1, **policy: object) -> Script:
    """Inputs that become sure at these steps."""
    logits = np.zeros((len(exits), STEPS, CLASSES), np.float32)
    for row, step in zip(logits, exits, strict=True):
        row[step - 1 :, 1] = 9
    return Script(logits, None, steps_per_call, ExitPolicy(1.0, 0.9, STEPS, **policy))  # type: ignore[arg-type]


def test_they_come_as_they_stop():
    script = script_of([5, 1, 2, 1, 1, 7])
    found = list(answer_stream(script.engine(2), numbered_images(6), script.policy))
    assert [number for number, _ in found] == [1, 2, 3, 0, 4, 5]
    assert [answer.steps for _, answer in found] == [1, 2, 1, 5, 1, 7]


def test_samples_are_taken_when_there_is_a_place():
    """A slow input does not let the following ones pile up, and nothing is taken before it is needed."""
    script, taken = script_of([7, 1, 1, 1, 1, 1, 1]), []

    def images() -> Iterator[np.ndarray]:
        for number, image in enumerate(numbered_images(7)):
            taken.append(number)
            yield image

    answered = 0
    for _ in answer_stream(script.engine(2), images(), script.policy):
        answered += 1
        assert len(taken) <= answered + 1  # those that are answered, and the other one in the batch
    assert answered == len(taken) == 7


def test_no_inputs_no_call():
    engine = script_of([1]).engine(2)
    assert list(answer_stream(engine, [], ExitPolicy(1.0, 0.9, STEPS))) == []
    assert engine.calls == 0
    assert Slots(engine, ExitPolicy(1.0, 0.9, STEPS)).step() == []


def test_an_iterator_that_is_closed_leaves_an_engine_that_works():
    script = script_of([3, 1, 6, 2])
    engine, images = script.engine(2), numbered_images(4)
    stream = answer_stream(engine, images, script.policy)
    assert next(stream)[0] == 1
    stream.close()  # type: ignore[attr-defined]
    assert infer(engine, images[2:], script.policy).steps.tolist() == [6, 2]
    assert sorted(answer.steps for _, answer in answer_stream(engine, images, script.policy)) == [1, 2, 3, 6]


class Clock:
    """Milliseconds that pass in calls of the engine only, one each."""

    def __init__(self, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(continuous_batching, "time", SimpleNamespace(perf_counter=lambda: engine.calls * 1e-3))


@pytest.mark.parametrize(("steps_per_call", "deadline_ms", "steps"), [(1, 3, 3), (1, 3.5, 3), (1, 0.1, 1), (3, 2, 6)])
def test_the_deadline_of_each_counts_from_its_place(monkeypatch, steps_per_call: int, deadline_ms: float, steps: int):
    """Those that enter later have as long, and what is sure before is confident."""
    script = script_of([9, 1, 9, 9, 2, 9], steps_per_call=steps_per_call, deadline_ms=deadline_ms)
    engine = script.engine(2)
    Clock(engine, monkeypatch)
    found = dict(answer_stream(engine, numbered_images(6), script.policy))
    for number, sure in ((0, 9), (1, 1), (2, 9), (3, 9), (4, 2), (5, 9)):
        assert found[number].steps == min(steps, sure)
        assert found[number].reason == ("confident" if sure <= steps else "deadline")
        assert found[number].ms == pytest.approx(-(-found[number].steps // steps_per_call))


def test_slots_are_filled_as_the_caller_likes():
    """A server's loop: what is there goes in, under names of its own, also before the first call."""
    script = script_of([3, 1, 2])
    slots: Slots[str] = Slots(script.engine(3), script.policy)
    images = numbered_images(3)
    slots.fill([("slow", images[0])])
    slots.fill([("fast", images[1])])
    assert slots.free == 1
    assert [(name, answer.steps) for name, answer in slots.step()] == [("fast", 1)]
    slots.fill([])
    assert slots.step() == []
    slots.fill([("late", images[2]), ("again", images[1])])
    assert [(name, answer.steps) for name, answer in slots.step()] == [("slow", 3), ("again", 1)]
    assert slots.free == 2
    assert [(name, answer.steps) for name, answer in slots.step()] == [("late", 2)]
    assert slots.free == 3


def test_more_inputs_than_places_are_refused():
    script = script_of([1, 1, 1])
    slots: Slots[int] = Slots(script.engine(2), script.policy)
    with pytest.raises(DynamicConfidenceError, match="3 inputs for 2 free places: expected no more"):
        slots.fill(list(enumerate(numbered_images(3))))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((1, 2, 3), np.float32), r"input float32 \[1, 2, 3\]: expected uint8 \[1, 2, 3\]"),
        (np.zeros((1, 2, 4), np.uint8), r"input uint8 \[1, 2, 4\]: expected uint8 \[1, 2, 3\]"),
        (np.zeros((5, 1, 2, 3), np.uint8), r"input uint8 \[5, 1, 2, 3\]: .* Inputs that vary in time run with `infer`"),
    ],
)
def test_pixels_that_do_not_fit_are_refused(pixels: np.ndarray, message: str):
    script = script_of([1, 1, 1])
    with pytest.raises(DynamicConfidenceError, match=message):
        list(answer_stream(script.engine(2), [*numbered_images(2), pixels], script.policy))


def test_threshold_one_holds_where_an_engine_rounds_the_confidence_up():
    class RoundsUp(ScriptedEngine):
        def step(self, pixels: np.ndarray | None = None) -> StepOutput:
            return super().step(pixels)._replace(confidence=np.full((1, 2), 1.0000001, np.float32))

    script = script_of([1, 1, 1])
    engine = RoundsUp(script.manifest, 2, script.logits)
    policy = ExitPolicy(1.0, 1.0, STEPS)
    assert {answer.steps for _, answer in answer_stream(engine, numbered_images(3), policy)} == {STEPS}
