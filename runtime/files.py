"""Write a file whole or not at all: a temporary name beside it, then one move."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shlex
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import DynamicConfidenceError


def check_place(path: Path, remedy: str) -> None:
    """Raise a DynamicConfidenceError where no file can be made beside `path`; a folder that is missing is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise DynamicConfidenceError(f"{path}: cannot write there ({error.strerror}). {remedy}") from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block ends well and vanishes when it does not.

    The temporary name ends with the same suffix. A file that is replaced keeps its permissions, a symlink stays one.
    Raises: DynamicConfidenceError when the folder does not exist, cannot be written or is full.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.part{target.suffix}")
    try:
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
        # What replaces a private file is private from the start; a new file follows the umask.
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else 0o600))
        yield part
        _sync(part)
        if mode is not None:
            part.chmod(mode)
        part.replace(target)
    except OSError as error:
        if error.filename not in (None, str(part), str(target)):
            raise  # of the block, about another file
        if not target.parent.exists():
            raise DynamicConfidenceError(
                f"{path}: its folder does not exist: mkdir -p {shlex.quote(str(path.parent))}"
            ) from error
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise DynamicConfidenceError(
            f"{path}: cannot write there ({error.strerror}). "
            f"{'Free some space or choose' if full else 'Choose'} another place with -o."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` whole or not at all. Raises: as `atomic_path`."""
    with atomic_path(path) as part:
        part.write_bytes(content)


def _sync(part: Path) -> None:
    """Bring the content to the disk before the move, or a power cut could leave an empty file under the final name."""
    descriptor = os.open(part, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
