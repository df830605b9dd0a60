"""Calls of different lengths, one after another: the answers of single steps, the calls of the plan, the deadline."""

from __future__ import annotations

from itertools import chain, repeat
from types import SimpleNamespace
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from memory_network import manifest_of
from scripted_engine import ScriptedEngine, numbered_images

from dynamic_confidence.runtime import stepping
from dynamic_confidence.runtime.continuous_batching import answer_stream
from dynamic_confidence.runtime.engine import StepOutput
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.exit_policy import ExitPolicy
from dynamic_confidence.runtime.manifest import Manifest, Metric, Schedule
from dynamic_confidence.runtime.run import _warm_up
from dynamic_confidence.runtime.stepping import infer

CLASSES, STEPS = 3, 7
SIZES = (1, 2, 3, 5)
COSTS = ((1, 1.0), (2, 1.5), (3, 2.0), (5, 2.5))


class Watched(ScriptedEngine):
    """Remembers the sizes of its calls; a step costs a millisecond of its clock."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.sizes: list[int] = []

    def step(self, pixels: np.ndarray | None = None, steps: int | None = None) -> StepOutput:
        output = super().step(pixels, steps)
        self.sizes.append(len(output.logits))
        return output


def manifest(schedule: tuple[int, ...] | None = None, *, sizes: tuple[int, ...] = SIZES, spikes: bool) -> Manifest:
    plain = manifest_of([([3], 0.5)], classes=CLASSES, steps_per_call=sizes[0], spikes=spikes)
    plan = None if schedule is None else Schedule(schedule, COSTS, "script", 1, 1.0, 1.0)
    return msgspec.structs.replace(plain, more_steps_per_call=sizes[1:], schedule=plan)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.lists(st.sampled_from(SIZES), min_size=1, max_size=8), st.sampled_from(get_args(Metric)))
def test_any_schedule_gives_the_answers_of_single_steps(data: st.DataObject, calls: list[int], metric: Metric):
    count = data.draw(st.integers(1, 5))
    logits = data.draw(arrays.arrays(np.float32, (count, STEPS, CLASSES), elements=st.sampled_from([0.0, 1.0, 6.0])))
    silence = arrays.arrays(np.float32, (count, STEPS, 2), elements=st.sampled_from([0.0, 0.0, 1.0]))
    spikes = data.draw(st.none() | silence)
    last = data.draw(st.integers(1, STEPS))
    policy = ExitPolicy(
        scale=data.draw(st.sampled_from([0.5, 1.0, 4.0])),
        threshold=data.draw(st.sampled_from([0.0, 1 / 3, 0.5, 0.75, 0.9, 1.0])),
        max_steps=last,
        min_step=data.draw(st.integers(1, last)),
        metric=metric,
        quiet_after=None if spikes is None else data.draw(st.none() | st.integers(0, STEPS)),
    )
    several = Watched(manifest(spikes=spikes is not None), count, logits, spikes)
    single = ScriptedEngine(manifest(sizes=(1,), spikes=spikes is not None), count, logits, spikes)
    found = infer(several, numbered_images(count), policy, calls=calls)
    expected = infer(single, numbered_images(count), policy)
    for name in ("label", "steps", "logits", "confidence", "score"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert found.reason == expected.reason
    made, planned = 0, chain(calls, repeat(calls[-1]))
    for size in several.sizes:
        assert made < expected.steps.max()  # no call is made for nothing
        assert size == next(planned)
        made += size
    assert made >= expected.steps.max()


def never_sure(calls: tuple[int, ...] | None, sizes: tuple[int, ...] = SIZES) -> Watched:
    return Watched(manifest(calls, sizes=sizes, spikes=False), 1, np.zeros((1, STEPS, CLASSES)))


POLICY = ExitPolicy(1.0, 1.0, STEPS)


@pytest.mark.parametrize(
    ("planned", "asked", "made"),
    [
        (None, None, [1] * 7),
        ((5, 2), None, [5, 2]),
        ((2, 1, 2), None, [2, 1, 2, 2]),
        ((5, 2), (3,), [3, 3, 3]),
        (None, [5, 1], [5, 1, 1]),
    ],
)
def test_the_calls_are_those_of_the_plan(planned, asked, made: list[int]):
    engine = never_sure(planned)
    assert infer(engine, numbered_images(1), POLICY, calls=asked).steps.tolist() == [STEPS]
    assert engine.sizes == made


def test_what_varies_in_time_runs_step_by_step():
    """A call of several steps would show one image in all of them."""
    engine = never_sure((5, 2))
    for asked in (None, (5, 2)):
        infer(engine, np.repeat(numbered_images(1)[None], STEPS, axis=0), POLICY, calls=asked)
    assert engine.sizes == [1] * 14


def test_slots_run_with_the_first_k():
    """Their inputs are at different steps."""
    engine = never_sure((5, 2))
    assert [answer.steps for _, answer in answer_stream(engine, numbered_images(1), POLICY)] == [STEPS]
    assert engine.sizes == [1] * 7


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((), r"calls \(\): expected the steps of at least one call"),
        ((1, 4), r"a call of 4 steps: this engine \(script\) was opened for 1, 2, 3, 5"),
        ((0,), r"a call of 0 steps: this engine"),
    ],
)
def test_calls_that_the_engine_does_not_have(asked, message: str):
    engine = never_sure(None)
    with pytest.raises(DynamicConfidenceError, match=message):
        infer(engine, numbered_images(1), POLICY, calls=asked)
    assert engine.sizes == []


@pytest.mark.parametrize(
    ("planned", "asked", "deadline_ms", "made"),
    [
        # Without costs a call takes what its steps take: one millisecond each.
        (None, (3, 1), 4.5, [3, 1]),
        (None, (3, 1), 3.5, [3]),
        (None, (1, 5), 6.5, [1, 5]),
        (None, (1, 5), 5.5, [1]),
        # With costs 1 for 1 and 2.5 for 5: after a millisecond the second is expected to take two and a half.
        ((1, 5), None, 3.4, [1]),
        ((1, 5), None, 3.6, [1, 5]),
        ((5, 1), None, 6.9, [5]),
        ((5, 1), None, 7.1, [5, 1]),
    ],
)
def test_the_deadline_knows_what_the_next_call_takes(
    monkeypatch: pytest.MonkeyPatch, planned, asked, deadline_ms: float, made: list[int]
):
    engine = never_sure(planned)
    monkeypatch.setattr(stepping, "time", SimpleNamespace(perf_counter=lambda: sum(engine.sizes) * 1e-3))
    policy = ExitPolicy(1.0, 1.0, STEPS, deadline_ms=deadline_ms)
    answer = infer(engine, numbered_images(1), policy, calls=asked).rows[0]
    assert engine.sizes == made
    assert answer.steps == min(sum(made), STEPS)
    assert answer.reason == "deadline"


def test_every_call_is_warmed_up():
    """The first answer's time has no first call in it, whichever call that is."""
    engine = never_sure((5, 2))
    _warm_up(engine)
    assert engine.sizes == list(SIZES)
