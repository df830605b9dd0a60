"""One training at a time holds an output, until its process ends in whatever way."""

from __future__ import annotations

import errno
import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.toolchain.training_output import held

HOLDING = """
import pathlib, sys, time
from dynamic_confidence.toolchain.training_output import held
with held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_one_is_refused_and_nothing_is_left_behind(tmp_path: Path):
    output = tmp_path / "model.pt"
    with held(output), held(tmp_path / "other.pt"):
        assert (tmp_path / "model.pt.training.lock").exists()
        with (
            pytest.raises(
                DynamicConfidenceError, match=r"model\.pt: another training writes it now\. Wait for its end"
            ),
            held(output),
        ):
            pass
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), held(output):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_killed_process_holds_nothing(tmp_path: Path):
    output = tmp_path / "model.pt"
    with subprocess.Popen([sys.executable, "-c", HOLDING, output], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(DynamicConfidenceError, match="another training writes it now"), held(output):
            pass
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "model.pt.training.lock").exists()
    with held(output):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_is_removed_while_it_is_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between the opening and the locking here, the training that held the file ends."""
    lock, flock = tmp_path / "model.pt.training.lock", fcntl.flock
    calls: list[bool] = []

    def too_late(file: object, how: int) -> None:
        flock(file, how)  # type: ignore[call-overload]
        calls.append(lock.exists())
        if len(calls) == 1:
            lock.unlink()

    monkeypatch.setattr(fcntl, "flock", too_late)
    with held(tmp_path / "model.pt"):
        assert calls == [True, True]
        assert lock.exists()


def test_a_lock_file_that_cannot_be_opened_is_named(tmp_path: Path):
    (tmp_path / "model.pt.training.lock").mkdir()
    text = (
        r"model\.pt\.training\.lock: cannot be opened \(Is a directory\)\. Remove it, or choose another place with -o"
    )
    with pytest.raises(DynamicConfidenceError, match=text), held(tmp_path / "model.pt"):
        pass


def test_where_there_are_no_locks_training_is_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def none(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with held(tmp_path / "model.pt"), held(tmp_path / "model.pt"):
        pass
