"""The file of TensorRT's timings: its name, what is said when it is broken, and that it never ends a build."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.onnx_file import read_onnx
from dynamic_confidence.runtime.plan_file import PORTABLE, plan_header
from dynamic_confidence.runtime.signature import signature_of_manifest
from dynamic_confidence.toolchain import plan_from_onnx as plan_module
from dynamic_confidence.toolchain import plan_worker, timing_cache
from dynamic_confidence.toolchain.plan_backend import Backend
from dynamic_confidence.toolchain.plan_from_onnx import plan_from_onnx
from dynamic_confidence.toolchain.plan_worker import Built, Job, build
from dynamic_confidence.toolchain.timing_cache import read_timings, timing_cache_path, write_timings

TIMINGS = bytes(range(256)) * 4
PLAN = b"ftrt" + bytes(20) + bytes((10, 3, 0, 30)) + b"a plan of TensorRT begins like this"


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")


class Driver:
    """The one call that the name of the file needs."""

    def __init__(self, version: int, code: int = 0) -> None:
        self.version, self.code = version, code

    def cuDriverGetVersion(self, pointer: Any) -> int:
        pointer._obj.value = self.version
        return self.code


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        (Driver(12060), "tensorrt-10.3.0-sm87-cuda12.6.timing"),
        (Driver(13000), "tensorrt-10.3.0-sm87-cuda13.0.timing"),
        (Driver(0, code=3), "tensorrt-10.3.0-sm87-no-driver.timing"),
        (None, "tensorrt-10.3.0-sm87-no-driver.timing"),
    ],
)
def test_the_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, driver: Driver | None, name: str):
    monkeypatch.setattr(timing_cache, "load_driver", lambda: driver)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert timing_cache_path("10.3.0", "sm87") == tmp_path / "dynamic-confidence" / name


@pytest.mark.parametrize("folder", ["", "cache", None], ids=["empty", "relative", "unset"])
def test_the_folder_without_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str | None):
    if folder is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert timing_cache_path("10.3.0", "sm87").parent == tmp_path / ".cache" / "dynamic-confidence"


def test_no_home(monkeypatch: pytest.MonkeyPatch):
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(DynamicConfidenceError, match=r"no home folder\. Set XDG_CACHE_HOME .*--no-timing-cache"):
        timing_cache_path("10.3.0", "sm87")


@pytest.mark.parametrize("timings", [b"", TIMINGS])
def test_written_and_read_back(tmp_path: Path, timings: bytes):
    path = tmp_path / "folder" / "that is new" / "a.timing"
    assert read_timings(path) == (b"", "")
    assert write_timings(path, timings) == ""
    assert read_timings(path) == (timings, "")
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("broken", ["empty", "cut", "flipped", "junk"])
def test_a_broken_file_is_not_used(tmp_path: Path, broken: str):
    path = tmp_path / "a.timing"
    write_timings(path, TIMINGS)
    good = path.read_bytes()
    content = {"empty": b"", "cut": good[:-1], "flipped": good[:-1] + b"\0", "junk": b"hello world"}[broken]
    path.write_bytes(content)
    said = f"{path}: a broken timing cache ({len(content)} bytes), so this build measures every kernel."
    assert read_timings(path) == (b"", said)


def test_a_place_that_cannot_be_read_or_written(tmp_path: Path):
    (tmp_path / "file").write_text("where a folder should be")
    path = tmp_path / "file" / "a.timing"
    assert "the timing cache cannot be read (Not a directory)" in read_timings(path)[1]
    assert "the timing cache cannot be written (File exists)" in write_timings(path, TIMINGS)
    path = tmp_path / "folder.timing"
    path.mkdir()
    assert "the timing cache cannot be read (Is a directory)" in read_timings(path)[1]
    assert "cannot be written (Is a directory). --no-timing-cache does without it." in write_timings(path, TIMINGS)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.timing"]


def test_the_names_that_the_worker_calls(rtx):
    """TensorRT's own bindings have them from 8.6 to 11.4 at least, with these parameters."""
    assert "serialized_timing_cache" in (rtx.IBuilderConfig.create_timing_cache.__doc__ or "")
    assert "ignore_mismatch: bool) -> bool" in (rtx.IBuilderConfig.set_timing_cache.__doc__ or "")
    assert inspect.isroutine(rtx.ITimingCache.serialize)


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
@pytest.mark.parametrize("timings", [b"", b"what TensorRT must refuse by itself"])
def test_a_build_returns_timings(rtx, exported: Callable[..., Path], timings: bytes):
    """TensorRT-RTX has the calls and an empty cache; that is as far as a machine without a GPU goes."""

    def built(timings: bytes | None) -> Built:
        network = exported().read_bytes()
        return build(Backend("rtx", rtx, (PORTABLE,)), network, source="net", name="net", timings=timings)

    found = built(timings)
    assert found.note == ""
    assert found.timings
    assert found.layers > 0
    assert built(found.timings).timings == found.timings
    assert built(None).timings is None


def test_timings_travel_to_the_worker_and_back(rtx, exported: Callable[..., Path]):
    """Through the pipes of a real build, any bytes."""
    backend, path = Backend("rtx", rtx, (PORTABLE,)), exported()
    model, manifest = read_onnx(path)
    job = Job("rtx", (PORTABLE,), str(path), "net", 1, signature_of_manifest(manifest), timings=TIMINGS)
    built = plan_module._build_alone(backend, job, model.SerializeToString(), lambda *_: None)
    assert plan_header(built.plan) is not None
    assert built.timings
    assert built.timings != TIMINGS


@pytest.mark.gpu
def test_tensorrt_uses_the_timings_of_its_last_build(
    exported: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trt = pytest.importorskip("tensorrt", reason="TensorRT is not installed: pip install 'dynamic-confidence[trt]'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = plan_from_onnx(exported(), flavour="tensorrt")
    (path,) = (tmp_path / "dynamic-confidence").iterdir()
    assert path == timing_cache_path(trt.__version__, *first.sidecar.engine.targets)
    timings, said = read_timings(path)
    second = plan_from_onnx(exported(), flavour="tensorrt")
    assert (first.notes, second.notes, said) == ((), (), "")
    assert timings
    assert read_timings(path)[0]


class Config:
    """A configuration that takes these timings only."""

    def __init__(self, *taken: bytes) -> None:
        self.taken = taken

    def create_timing_cache(self, timings: bytes) -> bytes | None:
        return timings if timings in (b"", TIMINGS) else None

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return cache in self.taken


@pytest.mark.parametrize(
    ("config", "timings", "expected"),
    [
        (Config(b"", TIMINGS), TIMINGS, (TIMINGS, "")),
        (Config(b""), TIMINGS, (b"", "the timing cache is another GPU's or library's: this build starts a new one.")),
        (Config(b""), b"junk", (b"", "the timing cache is another GPU's or library's: this build starts a new one.")),
        (Config(), b"", (None, "TensorRT takes no timing cache: this build measures every kernel and keeps none.")),
    ],
)
def test_timings_that_the_builder_refuses(config: Config, timings: bytes, expected: tuple[bytes | None, str]):
    assert plan_worker._attach_timings(config, timings) == expected


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Job]:
    """TensorRT's worker, played: takes note of the job and answers with a header and new timings."""
    jobs: list[Job] = []
    library = SimpleNamespace(__version__="10.3.0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(timing_cache, "load_driver", lambda: Driver(12060))
    monkeypatch.setattr(plan_module, "open_backend", lambda *_: Backend("tensorrt", library, ("sm87",)))

    def answer(backend: Backend, job: Job, content: bytes, report: Any) -> Built:
        jobs.append(job)
        return Built(PLAN, layers=7, timings=None if job.timings is None else job.timings + b"more", note="a note")

    monkeypatch.setattr(plan_module, "_build_alone", answer)
    return jobs


def test_builds_hand_their_timings_on(exported: Callable[..., Path], tmp_path: Path, jobs: list[Job]):
    path = tmp_path / "dynamic-confidence" / "tensorrt-10.3.0-sm87-cuda12.6.timing"
    plans = [plan_from_onnx(exported()) for _ in range(2)]
    assert [job.timings for job in jobs] == [b"", b"more"]
    assert read_timings(path) == (b"moremore", "")
    assert [(plan.layers, plan.notes) for plan in plans] == [(7, ("a note",))] * 2
    path.write_bytes(b"junk")
    assert plan_from_onnx(exported()).notes[0].startswith(f"{path}: a broken timing cache (4 bytes)")
    assert read_timings(path) == (b"more", "")


def test_a_build_without_them(exported: Callable[..., Path], tmp_path: Path, jobs: list[Job]):
    plan_from_onnx(exported(), timing_cache=False)
    assert [job.timings for job in jobs] == [None]
    assert os.listdir(tmp_path) == []


def test_a_cache_that_cannot_be_kept_does_not_end_the_build(
    exported: Callable[..., Path], tmp_path: Path, jobs: list[Job]
):
    (tmp_path / "dynamic-confidence").write_text("a file where the folder should be")
    plan = plan_from_onnx(exported())
    assert plan.content == PLAN
    assert ["cannot be read" in plan.notes[0], plan.notes[1], "cannot be written" in plan.notes[2]] == [
        True,
        "a note",
        True,
    ]
