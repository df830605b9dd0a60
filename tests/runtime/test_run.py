"""`records`: the order of the inputs, whatever stops first; broken ones in their place; and how much may wait."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_network import manifest_of
from scripted_engine import ScriptedEngine, numbered_images

from dynamic_confidence.runtime import run
from dynamic_confidence.runtime.exit_policy import ExitPolicy
from dynamic_confidence.runtime.images import Broken, Sample
from dynamic_confidence.runtime.read_ahead import read_ahead
from dynamic_confidence.runtime.run import records, useful_batch

STEPS = 6


def engine_of(exits: list[int | None], batch: int, steps_per_call: int) -> tuple[ScriptedEngine, list[Sample | Broken]]:
    """Inputs that become sure at these steps, None being broken, and an engine that answers them."""
    logits = np.zeros((max(len(exits), 1), STEPS, 3), np.float32)
    images, items = numbered_images(len(exits)), []
    for number, step in enumerate(exits):
        if step is None:
            items.append(Broken(f"{number}", "damaged"))
        else:
            logits[number, step - 1 :, 1] = 9
            items.append(Sample(f"{number}", images[number], number % 3))
    return ScriptedEngine(manifest_of([([3], 0.5)], steps_per_call=steps_per_call), batch, logits), items


def feed(monkeypatch: pytest.MonkeyPatch, items: Iterable[Sample | Broken]) -> None:
    monkeypatch.setattr(run, "iterate_samples", lambda *_: iter(items))


exits = st.lists(st.none() | st.integers(1, STEPS), max_size=30)


@settings(max_examples=100, deadline=None)
@given(exits, st.integers(1, 6), st.integers(1, 3))
def test_records_stand_in_the_order_of_the_inputs(exits: list[int | None], batch: int, steps_per_call: int):
    engine, items = engine_of(exits, batch, steps_per_call)
    with pytest.MonkeyPatch.context() as monkeypatch:
        feed(monkeypatch, items)
        found = list(records(engine, [], ExitPolicy(1.0, 0.9, STEPS)))
    assert [record["input"] for record in found] == [str(number) for number in range(len(exits))]
    for number, (record, step) in enumerate(zip(found, exits, strict=True)):
        if step is None:
            assert record == {"input": f"{number}", "error": "damaged"}
        else:
            assert record.pop("ms") >= 0
            expected = {"label": 1, "name": "1", "steps": step, "exit": "confident", "truth": number % 3}
            assert record == {"input": f"{number}", "confidence": record["confidence"], **expected}


@pytest.mark.parametrize("steps_per_call", [1, 4])
@pytest.mark.parametrize(
    "pattern", [[STEPS, 1, 1, 1], [None], [1], [STEPS], [STEPS, *[None] * 50], [None, None, None, STEPS, 1, None]]
)
def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch, pattern: list[int | None], steps_per_call: int):
    """A slow input holds back the records behind it, but only batch * ceil(T / K) of them, and no more is read."""
    batch, given = 3, 0
    engine, items = engine_of((pattern * 200)[:200], batch, steps_per_call)
    bound = batch * -(-STEPS // steps_per_call)
    taken: list[int] = []

    def watched() -> Iterator[Sample | Broken]:
        for item in items:
            assert len(taken) - given <= bound + batch  # those that are read ahead
            taken.append(len(taken))
            yield item

    feed(monkeypatch, watched())
    for given, record in enumerate(records(engine, [], ExitPolicy(1.0, 0.9, STEPS)), start=1):
        assert record["input"] == str(given - 1)
    assert given == len(taken) == 200


def test_a_slow_input_does_not_keep_places_free(monkeypatch: pytest.MonkeyPatch):
    """The bound is never in the way of inputs that can be read."""
    engine, items = engine_of([STEPS, *[1] * 100], 4, 1)
    feed(monkeypatch, items)
    list(records(engine, [], ExitPolicy(1.0, 0.9, STEPS)))
    warm_up = 1
    assert engine.calls - warm_up == STEPS + -(-(100 - 3 * STEPS) // 4)


def test_closing_ends_the_reading(monkeypatch: pytest.MonkeyPatch):
    engine, items = engine_of([2] * 100, 4, 1)
    feed(monkeypatch, items)
    found = records(engine, [], ExitPolicy(1.0, 0.9, STEPS))
    assert next(found)["input"] == "0"
    found.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())
    feed(monkeypatch, items[:3])
    assert [record["steps"] for record in records(engine, [], ExitPolicy(1.0, 0.9, STEPS))] == [2, 2, 2]


@given(st.lists(st.integers()), st.integers(1, 5))
def test_reading_ahead_keeps_the_order(items: list[int], count: int):
    assert list(read_ahead(items, count)) == items


def test_reading_ahead_is_bounded_and_raises_in_its_turn():
    taken = []

    def source() -> Iterator[int]:
        for number in range(5):
            taken.append(number)
            yield number
        raise ZeroDivisionError

    ahead = read_ahead(source(), 2)
    assert next(ahead) == 0
    assert next(ahead) == 1
    assert len(taken) <= 4
    assert [next(ahead), next(ahead), next(ahead)] == [2, 3, 4]
    with pytest.raises(ZeroDivisionError):
        next(ahead)


def test_the_batch_is_not_larger_than_the_inputs(tmp_path: Path):
    for name in ("a/1.png", "a/2.JPG", "a/b/3.bmp", "a/notes.txt", "empty/notes.txt"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    one, folder, empty, array = tmp_path / "a/1.png", tmp_path / "a", tmp_path / "empty", tmp_path / "a.npz"
    assert useful_batch([one], 2000) == 1
    assert useful_batch([one, tmp_path / "missing.png"], 2000) == 2
    assert useful_batch([folder], 2000) == 3
    assert useful_batch([folder, one], 2000) == 4
    assert useful_batch([folder, one], 2) == 2
    assert useful_batch([empty], 7) == 1
    assert useful_batch([one, array], 7) == 7
    assert useful_batch([array], 7, frames=True) == 1
    for wanted in (1, 0, -3):
        assert useful_batch([folder], wanted) == wanted  # what makes no sense is the engine's to refuse
