"""Keep how fast TensorRT's kernels were, from build to build: one file per library version, GPU and driver."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ..runtime.errors import DynamicConfidenceError
from ..runtime.files import write_atomically
from ..runtime.gpu import cuda_version, load_driver

DIGEST = hashlib.sha256().digest_size


def timing_cache_path(version: str, target: str) -> Path:
    """`~/.cache/dynamic-confidence/tensorrt-10.3.0-sm87-cuda12.6.timing`, below `$XDG_CACHE_HOME` where that is set.

    The driver is named by the CUDA version that it brings.
    Raises: DynamicConfidenceError for a user without a home folder.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the XDG specification: then it is ignored
        try:
            base = Path.home() / ".cache"
        except RuntimeError as error:
            raise DynamicConfidenceError(
                "the timing cache has no place, this user has no home folder. Set XDG_CACHE_HOME to a folder, "
                "or build with --no-timing-cache."
            ) from error
    return base / "dynamic-confidence" / f"tensorrt-{version}-{target}-{_driver()}.timing"


def read_timings(path: Path) -> tuple[bytes, str]:
    """Return the timings in a file, and what is to be said about it; without a good file there are none.

    What is broken does not reach TensorRT: it is native code, which need not survive it.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b"", ""
    except OSError as error:
        return b"", f"{path}: the timing cache cannot be read ({error.strerror}), so this build measures every kernel."
    digest, timings = content[:DIGEST], content[DIGEST:]
    if hashlib.sha256(timings).digest() == digest:
        return timings, ""
    return b"", f"{path}: a broken timing cache ({len(content)} bytes), so this build measures every kernel."


def write_timings(path: Path, timings: bytes) -> str:
    """Write the file with its hash in front, and return what is to be said when that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, hashlib.sha256(timings).digest() + timings)
    except (OSError, DynamicConfidenceError) as error:
        cause = error.__cause__ if isinstance(error, DynamicConfidenceError) else error
        reason = cause.strerror if isinstance(cause, OSError) else str(error)
        return f"{path}: the timing cache cannot be written ({reason}). --no-timing-cache does without it."
    return ""


def _driver() -> str:
    driver = load_driver()
    version = None if driver is None else cuda_version(driver)
    return "no-driver" if version is None else f"cuda{version}"
