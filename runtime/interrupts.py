"""Ctrl-C and SIGTERM, held back where they would break what a library is doing."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

HELD = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Let these signals wait until the block is over.

    A compiler that calls back into Python loses an exception that is raised there, or crashes with it.
    """
    if threading.current_thread() is not threading.main_thread():  # no signal ends up there
        yield
        return
    waiting: list[int] = []
    before = {number: signal.getsignal(number) for number in HELD}
    # None: set outside of Python, where nothing is raised
    held = {number: handler for number, handler in before.items() if handler is not None}
    for number in held:
        signal.signal(number, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(waiting):
            signal.raise_signal(number)
