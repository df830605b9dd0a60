"""Signals that wait: what they would interrupt is finished first, and nothing of them is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from dynamic_confidence.runtime.interrupts import HELD, held_back


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """What arrives at the handlers that were there before."""
    found: list[int] = []
    before = {number: signal.signal(number, lambda number, _: found.append(number)) for number in HELD}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", HELD)
def test_a_signal_waits_until_the_block_is_over(heard: list[int], number: int):
    with held_back():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert heard == []
    assert heard == [number]
    os.kill(os.getpid(), number)
    assert heard == [number, number]


def test_ctrl_c_is_raised_behind_the_block():
    finished: list[bool] = []

    def work() -> None:
        with held_back():
            signal.raise_signal(signal.SIGINT)
            finished.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_are_back_after_an_error(heard: list[int]):
    with pytest.raises(ValueError, match="of the block"), held_back():
        raise ValueError("of the block")
    signal.raise_signal(signal.SIGINT)
    assert heard == [signal.SIGINT]


def test_other_threads_hold_nothing():
    found: list[object] = []

    def work() -> None:
        with held_back():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]
