"""Signals that wait: what they would break is finished first, nothing of them is lost. Each in its own process."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

START = """
import os, signal, sys, threading
from dynamic_confidence.runtime.interrupts import held_back, unwinding

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
heard = []
"""
LISTEN = """
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: heard.append(number))
"""


def run(program: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    text = START + textwrap.dedent(program)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=folder, timeout=60)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_waits_until_the_block_is_over(name: str):
    done = run(f"""
        {textwrap.indent(LISTEN, " " * 8).strip()}
        with held_back():
            os.kill(os.getpid(), signal.{name})
            os.kill(os.getpid(), signal.{name})
            assert heard == []
        assert heard == [signal.{name}]
        os.kill(os.getpid(), signal.{name})
        assert heard == [signal.{name}] * 2
    """)
    assert (done.returncode, done.stderr) == (0, "Stopping as soon as the network is compiled …\n")


def test_each_signal_that_waited_is_heard():
    done = run(f"""
        {textwrap.indent(LISTEN, " " * 8).strip()}
        with held_back():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGINT, signal.SIGTERM]
    """)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_is_raised_behind_the_block():
    done = run("""
        finished = False
        try:
            with held_back():
                signal.raise_signal(signal.SIGINT)
                finished = True
        except KeyboardInterrupt:
            sys.exit(7 if finished else 8)
    """)
    assert done.returncode == 7, done.stderr


def test_handlers_are_back_after_an_error_and_other_threads_hold_nothing():
    done = run("""
        try:
            with held_back():
                raise ValueError
        except ValueError:
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

        def work():
            with held_back(), unwinding():
                heard.append(signal.getsignal(signal.SIGINT))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert heard == [signal.default_int_handler]
    """)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 9), ("SIGTERM", 143)])
def test_an_import_is_finished_before_a_command_unwinds(tmp_path: Path, name: str, code: int):
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\n"
        f"os.kill(os.getpid(), signal.{name})\n"
        "time.sleep(0.2)  # longer than until it is tried again\n"
        "print('whole', flush=True)\n"
    )
    done = run(
        """
        import time
        try:
            with unwinding():
                import slow
                time.sleep(30)
        except KeyboardInterrupt:
            sys.exit(9)
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (code, "whole\n"), done.stderr


def test_a_command_leaves_handlers_as_they_were():
    done = run("""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
        with unwinding():
            os.kill(os.getpid(), signal.SIGINT)  # ignored before, and now
            assert signal.getsignal(signal.SIGTERM) is not before[1]
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == before
    """)
    assert done.returncode == 0, done.stderr


def test_an_alarm_that_nobody_waited_for_ends_the_command():
    done = run("""
        with unwinding():
            signal.raise_signal(signal.SIGALRM)
    """)
    assert done.returncode == 128 + signal.SIGALRM, done.stderr


def test_a_timer_of_the_caller_goes_on():
    done = run("""
        signal.setitimer(signal.ITIMER_REAL, 1000)
        with unwinding():
            pass
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    """)
    assert done.returncode == 0, done.stderr
