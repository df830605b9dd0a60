"""The one exception every part of the toolchain raises for bad input: got, expected, what to do."""

from __future__ import annotations


class DynamicConfidenceError(Exception):
    """Bad input or usage: one sentence that says what was got, what was expected and what to do (exit code 2)."""

    exit_code = 2


class InvalidRecord(DynamicConfidenceError, ValueError):
    """A value that a record of the manifest cannot hold; a ValueError too, so that msgspec says where in the file."""


class CheckFailed(DynamicConfidenceError):
    """A self-check found a difference: the artefact was not written (exit code 1)."""

    exit_code = 1


class BackendMissing(DynamicConfidenceError):
    """The library or the device that a request needs is not there (exit code 3)."""

    exit_code = 3
