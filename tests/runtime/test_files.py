"""A file is written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.files import atomic_path, write_atomically

SPACE = r"a: cannot write there \(No space left on device\)\. Free some space or choose another place with -o\."


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_the_file_appears_when_the_block_ends(tmp_path: Path):
    with atomic_path(tmp_path / "a") as part:
        part.write_bytes(b"new")
        assert part.parent == tmp_path
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def fail_half_way(path: Path, error: type[BaseException]) -> None:
    with atomic_path(path) as part:
        part.write_bytes(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existing", [None, b"old"])
def test_nothing_is_left_of_a_block_that_fails(tmp_path: Path, error: type[BaseException], existing: bytes | None):
    path = tmp_path / "a"
    if existing is not None:
        path.write_bytes(existing)
    with pytest.raises(error):
        fail_half_way(path, error)
    assert names(tmp_path) == ([] if existing is None else ["a"])
    assert existing is None or path.read_bytes() == existing


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o027])
@pytest.mark.usefixtures("umask")
def test_permissions_follow_the_umask(tmp_path: Path, mask: int):
    os.umask(mask)
    write_atomically(tmp_path / "a", b"")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask
    assert os.umask(mask) == mask


def test_a_missing_folder_is_an_error_before_the_work(tmp_path: Path):
    with (
        pytest.raises(DynamicConfidenceError, match=r"a: its folder does not exist: mkdir -p .*missing"),
        atomic_path(tmp_path / "missing" / "a"),
    ):
        pytest.fail("the block must not run")


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DynamicConfidenceError, match=r"a: cannot write there \(Not a directory\).* -o"):
        write_atomically(tmp_path / "file" / "a", b"")


def test_a_folder_in_place_of_the_file_is_an_error(tmp_path: Path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DynamicConfidenceError, match=r"a: cannot write there \(Is a directory\).* -o"):
        write_atomically(tmp_path / "a", b"new")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == []


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DynamicConfidenceError, match=SPACE):
        write_atomically(tmp_path / "a", b"new")
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_while_the_caller_writes(tmp_path: Path):
    def write() -> None:
        with atomic_path(tmp_path / "a") as part:
            part.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(DynamicConfidenceError, match=SPACE):
        write()
    assert names(tmp_path) == []


def test_an_error_about_another_file_stays_what_it_is(tmp_path: Path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    assert names(tmp_path) == []


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, mode: int):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    with atomic_path(path) as part:
        assert part.stat().st_mode & 0o777 == 0o600, "private until it has the permissions of the old file"
        part.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("dangling", [False, True])
def test_a_symlink_stays_one(tmp_path: Path, dangling: bool):
    (tmp_path / "real").mkdir()
    if not dangling:
        (tmp_path / "real" / "b").write_bytes(b"old")
    (tmp_path / "a").symlink_to("real/b")
    write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").is_symlink()
    assert (tmp_path / "real" / "b").read_bytes() == b"new"
    assert names(tmp_path / "real") == ["b"]


def test_the_temporary_name_ends_like_the_final_one(tmp_path: Path):
    with atomic_path(tmp_path / "net.onnx") as part:
        assert part.name.startswith(".net.")
        assert part.name.endswith(".part.onnx")
        write_atomically(part, b"in between")  # a command may rewrite the part as a whole
        assert names(tmp_path) == [part.name]
    assert (tmp_path / "net.onnx").read_bytes() == b"in between"


def test_the_content_is_on_the_disk_before_the_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("sync"), fsync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda self, target: (order.append("move"), replace(self, target)))
    write_atomically(tmp_path / "a", b"new")
    assert order == ["sync", "move"]


def test_the_umask_of_the_process_is_never_touched(tmp_path: Path):
    """Changing it, even for a moment, changes what other threads create."""
    program = (
        "import os, sys, pathlib; from dynamic_confidence.runtime.files import write_atomically\n"
        "def umask(mask): raise SystemExit('umask was called')\n"
        "os.umask = umask; write_atomically(pathlib.Path(sys.argv[1]), b'new')"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "a"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
