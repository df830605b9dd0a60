"""The event-driven engine's threads: none waits for another that was interrupted; and what an engine is worth then."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from dynamic_confidence.runtime.engine import Engine, open_engine
from dynamic_confidence.runtime.engines import events as module
from dynamic_confidence.runtime.engines import events_kernels as kernels
from dynamic_confidence.runtime.errors import DynamicConfidenceError

Exported = Callable[..., Path]
SECONDS = 20


class Interrupted:
    """The kernels, where one part fails instead of working, and the others wait for it at a barrier."""

    inject = staticmethod(kernels.inject)

    def __init__(self, failing: int, error: type[BaseException]) -> None:
        self.failing, self.error, self.waited_in_vain = failing, error, False

    def advance(
        self, program: Any, state: Any, scratch: Any, gates: Any, part: int, parts: int, counter: np.ndarray
    ) -> None:
        if part == self.failing:
            raise self.error
        until = time.monotonic() + SECONDS
        while counter[0] < parts:
            if time.monotonic() > until:
                self.waited_in_vain = True
                return
            time.sleep(0.001)


def opened(path: Path) -> Any:
    return open_engine(path, batch=2, backend="events", threads=2)


def assert_wants_a_reset(engine: Engine, image: np.ndarray, expected: np.ndarray) -> None:
    for call, name in (
        (lambda: engine.step(image), "step"),
        (lambda: engine.refill(np.array([0]), image[:1]), "refill"),
    ):
        with pytest.raises(
            DynamicConfidenceError, match=rf"the last call failed or was interrupted: call reset\(\) before {name}\(\)"
        ):
            call()
    engine.reset(1.0)
    np.testing.assert_array_equal(engine.step(image).logits, expected)


@pytest.mark.parametrize(("failing", "error"), [(0, KeyboardInterrupt), (0, SystemExit), (1, MemoryError)])
def test_no_thread_waits_for_one_that_failed(
    exported: Exported, pixels: np.ndarray, failing: int, error: type[BaseException]
):
    with opened(exported(precision="int8")) as engine:
        engine.reset(1.0)
        expected = engine.step(pixels[:2]).logits.copy()
        whole, engine._kernels = engine._kernels, Interrupted(failing, error)
        with pytest.raises(error):
            engine.step()
        assert not engine._kernels.waited_in_vain
        engine._kernels = whole
        assert_wants_a_reset(engine, pixels[:2], expected)


def test_a_thread_that_cannot_be_had(exported: Exported, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    """Of three, the second is under way and waits; the third does not start."""
    with open_engine(exported(precision="int8"), batch=2, backend="events", threads=3) as engine:
        assert isinstance(engine, module.EventsEngine)
        engine.reset(1.0)
        expected = engine.step(pixels[:2]).logits.copy()
        assert engine._pool is not None
        submit, fake = engine._pool.submit, Interrupted(-1, OSError)
        started: list[int] = []

        def refuse(work: Any, part: int) -> Any:
            if part == 2:
                raise RuntimeError("can't start new thread")
            started.append(part)
            return submit(work, part)

        with monkeypatch.context() as patched:
            patched.setattr(engine._pool, "submit", refuse)
            patched.setattr(engine, "_kernels", fake)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                engine.step()
        assert started == [1]
        assert not fake.waited_in_vain
        assert_wants_a_reset(engine, pixels[:2], expected)


def test_it_compiles_alone(exported: Exported, monkeypatch: pytest.MonkeyPatch):
    """A Ctrl-C while two compile would leave one at the barrier."""
    calls: list[tuple[int, int, int]] = []

    def advance(*arguments: Any) -> None:
        calls.append((len(arguments[3]), *arguments[4:6]))
        kernels.advance(*arguments)

    monkeypatch.setattr(module, "load_kernels", lambda: SimpleNamespace(advance=advance, inject=kernels.inject))
    with opened(exported(precision="int8")):
        assert calls == [(0, 0, 1)]
