"""Write a file whole or not at all: a temporary name beside it, then one move."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DynamicConfidenceError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block ends well and vanishes when it does not.

    Raises: DynamicConfidenceError when the folder does not exist or cannot be written.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise DynamicConfidenceError(
            f"{path}: cannot write there ({error.strerror}). Choose another place with -o."
        ) from error
    os.close(descriptor)
    part = Path(name)
    try:
        yield part
        # mkstemp makes private files; an artefact gets the permissions of an ordinary new file.
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        try:
            part.replace(path)
        except OSError as error:
            raise DynamicConfidenceError(
                f"{path}: cannot write there ({error.strerror}). Choose another place with -o."
            ) from error
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` whole or not at all."""
    with atomic_path(path) as part:
        try:
            part.write_bytes(content)
        except OSError as error:
            raise DynamicConfidenceError(
                f"{path}: cannot write {len(content)} bytes ({error.strerror}). "
                "Free some space or choose another place with -o."
            ) from error
