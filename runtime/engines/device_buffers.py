"""Where every tensor of a network lies in one block of device memory, and which calls run in which order; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..engine import no_image
from ..manifest import Manifest
from ..signature import shape_at

ALIGNMENT = 256
"""Bytes: what TensorRT asks of every address."""


class Place(NamedTuple):
    """A tensor at `offset` bytes from the start of the block, or of the set that holds it."""

    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def view(self, memory: np.ndarray) -> np.ndarray:
        """This tensor in uint8 memory `[byte]`."""
        return memory[self.offset : self.offset + self.nbytes].view(self.dtype).reshape(self.shape)

    def moved(self, offset: int) -> Place:
        return self._replace(offset=self.offset + offset)


@dataclass(frozen=True)
class Layout:
    """The block: state set 0, state set 1, the initial states, pixels, scale, answer set 0, answer set 1.

    Call number n (0, 1, …) has the direction d = n % 2: it reads state set d, writes state set 1 - d and answer set d.
    A state's input and output never share memory, and a call leaves what it reads as it was: it may be made again.
    """

    size: int
    state_sets: tuple[int, int]
    initial: int
    """Offset of the initial states, laid out like a state set: a reset is one copy onto state set 0."""
    state_bytes: int
    pixels: Place
    scale: Place
    answer_sets: tuple[int, int]
    answer_bytes: int
    tensors: tuple[dict[str, Place], dict[str, Place]]
    """Per direction, every input and output of the network."""
    answers: dict[str, Place]
    """Outputs from the start of an answer set: they come back in one copy."""
    initial_values: tuple[tuple[Place, float], ...]
    """Each state from the start of a state set, and what it is everywhere after a reset."""


def layout_from_manifest(manifest: Manifest, batch: int) -> Layout:
    """Lay out the tensors of a network for `batch` inputs, every one aligned to `ALIGNMENT` bytes."""

    states, state_bytes = _in_a_row(Place(0, s.dtype, shape_at(s.shape, batch)) for s in manifest.states)
    answers, answer_bytes = _in_a_row(Place(0, o.dtype, shape_at(o.shape, batch)) for o in manifest.outputs)
    (pixels, scale), fed_bytes = _in_a_row(
        [Place(0, manifest.input.dtype, shape_at(manifest.input.shape, batch)), Place(0, "float32", ())]
    )
    fed = 3 * state_bytes
    pixels, scale = pixels.moved(fed), scale.moved(fed)
    answer_sets = fed + fed_bytes, fed + fed_bytes + answer_bytes
    state_sets = 0, state_bytes

    def tensors(direction: int) -> dict[str, Place]:
        source, target = state_sets[direction], state_sets[1 - direction]
        table = {manifest.input.name: pixels, manifest.scale_input: scale}
        for state, place in zip(manifest.states, states, strict=True):
            table |= {state.input: place.moved(source), state.output: place.moved(target)}
        for output, place in zip(manifest.outputs, answers, strict=True):
            table[output.name] = place.moved(answer_sets[direction])
        return table

    return Layout(
        size=answer_sets[1] + answer_bytes,
        state_sets=state_sets,
        initial=2 * state_bytes,
        state_bytes=state_bytes,
        pixels=pixels,
        scale=scale,
        answer_sets=answer_sets,
        answer_bytes=answer_bytes,
        tensors=(tensors(0), tensors(1)),
        answers={output.name: place for output, place in zip(manifest.outputs, answers, strict=True)},
        initial_values=tuple((place, state.initial) for place, state in zip(states, manifest.states, strict=True)),
    )


def initial_states(layout: Layout) -> np.ndarray:
    """What belongs at `Layout.initial`: uint8 `[byte]`."""
    memory = np.zeros(layout.state_bytes, np.uint8)
    for place, value in layout.initial_values:
        place.view(memory)[...] = value
    return memory


class Copy(NamedTuple):
    """Bytes to be copied within the block."""

    target: int
    source: int
    size: int


def refill_copies(layout: Layout, direction: int, rows: Iterable[int]) -> list[Copy]:
    """What gives these batch rows their initial states in the state set that a call of this direction reads.

    Neighbouring rows go in one copy per state.
    """
    blocks: list[list[int]] = []  # first row, and the one behind the last
    for row in sorted(rows):
        if blocks and blocks[-1][1] == row:
            blocks[-1][1] += 1
        else:
            blocks.append([row, row + 1])
    copies = []
    for place, _ in layout.initial_values:
        row_bytes = place.nbytes // place.shape[0]
        for first, end in blocks:
            offset = place.offset + first * row_bytes
            copies.append(
                Copy(layout.state_sets[direction] + offset, layout.initial + offset, (end - first) * row_bytes)
            )
    return copies


def _in_a_row(places: Iterable[Place]) -> tuple[list[Place], int]:
    """Put one behind the other, aligned; returns the bytes they take as well."""
    row, end = [], 0
    for place in places:
        row.append(place.moved(end))
        end += -(-place.nbytes // ALIGNMENT) * ALIGNMENT
    return row, end


class Turn(NamedTuple):
    """How far an engine is since its last reset."""

    calls: int = 0
    """That have been answered."""
    ahead: bool = False
    """The next call has been launched already, on the image of the last one."""
    images: int = 0
    """That were given so far: 1 for a still image, more for an input that varies in time."""

    @property
    def direction(self) -> int:
        return self.calls % 2


def next_call(turn: Turn, new_image: bool, ahead_until: int) -> tuple[tuple[int, ...], Turn]:
    """Decide what to launch so that call `turn.calls` can be answered: the directions, in order, and the next turn.

    Below `ahead_until` calls (0: never) one call is launched before its turn, on the guess that the image stays. When
    another image comes after all, that call is made again: nothing is lost, since it has written the state set that
    the answered call had read, and its own source is as it was. After that the input is known to vary in time, and
    nothing is launched ahead until the next reset.
    Raises: DynamicConfidenceError when there is no image since the reset.
    """
    images = turn.images + new_image
    if images == 0:
        raise no_image()
    ahead = images == 1 and turn.calls + 1 < ahead_until
    launched = turn.ahead and not new_image
    numbers = range(turn.calls + launched, turn.calls + 1 + ahead)
    return tuple(number % 2 for number in numbers), Turn(turn.calls + 1, ahead, images)


def refilled(turn: Turn) -> Turn:
    """The turn after some rows of the batch got another input: a call launched ahead is forgotten, and none follows.

    Nothing has to be undone: that call has written the other state set, and will be made again. A refill counts as
    another image, so an engine whose batch is refilled guesses no more until the next reset.
    Raises: DynamicConfidenceError when there is no image since the reset, which the other rows would need.
    """
    if turn.images == 0:
        raise no_image()
    return turn._replace(ahead=False, images=turn.images + 1)
