"""A data set through a network, shard by shard: stopped anywhere and started again, on one process or several."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import CLASSES

from dynamic_confidence.calib import write_trace as module
from dynamic_confidence.calib.calibrate import trace_from_engine
from dynamic_confidence.calib.trace_folder import load_trace, read_shards, shard_path
from dynamic_confidence.calib.trace_header import HEADER, read_header
from dynamic_confidence.calib.write_trace import write_trace
from dynamic_confidence.models.checkpoint import Checkpoint
from dynamic_confidence.runtime.engine import open_engine
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.images import labelled_arrays
from dynamic_confidence.runtime.onnx_file import read_onnx
from dynamic_confidence.toolchain.oracle import oracle_steps
from dynamic_confidence.toolchain.snap import snap
from dynamic_confidence.toolchain.snn_from_ann import snn_from_ann

SAMPLES, SHARD, STEPS = 23, 5, 12
SHARDS = 5
Exported = Callable[..., Path]


@pytest.fixture
def data(pixels: np.ndarray, tmp_path: Path) -> Path:
    for number, image in enumerate(pixels[:SAMPLES]):
        path = tmp_path / "data" / CLASSES[number % 4] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(path)
    return tmp_path / "data"


@pytest.fixture
def network(exported: Exported) -> Path:
    return exported(method="qffs", count_spikes=True, steps_per_call=4)


@pytest.fixture
def made(network: Path, data: Path, tmp_path: Path) -> Path:
    """A whole trace, from one run."""
    write_trace(network, data, tmp_path / "made", shard_size=SHARD, batch=3)
    return tmp_path / "made"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder; a half-written one would be among them."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


class Killed(Exception):
    """Whatever ends a run."""


def killed_after(batches: int) -> Callable[[Iterable[Any], str], Iterator[Any]]:
    def track(items: Iterable[Any], what: str) -> Iterator[Any]:
        for number, item in enumerate(items):
            if what == "running" and number == batches:
                raise Killed
            yield item

    return track


@pytest.mark.parametrize("method", ["qcfs", "qffs"])
def test_the_trace_is_what_the_engine_and_the_oracle_say(
    exported: Exported, checkpoint: Checkpoint, data: Path, tmp_path: Path, method: str
):
    path = exported(method=method, count_spikes=True)
    written = write_trace(path, data, tmp_path / "trace", shard_size=SHARD, batch=4)
    assert written.made == list(range(SHARDS))
    manifest = read_onnx(path)[1]
    images, label = labelled_arrays(data, manifest.input.preprocessing, CLASSES)
    with open_engine(path, batch=SAMPLES) as engine:
        expected = trace_from_engine(engine, images, label)
    found = load_trace(tmp_path / "trace", manifest)
    for name in ("logits", "label", "last_step"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), strict=True)
    shards = list(read_shards(tmp_path / "trace", written.header))
    names = sorted(file.relative_to(data).as_posix() for file in data.rglob("*.png"))
    assert np.concatenate([shard.names for shard in shards]).tolist() == names
    snn, _ = snap(snn_from_ann(checkpoint.network(), checkpoint.preprocessing, method), STEPS)
    assert [layer.name for layer in written.header.layers] == [layer.name for layer in snn.layers]
    assert [layer.neurons for layer in written.header.layers] == [int(np.prod(layer.shape)) for layer in snn.layers]
    gross, net = np.zeros((SAMPLES, len(snn.layers))), np.zeros((SAMPLES, len(snn.layers)))
    for step, state in enumerate(oracle_steps(snn, images, STEPS)):
        for row, layer in enumerate(snn.layers):
            gross[:, row] += np.abs(state.spikes[layer.name]).sum(axis=(1, 2, 3))
            net[:, row] += state.spikes[layer.name].sum(axis=(1, 2, 3))
        np.testing.assert_array_equal(np.concatenate([s.spikes for s in shards])[:, step], gross)  # type: ignore[misc]
        if method == "qffs":
            np.testing.assert_array_equal(np.concatenate([s.net_spikes for s in shards])[:, step], net)  # type: ignore[misc]
    assert (method == "qcfs") == (gross == net).all()
    assert all((shard.net_spikes is None) == (method == "qcfs") for shard in shards)


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_no_batch_changes_a_byte(network: Path, data: Path, tmp_path: Path, made: Path, batch: int):
    write_trace(network, data, tmp_path / "other", shard_size=SHARD, batch=batch)
    assert contents(tmp_path / "other") == contents(made)


@pytest.mark.parametrize("batches", range(9))
def test_stopped_anywhere_and_started_again(network: Path, data: Path, tmp_path: Path, made: Path, batches: int):
    """Two batches per shard (one in the last): in the middle of a shard, and between two."""
    folder = tmp_path / "again"
    with pytest.raises(Killed):
        write_trace(network, data, folder, shard_size=SHARD, batch=3, track=killed_after(batches))
    there = contents(folder)
    assert set(there) == {HEADER, *(shard_path(folder, shard).name for shard in range(batches // 2))}
    stamps = {name: (folder / name).stat().st_mtime_ns for name in there}
    written = write_trace(network, data, folder, batch=3)
    assert written.made == list(range(batches // 2, SHARDS))
    assert written.broken == []
    assert contents(folder) == contents(made)
    assert {name: (folder / name).stat().st_mtime_ns for name in there} == stamps


def test_killed_while_it_writes_and_started_again(network: Path, data: Path, tmp_path: Path, made: Path):
    """With SIGKILL, in the middle of the third shard."""
    program = f"""
import os, signal
from pathlib import Path
import numpy as np
from dynamic_confidence.calib.write_trace import write_trace
savez, done = np.savez, []
def dies(path, **arrays):
    if len(done) == 2:
        Path(path).write_bytes(b"PK half of it")
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(savez(path, **arrays))
np.savez = dies
write_trace(Path({str(network)!r}), Path({str(data)!r}), Path({str(tmp_path / "killed")!r}), shard_size={SHARD})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert write_trace(network, data, tmp_path / "killed").made == [2, 3, 4]
    assert {name: found for name, found in contents(tmp_path / "killed").items() if name[0] != "."} == contents(made)


def test_nothing_is_run_again(network: Path, data: Path, made: Path, monkeypatch: pytest.MonkeyPatch):
    before = contents(made)
    monkeypatch.setattr(module, "open_engine", None)
    assert write_trace(network, data, made).made == []
    assert contents(made) == before


def test_two_processes_make_what_one_makes(network: Path, data: Path, tmp_path: Path, made: Path):
    program = """
import sys
from pathlib import Path
from dynamic_confidence.calib.write_trace import write_trace
network, data, folder = map(Path, sys.argv[1:4])
print(write_trace(network, data, folder, rank=int(sys.argv[4]), world_size=2, shard_size=5).made)
"""
    command = [sys.executable, "-c", program, str(network), str(data), str(tmp_path / "two")]
    ranks = [
        subprocess.Popen(
            [*command, rank], stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        for rank in "01"
    ]
    said = [rank.communicate(timeout=120)[0].strip() for rank in ranks]
    assert said == ["[0, 2, 4]", "[1, 3]"]
    assert contents(tmp_path / "two") == contents(made)


def test_shards_of_two_machines_in_one_folder(network: Path, data: Path, tmp_path: Path, made: Path):
    for rank in range(2):
        write_trace(network, data, tmp_path / str(rank), rank=rank, world_size=2, shard_size=SHARD)
    for file in (tmp_path / "1").glob("shard-*"):
        file.rename(tmp_path / "0" / file.name)
    assert write_trace(network, data, tmp_path / "0").made == []
    assert contents(tmp_path / "0") == contents(made)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def one_bit(content: bytes) -> bytes:
    return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]


@pytest.mark.parametrize("spoil", [half, one_bit])
def test_a_broken_shard_is_reported_and_made_again(
    network: Path, data: Path, made: Path, spoil: Callable[[bytes], bytes]
):
    before, path = contents(made), shard_path(made, 3)
    path.write_bytes(spoil(before[path.name]))
    written = write_trace(network, data, made)
    assert written.made == [3]
    assert len(written.broken) == 1
    assert "shard-00003.npz: not a whole shard of this trace" in written.broken[0]
    assert contents(made) == before


def test_shards_without_their_header_are_checked(network: Path, data: Path, made: Path):
    before = contents(made)
    (made / HEADER).unlink()
    shard_path(made, 1).write_bytes(b"")
    assert write_trace(network, data, made, shard_size=SHARD).made == [1]
    assert contents(made) == before


def test_another_network_is_refused(exported: Exported, network: Path, data: Path, made: Path):
    before = contents(made)
    with pytest.raises(
        DynamicConfidenceError, match=r"made: holds a trace of .* on data, which differs .* in graph_sha"
    ):
        write_trace(exported(method="qcfs", count_spikes=True), data, made)
    with pytest.raises(DynamicConfidenceError, match=r"in shard_size\. Choose another folder with -o"):
        write_trace(network, data, made, shard_size=7)
    assert contents(made) == before


def test_another_data_set_is_refused(network: Path, data: Path, made: Path):
    before = contents(made)
    (data / "one" / "01.png").rename(data / "two" / "01.png")
    with pytest.raises(DynamicConfidenceError, match=r"which differs from that of .* in samples_sha256"):
        write_trace(network, data, made)
    (data / "two" / "01.png").unlink()
    with pytest.raises(DynamicConfidenceError, match=r"in samples_sha256, samples\. Choose another folder"):
        write_trace(network, data, made)
    assert contents(made) == before


def test_other_images_of_the_same_names_are_refused(network: Path, data: Path, made: Path):
    before = contents(made)
    Image.new("L", (12, 12)).save(data / "zero" / "04.png")
    with pytest.raises(DynamicConfidenceError, match=r"shard-\d+\.npz: was made from other images of the same names"):
        write_trace(network, data, made)
    assert contents(made) == before


def test_a_corrupt_image_keeps_what_is_done_and_can_be_mended(network: Path, data: Path, tmp_path: Path, made: Path):
    folder, path = tmp_path / "corrupt", sorted(data.rglob("*.png"))[12]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    message = rf"{path.name}: not a readable image .*Put a good copy in its place, and run it again\."
    with pytest.raises(DynamicConfidenceError, match=message):
        write_trace(network, data, folder, shard_size=SHARD)
    assert set(contents(folder)) == {HEADER, "shard-00000.npz", "shard-00001.npz"}
    path.write_bytes(whole)
    assert write_trace(network, data, folder).made == [2, 3, 4]
    assert contents(folder) == contents(made)


def test_half_precision_keeps_to_one_engine(
    exported: Exported, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its bits depend on what runs it: one trace is of one engine and batch."""
    path, folder = exported(precision="fp16"), tmp_path / "half"
    with pytest.raises(Killed):
        write_trace(path, data, folder, shard_size=SHARD, batch=5, track=killed_after(1))
    header = read_header(folder)
    assert header.engine is not None
    assert header.engine.endswith(", batch 5")
    with pytest.raises(DynamicConfidenceError, match="in engine"):
        write_trace(path, data, folder, batch=3)
    assert write_trace(path, data, folder, batch=5).made == [1, 2, 3, 4]
    monkeypatch.setattr(module, "open_engine", None)
    assert write_trace(path, data, folder).made == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2}, "rank 2 of 2 processes: expected 0 to 1. Give both --rank and --world-size"),
        ({"rank": -1}, "rank -1 of 1 processes: expected 0 to 0"),
        ({"world_size": 0}, "0 processes: expected at least 1"),
        ({"shard_size": 0}, "shard size 0: expected at least 1 sample"),
    ],
)
def test_numbers_that_make_no_sense(network: Path, data: Path, tmp_path: Path, options: dict[str, int], message: str):
    with pytest.raises(DynamicConfidenceError, match=message):
        write_trace(network, data, tmp_path / "trace", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "trace").exists()


def test_a_place_that_is_no_folder(network: Path, data: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DynamicConfidenceError, match="file: is a file, expected a folder for the trace"):
        write_trace(network, data, tmp_path / "file")
    with pytest.raises(DynamicConfidenceError, match=r"below: cannot be made \(Not a directory\)"):
        write_trace(network, data, tmp_path / "file" / "below")
