"""Ctrl-C and SIGTERM: they unwind a command, but not out of what cannot bear it."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

RETRY_S = 0.05
HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt and SIGTERM exit with 143, so that nothing half-written is left behind.

    While something is imported they wait, and are tried again with SIGALRM: an exception in an import leaves half a
    package behind, and extension modules crash.
    """
    waiting: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGALRM and waiting:
            number = waiting[-1]
        if _is_importing(frame):
            waiting.append(number)
            signal.setitimer(signal.ITIMER_REAL, RETRY_S)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            sys.exit(128 + number)

    # Not SIGINT where somebody ignores it: a script's background job is not to be stopped by Ctrl-C.
    ours = [n for n in HELD if n != signal.SIGINT or signal.getsignal(n) is signal.default_int_handler]
    with _handling(ours, stop):
        try:
            yield
        finally:
            if waiting:  # else a timer that runs is the caller's
                signal.setitimer(signal.ITIMER_REAL, 0)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Let these signals wait until the block is over, and say so.

    A compiler that calls back into Python loses an exception that is raised there, or crashes with it.
    """
    waiting: list[int] = []

    def wait(number: int, _: FrameType | None) -> None:
        if not waiting:
            print("Stopping as soon as the network is compiled …", file=sys.stderr, flush=True)
        waiting.append(number)

    try:
        with _handling(HELD, wait):
            yield
    finally:
        for number in dict.fromkeys(waiting):
            signal.raise_signal(number)


@contextlib.contextmanager
def _handling(numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle these signals within the block; on other threads than the main one, where none ends up, nothing is done.

    A handler that was not set from Python (None) stays: it could not be put back.
    """
    on_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: known for number in numbers if on_main_thread and (known := signal.getsignal(number)) is not None}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)
