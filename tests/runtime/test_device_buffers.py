"""The memory table and the order of calls, interpreted on a numpy array: every run equals states passed by value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_network import NETWORKS, PlainNetwork, answer_of, manifest_of, tensors_of

from dynamic_confidence.runtime.engines.device_buffers import (
    ALIGNMENT,
    Layout,
    Place,
    Turn,
    initial_states,
    layout_from_manifest,
    next_call,
    refill_copies,
    refilled,
)
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Manifest

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=3)
manifests = st.builds(
    manifest_of,
    st.lists(st.tuples(sizes, st.integers(-3, 3).map(float)), min_size=1, max_size=6),
    classes=st.integers(1, 40),
    steps_per_call=st.integers(1, 4),
    spikes=st.booleans(),
    frames=st.booleans(),
)
steps = st.one_of(st.just(("step", None)), st.tuples(st.just("step"), st.integers(0, 255)))
resets = st.tuples(st.just("reset"), st.integers(1, 9).map(float))
refills = st.tuples(st.just("refill"), st.tuples(st.sets(st.integers(0, 5)), st.integers(0, 255)))
histories = st.lists(st.one_of(steps, steps, resets, refills), min_size=1, max_size=14)


@given(manifests, st.integers(1, 70))
def test_every_tensor_is_aligned_and_has_memory_of_its_own(manifest: Manifest, batch: int):
    layout = layout_from_manifest(manifest, batch)
    names = {manifest.input.name, manifest.scale_input, *(o.name for o in manifest.outputs)}
    names |= {name for state in manifest.states for name in (state.input, state.output)}
    for direction, table in enumerate(layout.tensors):
        assert set(table) == names
        own = Place(layout.initial, "uint8", (layout.state_bytes,))
        unread = Place(layout.answer_sets[1 - direction], "uint8", (layout.answer_bytes,))
        places = sorted([*table.values(), own, unread])
        assert all(one.offset + one.nbytes <= other.offset for one, other in pairwise(places))
        assert places[-1].offset + places[-1].nbytes <= layout.size
        assert not any(place.offset % ALIGNMENT for place in places)
    assert all(place.shape[:1] == (batch,) for place, _ in layout.initial_values)
    forth, back = layout.tensors
    for state in manifest.states:
        assert (forth[state.input], forth[state.output]) == (back[state.output], back[state.input])


@given(manifests, st.integers(1, 5))
def test_a_reset_is_one_copy_and_so_is_an_answer(manifest: Manifest, batch: int):
    layout = layout_from_manifest(manifest, batch)
    memory = np.full(layout.size, 0xAB, np.uint8)
    memory[: layout.state_bytes] = initial_states(layout)
    for state in manifest.states:
        assert (layout.tensors[0][state.input].view(memory) == state.initial).all()
    for direction, start in enumerate(layout.answer_sets):
        for name, place in layout.answers.items():
            assert layout.tensors[direction][name] == place.moved(start)
            assert place.offset + place.nbytes <= layout.answer_bytes


class Interpreter:
    """The table and `next_call` on a numpy array, every launch done at once; `DeviceLoop` does the same on a stream."""

    def __init__(self, layout: Layout, network: Callable[..., None], ahead_until: int) -> None:
        self.layout, self.network, self.ahead_until, self.launched = layout, network, ahead_until, 0
        self.memory = np.random.default_rng(0).integers(0, 256, layout.size, np.uint8)
        self.memory[layout.initial : layout.initial + layout.state_bytes] = initial_states(layout)

    def reset(self, scale: float) -> None:
        layout = self.layout
        layout.scale.view(self.memory)[...] = scale
        image = self.memory[layout.initial : layout.initial + layout.state_bytes]
        self.memory[layout.state_sets[0] : layout.state_sets[0] + layout.state_bytes] = image
        self.turn = Turn()

    def refill(self, rows: list[int], pixel: int) -> None:
        self.turn = refilled(self.turn)
        for target, source, size in refill_copies(self.layout, self.turn.direction, rows):
            self.memory[target : target + size] = self.memory[source : source + size]
        self.layout.pixels.view(self.memory)[..., rows, :, :, :] = pixel

    def step(self, pixel: int | None) -> dict[str, np.ndarray]:
        current = self.turn.direction
        launches, self.turn = next_call(self.turn, pixel is not None, self.ahead_until)
        if pixel is not None:
            self.layout.pixels.view(self.memory)[...] = pixel
        for direction in launches:
            self.network(tensors_of(self.layout, direction, self.memory))
        self.launched += len(launches)
        start = self.layout.answer_sets[current]
        return {name: place.moved(start).view(self.memory).copy() for name, place in self.layout.answers.items()}


def run(manifest: Manifest, layout: Layout, network: Callable[..., None], history: list, ahead_until: int) -> bool:
    """Interpret a history beside the plain one, which passes states by value; True when all answers are the same."""
    found = Interpreter(layout, network, ahead_until)
    found.reset(1.0)
    plain = PlainNetwork(manifest, layout, 1.0)
    seen = False
    for what, value in history:
        if what == "reset":
            found.reset(value)
            plain, seen = PlainNetwork(manifest, layout, value), False
        elif what == "refill":
            rows = sorted({row % layout.initial_values[0][0].shape[0] for row in value[0]})
            if seen:
                found.refill(rows, value[1])
                plain.refill(rows, value[1])
            else:
                with pytest.raises(DynamicConfidenceError, match=r"no image since the reset: give step\(\) the pixels"):
                    found.refill(rows, value[1])
        elif value is None and not seen:
            with pytest.raises(DynamicConfidenceError, match=r"no image since the reset: give step\(\) the pixels in"):
                found.step(None)
        else:
            seen = True
            answer, expected = found.step(value), answer_of(plain(value))
            if not all(np.array_equal(answer[name], expected[name]) for name in expected):
                return False
    return True


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
@given(manifest=manifests, batch=st.integers(1, 3), history=histories, ahead_until=st.sampled_from([0, 3, 100]))
def test_the_table_is_right(network, manifest: Manifest, batch: int, history: list, ahead_until: int):
    assert run(manifest, layout_from_manifest(manifest, batch), network, history, ahead_until)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_the_test_can_fail(network):
    """A table whose states are written where they are read, and one whose answers of both directions are one."""
    manifest = manifest_of([([3], 0.5), ([2, 2], 0.0)])
    layout = layout_from_manifest(manifest, 2)
    history = [("step", 7), ("step", None), ("step", None)]
    assert run(manifest, layout, network, history, 0)
    shared = {state.output: layout.tensors[0][state.input] for state in manifest.states}
    in_place = replace(layout, tensors=(layout.tensors[0] | shared, layout.tensors[0] | shared))
    assert not run(manifest, in_place, network, history, 0)
    answers = {name: layout.tensors[0][name] for name in layout.answers}
    one_answer = replace(
        layout,
        answer_sets=(layout.answer_sets[0],) * 2,
        tensors=(layout.tensors[0], layout.tensors[1] | answers),
    )
    assert run(manifest, one_answer, network, history, 0)
    assert not run(manifest, one_answer, network, history, 100)


@given(histories, st.integers(0, 20))
def test_what_is_launched(history: list, ahead_until: int):
    """Each call is answered after its launch, at most one is wasted a reset, and none lies beyond the limit.

    A refill wastes no other: what follows it is not guessed any more.
    """
    turn, launches_since, calls_since = Turn(), 0, 0
    for what, value in history:
        if what == "reset":
            turn, launches_since, calls_since = Turn(), 0, 0
        elif what == "refill":
            turn = refilled(turn) if turn.images else turn
            assert not turn.ahead
        elif value is not None or turn.images:
            current = turn.direction
            launches, turn = next_call(turn, value is not None, ahead_until)
            launches_since, calls_since = launches_since + len(launches), calls_since + 1
            assert turn.calls == calls_since
            assert calls_since <= launches_since <= calls_since + 1
            assert current in launches or value is None
            assert not turn.ahead or turn.images == 1
            assert all(one != other for one, other in pairwise(launches))
            assert not turn.ahead or turn.calls < ahead_until
    if ahead_until == 0:
        assert launches_since == calls_since


def test_a_still_image_wastes_nothing_up_to_the_limit():
    turn, launched = Turn(), []
    for call in range(5):
        directions, turn = next_call(turn, call == 0, 5)
        launched.append(directions)
    assert launched == [(0, 1), (0,), (1,), (0,), ()]


def test_a_refill_forgets_what_was_launched_ahead():
    directions, turn = next_call(Turn(), True, 5)
    assert (directions, turn.ahead) == ((0, 1), True)
    directions, turn = next_call(refilled(turn), False, 5)
    assert (directions, turn.ahead) == ((1,), False)  # again, and nothing ahead
    directions, turn = next_call(turn, False, 5)
    assert (directions, turn.ahead) == ((0,), False)


def test_neighbouring_rows_are_one_copy():
    layout = layout_from_manifest(manifest_of([([3], 0.5), ([2, 2], 0.0)]), 6)
    copies = refill_copies(layout, 1, [5, 1, 2, 0])
    assert [copy.size for copy in copies] == [3 * 12, 12, 3 * 16, 16]
    assert [copy.target - layout.state_sets[1] for copy in copies] == [0, 60, 256, 256 + 80]
    assert [copy.source - layout.initial for copy in copies] == [0, 60, 256, 256 + 80]
    assert refill_copies(layout, 0, []) == []
