"""The loop on a queue that works as late as a stream may: answers equal states passed by value, and nothing is left."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_network import NETWORKS, PlainNetwork, answer_of, manifest_of, scribbles_first, tensors_of
from queued_memory import QueuedMemory

from dynamic_confidence.runtime.cuda.errors import CudaError
from dynamic_confidence.runtime.engines.device_buffers import layout_from_manifest
from dynamic_confidence.runtime.engines.device_loop import DeviceLoop
from dynamic_confidence.runtime.errors import DynamicConfidenceError

MANIFEST = manifest_of([([3, 2], 0.5), ([4], -1.0)], steps_per_call=2, spikes=True)
BATCH = 2
LAYOUT = layout_from_manifest(MANIFEST, BATCH)
SHAPE = LAYOUT.pixels.shape
steps = st.one_of(st.just(("step", None)), st.tuples(st.just("step"), st.integers(0, 255)))
resets = st.tuples(st.just("reset"), st.integers(1, 9).map(float))
refills = st.tuples(st.just("refill"), st.tuples(st.sets(st.integers(0, BATCH - 1)), st.integers(0, 255)))
histories = st.lists(st.one_of(steps, steps, resets, refills), min_size=1, max_size=14)


def opened(stack: ExitStack, cuda: QueuedMemory, *, network=scribbles_first, ahead_until=0, graphs=True):
    """A loop that has been started and reset, and what it said of graphs."""
    loop = DeviceLoop(cuda, LAYOUT, ahead_until, stack)  # type: ignore[arg-type]
    assert loop.address % 256 == 0

    def enqueue(direction: int) -> None:
        cuda.give(lambda: network(tensors_of(LAYOUT, direction, cuda.memory)))

    said = loop.start(enqueue, graphs, lambda: None, stack)
    loop.reset(1.0)
    return loop, said


def image(value: int | None) -> np.ndarray | None:
    return None if value is None else np.full(SHAPE, value, np.uint8)


def refill(loop: DeviceLoop, rows: list[int], value: int) -> None:
    pixels = np.full((len(rows), *SHAPE[-3:]), value, np.uint8)
    loop.refill(np.array(rows, np.int64), pixels)
    pixels.fill(99)  # the caller's array is the caller's again


@pytest.mark.parametrize(
    ("network", "late", "graphs", "ahead_until"), list(product(NETWORKS, (True, False), (True, False), (0, 4, 99)))
)
@given(history=histories)
def test_every_history_gives_the_same_answers(network, late: bool, graphs: bool, ahead_until: int, history: list):
    cuda = QueuedMemory(late=late)
    with ExitStack() as stack:
        loop, _ = opened(stack, cuda, network=network, ahead_until=ahead_until, graphs=graphs)
        plain, seen = PlainNetwork(MANIFEST, LAYOUT, 1.0), False
        for what, value in history:
            if what == "reset":
                loop.reset(value)
                plain, seen = PlainNetwork(MANIFEST, LAYOUT, value), False
            elif what == "refill":
                if seen:
                    refill(loop, sorted(value[0]), value[1])
                    plain.refill(sorted(value[0]), value[1])
            elif value is not None or seen:
                seen = True
                pixels = image(value)
                found, expected = loop.step(pixels), answer_of(plain(value))
                if pixels is not None:
                    pixels.fill(99)  # the caller's array is the caller's again
                for name, values in found._asdict().items():
                    np.testing.assert_array_equal(values, expected[name])
    assert cuda.alive == []


def test_what_is_said_of_graphs():
    with ExitStack() as stack:
        assert opened(stack, QueuedMemory())[1] == "CUDA graphs"
        assert opened(stack, QueuedMemory(), graphs=False)[1] == "no CUDA graphs"
        assert opened(stack, QueuedMemory(captures=False))[1] == "no CUDA graphs: this queue has none"


def test_a_plan_that_is_known_not_to_be_capturable():
    def not_capturable() -> None:
        raise CudaError("TensorRT says that this plan cannot be captured")

    cuda = QueuedMemory()
    with ExitStack() as stack:
        loop = DeviceLoop(cuda, LAYOUT, 0, stack)  # type: ignore[arg-type]
        said = loop.start(lambda direction: None, True, not_capturable, stack)
    assert said == "no CUDA graphs: TensorRT says that this plan cannot be captured"
    assert not any(name.startswith("graph") for name in cuda.made)


def test_a_capture_that_fails_half_way_leaves_no_graph():
    """The second direction's fails: the first one's graph is released, and the loop runs without."""

    class OneGraph(QueuedMemory):
        def capture(self, work, stream):
            self.captures = not any(name.startswith("graph") for name in self.made)
            return super().capture(work, stream)

    cuda = OneGraph()
    with ExitStack() as stack:
        loop, said = opened(stack, cuda)
        assert said == "no CUDA graphs: this queue has none"
        assert not any(name.startswith("graph") for name in cuda.alive)
        found, expected = loop.step(image(3)), answer_of(PlainNetwork(MANIFEST, LAYOUT, 1.0)(3))
        np.testing.assert_array_equal(found.logits, expected["logits"])


def test_whatever_fails_nothing_is_left():
    """Every call in turn fails, during construction, a step ahead, or the release."""

    def everything(cuda: QueuedMemory) -> None:
        with ExitStack() as stack:
            loop, _ = opened(stack, cuda, ahead_until=9)
            loop.step(image(1))
            loop.step(None)
            refill(loop, [1], 2)
            loop.step(None)

    complete = QueuedMemory()
    everything(complete)
    assert complete.calls > 40
    assert complete.made[:2] == ["memory", "stream"]
    for number in range(1, complete.calls + 1):
        cuda = QueuedMemory(fails_at=number)
        with suppress(CudaError):  # inside a capture it only means that there is no graph
            everything(cuda)
        assert cuda.calls >= number
        assert cuda.alive == []


def test_an_error_of_the_release_does_not_hide_the_first_one():
    cuda = QueuedMemory()
    with pytest.raises(ZeroDivisionError), ExitStack() as stack:  # noqa: PT012 — the block is what is tested
        opened(stack, cuda)
        cuda.fails_at = cuda.calls + 1
        raise ZeroDivisionError
    message = r"^cudaQueue failed: as the test asked\. Open the engine again; if that fails too, look at the GPU with"
    with pytest.raises(CudaError, match=message), ExitStack() as stack:  # noqa: PT012 — likewise
        opened(stack, cuda := QueuedMemory())
        cuda.fails_at = cuda.calls + 1


def test_after_an_interrupted_call_a_reset_is_needed(monkeypatch: pytest.MonkeyPatch):
    def interrupt(event: object) -> None:
        raise KeyboardInterrupt

    cuda = QueuedMemory()
    with ExitStack() as stack:
        loop, _ = opened(stack, cuda, ahead_until=9)
        loop.step(image(5))
        monkeypatch.setattr(cuda, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            loop.step(None)
        monkeypatch.undo()
        for pixels in (None, image(5)):
            with pytest.raises(DynamicConfidenceError, match=r"failed or was interrupted: call reset\(\) before step"):
                loop.step(pixels)
        with pytest.raises(DynamicConfidenceError, match=r"failed or was interrupted: call reset\(\) before refill"):
            refill(loop, [0], 5)
        loop.reset(2.0)
        found, expected = loop.step(image(6)), answer_of(PlainNetwork(MANIFEST, LAYOUT, 2.0)(6))
        np.testing.assert_array_equal(found.label, expected["label"])


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((1, *SHAPE[1:]), np.uint8), r"input uint8 of shape \[1, 1, 2, 3\]: this engine was opened for uint8"),
        (np.zeros(SHAPE, np.float32), r"input float32 of shape \[2, 1, 2, 3\]: .* for uint8 pixels \[2, 1, 2, 3\]\."),
    ],
)
def test_pixels_that_do_not_fit_change_nothing(pixels: np.ndarray, message: str):
    with ExitStack() as stack:
        loop, _ = opened(stack, QueuedMemory())
        plain = PlainNetwork(MANIFEST, LAYOUT, 1.0)
        with pytest.raises(DynamicConfidenceError, match="no image since the reset: give step"):
            loop.step(None)
        loop.step(image(4))
        plain(4)
        with pytest.raises(DynamicConfidenceError, match=message):
            loop.step(pixels)
        np.testing.assert_array_equal(loop.step(None).logits, answer_of(plain(None))["logits"])


def test_the_last_answer_stays_until_the_next_call():
    """Also while the next call has been launched ahead of its turn and a reset is on its way."""
    cuda = QueuedMemory(late=False)
    with ExitStack() as stack:
        loop, _ = opened(stack, cuda, ahead_until=9)
        found = loop.step(image(8))
        kept = found.logits.copy()
        loop.reset(3.0)
        np.testing.assert_array_equal(found.logits, kept)
    np.testing.assert_array_equal(found.logits, kept)  # the memory lives as long as its views


def test_the_queue_is_late():
    """What the other tests rest on: nothing happens before somebody waits."""
    cuda = QueuedMemory()
    source = np.zeros(4, np.uint8)
    with cuda.device_memory(4) as address:  # type: ignore[attr-defined]
        cuda.copy_to_device(address, source, None)
        source.fill(9)  # too early
        assert cuda.memory.tolist() == [0xAB] * 4
        cuda.synchronize(None)
        assert cuda.memory.tolist() == [9] * 4
