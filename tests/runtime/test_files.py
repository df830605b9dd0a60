"""A file is written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.files import atomic_path, write_atomically


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
        pytest.raises(DynamicConfidenceError, match=r"a: cannot write there \(No such file or directory\).* -o"),
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
    with pytest.raises(DynamicConfidenceError, match=r"cannot write 3 bytes \(No space left on device\)\. Free some"):
        write_atomically(tmp_path / "a", b"new")
    assert names(tmp_path) == []
