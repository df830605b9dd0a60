"""The place a training writes to: looked at before the work, and held by one training at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..runtime.errors import DynamicConfidenceError
from ..runtime.files import check_place

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""A file system without locks: a training must still be possible there, as on systems without `flock`."""


def check_output(output: Path) -> None:
    """Raise DynamicConfidenceError now for what would otherwise be found out after hours of training."""
    if output.is_dir():
        raise DynamicConfidenceError(f"{output}: is a folder, expected a file name. Choose another place with -o.")
    if output.suffix not in (".pt", ".pth"):
        raise DynamicConfidenceError(f"{output}: a checkpoint is named .pt: -o {output.with_suffix('.pt')}")
    if not output.parent.is_dir():
        raise DynamicConfidenceError(f"{output}: its folder does not exist: mkdir -p {shlex.quote(str(output.parent))}")
    check_place(output, "Choose another place with -o.")


@contextlib.contextmanager
def held(output: Path) -> Iterator[None]:
    """Keep other trainings from this output while the block runs: two would overwrite each other's resume file.

    OUTPUT.training.lock is there meanwhile. The kernel lets go of it when the process ends, in whatever way.
    Raises: DynamicConfidenceError when another process holds it.
    """
    if os.name != "posix":
        yield
        return
    path = output.with_name(f"{output.name}.training.lock")
    with _locked(path, output):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is still held: who opened it before looks again


def _locked(path: Path, output: Path) -> IO[str]:
    """Open the lock file and lock it."""
    import fcntl

    while True:
        try:
            file = path.open("a")
        except OSError as error:
            raise DynamicConfidenceError(
                f"{path}: cannot be opened ({error.strerror}). Remove it, or choose another place with -o."
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise DynamicConfidenceError(
                f"{output}: another training writes it now. Wait for its end, or choose another place with -o."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # the one that held it has removed it
