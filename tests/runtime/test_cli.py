"""What every command does when something outside of it goes wrong."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner, Result

from dynamic_confidence.runtime.cli import command_errors


def run(error: BaseException) -> Result:
    @click.command()
    @command_errors
    def command() -> None:
        raise error

    return CliRunner().invoke(command)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            MemoryError("8 GiB"),
            2,
            "Error: not enough memory (8 GiB). Use a smaller --batch, or close other programs.\n",
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            2,
            "Error: the output cannot be written (no space left there). Send it elsewhere.\n",
        ),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
    ],
)
def test_what_is_no_fault_of_ours(error: BaseException, code: int, message: str):
    result = run(error)
    assert (result.exit_code, result.stderr) == (code, message)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space", "a file"), OSError(errno.EIO, "broken")])
def test_a_fault_of_ours_shows_its_traceback(error: OSError):
    result = run(error)
    assert result.exit_code == 70
    assert "Internal error: this is a fault of dynamic-confidence" in result.stderr


def test_sigterm_unwinds():
    program = """
import time
from dynamic_confidence.runtime.cli import command_errors

@command_errors
def main():
    try:
        print("started", flush=True)
        time.sleep(30)
    finally:
        print("cleaned up", flush=True)

main()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "cleaned up\n"
    assert process.returncode == 128 + signal.SIGTERM
