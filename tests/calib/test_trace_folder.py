"""A trace on disk comes back as it was, and nothing that is not whole or not of this trace is believed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from dynamic_confidence.calib import trace_header
from dynamic_confidence.calib.trace import Trace
from dynamic_confidence.calib.trace_folder import (
    BrokenShard,
    Shard,
    load_trace,
    missing_shards,
    read_shard,
    read_shards,
    shard_path,
    write_shard,
)
from dynamic_confidence.calib.trace_header import (
    HEADER,
    LayerSize,
    TraceHeader,
    counted_layers,
    header_of,
    read_header,
    write_header,
)
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Method
from dynamic_confidence.runtime.onnx_file import read_onnx

NEW = TraceHeader(
    version=1,
    network="net",
    data="test",
    graph_sha256="a" * 64,
    samples_sha256="b" * 64,
    samples=10,
    shard_size=4,
    steps=5,
    class_names=("x", "y", "z"),
    method=Method("qffs", 3, 3),
    layers=(LayerSize("first", 6), LayerSize("second", 4)),
    net_spikes=True,
    engine=None,
)


def shard_of(header: TraceHeader, shard: int) -> Shard:
    rows = header.rows(shard)
    count, rng = rows.stop - rows.start, np.random.default_rng(shard)
    shape = count, header.steps, len(header.class_names)
    trace = Trace(
        rng.normal(size=shape).astype(np.float32), rng.integers(0, 3, count), rng.integers(1, header.steps + 1, count)
    )
    counts = [rng.integers(0, 9, (count, header.steps, 2)).cumsum(axis=1) for _ in range(2)]
    names = np.array([f"x/{row}.png" for row in range(rows.start, rows.stop)])
    return Shard(trace, names, f"{shard:064d}", counts[0], counts[1] if header.net_spikes else None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_header(tmp_path, NEW)
    for shard in range(NEW.shards):
        write_shard(tmp_path, NEW, shard, shard_of(NEW, shard))
    return tmp_path


def test_a_header_comes_back(tmp_path: Path):
    write_header(tmp_path, NEW)
    assert read_header(tmp_path) == NEW


def test_shards_cover_every_sample_once():
    rows = [NEW.rows(shard) for shard in range(NEW.shards)]
    assert rows == [slice(0, 4), slice(4, 8), slice(8, 10)]


@pytest.mark.parametrize("header", [NEW, msgspec.structs.replace(NEW, net_spikes=False)])
def test_a_shard_comes_back(tmp_path: Path, header: TraceHeader):
    for shard in range(header.shards):
        expected = shard_of(header, shard)
        write_shard(tmp_path, header, shard, expected)
        found = read_shard(tmp_path, header, shard)
        for name in ("logits", "label", "last_step"):
            np.testing.assert_array_equal(getattr(found.trace, name), getattr(expected.trace, name), strict=True)
        np.testing.assert_array_equal(found.names, expected.names)
        np.testing.assert_array_equal(found.spikes, expected.spikes, strict=True)  # type: ignore[arg-type]
        assert (found.net_spikes is None) != header.net_spikes
        assert found.images_sha256 == expected.images_sha256


def test_the_same_shard_is_the_same_bytes(folder: Path):
    before = shard_path(folder, 1).read_bytes()
    write_shard(folder, NEW, 1, shard_of(NEW, 1))
    assert shard_path(folder, 1).read_bytes() == before


def test_counts_that_32_bits_cannot_hold_are_kept(tmp_path: Path):
    header = msgspec.structs.replace(NEW, layers=(LayerSize("first", 2**31), LayerSize("second", 4)))
    shard = shard_of(header, 0)
    assert shard.spikes is not None
    shard.spikes[0, -1, 0] = 5 * 2**31
    write_shard(tmp_path, header, 0, shard)
    assert read_shard(tmp_path, header, 0).spikes[0, -1, 0] == 5 * 2**31  # type: ignore[index]


def test_the_whole_trace(folder: Path):
    trace = load_trace(folder)
    parts = [shard_of(NEW, shard).trace for shard in range(3)]
    np.testing.assert_array_equal(trace.logits, np.concatenate([part.logits for part in parts]))
    np.testing.assert_array_equal(trace.label, np.concatenate([part.label for part in parts]))
    np.testing.assert_array_equal(trace.last_step, np.concatenate([part.last_step for part in parts]))


def test_missing_shards_are_named(folder: Path):
    shard_path(folder, 0).unlink()
    shard_path(folder, 2).unlink()
    assert missing_shards(folder, NEW) == [0, 2]
    with pytest.raises(DynamicConfidenceError, match=r"2 of 3 shards are not there yet \(0, 2\)\. Run `dc-eval` again"):
        load_trace(folder)
    with pytest.raises(BrokenShard, match=r"shard-00002\.npz: is missing\. Run `dc-eval` again"):
        read_shard(folder, NEW, 2)


def test_a_shard_of_any_shorter_length_is_broken(folder: Path):
    path = shard_path(folder, 1)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(BrokenShard, match=r"shard-00001\.npz: not a whole shard of this trace"):
            read_shard(folder, NEW, 1)


def test_no_bit_can_turn_unseen(folder: Path):
    """It is found out, or it is in what nobody reads (a date in the directory of the .npz)."""
    path, expected, rng = shard_path(folder, 1), shard_of(NEW, 1), np.random.default_rng(0)
    content, found_out = path.read_bytes(), 0
    for _ in range(400):
        changed = bytearray(content)
        changed[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            shard = read_shard(folder, NEW, 1)
        except BrokenShard:
            found_out += 1
            continue
        np.testing.assert_array_equal(shard.trace.logits, expected.trace.logits)
        np.testing.assert_array_equal(shard.trace.label, expected.trace.label)
        np.testing.assert_array_equal(shard.trace.last_step, expected.trace.last_step)
        np.testing.assert_array_equal(shard.spikes, expected.spikes)  # type: ignore[arg-type]
        np.testing.assert_array_equal(shard.net_spikes, expected.net_spikes)  # type: ignore[arg-type]
    assert found_out > 200


def test_a_shard_of_another_trace_is_not_believed(folder: Path):
    other = msgspec.structs.replace(NEW, graph_sha256="c" * 64)
    write_shard(folder, other, 1, shard_of(other, 1))
    with pytest.raises(BrokenShard, match="it belongs to another trace"):
        list(read_shards(folder, NEW))


def test_a_shard_under_another_number_is_not_believed(folder: Path):
    shard_path(folder, 0).write_bytes(shard_path(folder, 1).read_bytes())
    with pytest.raises(BrokenShard, match="it is number 1, expected 0"):
        load_trace(folder)


def test_a_shard_of_another_shape_is_not_believed(folder: Path):
    write_shard(folder, NEW, 0, shard_of(NEW, 2))
    with pytest.raises(BrokenShard, match=r"logits has shape \(2, 5, 3\), expected \(4, 5, 3\)"):
        load_trace(folder)


@pytest.mark.parametrize("change", [{"network": "other"}, {"data": "elsewhere"}])
def test_names_do_not_tell_traces_apart(change: dict[str, str]):
    other = msgspec.structs.replace(NEW, **change)
    assert other.differences(NEW) == []
    assert other.digest() == NEW.digest()


OTHERWISE = {
    "version": 2,
    "graph_sha256": "c" * 64,
    "samples_sha256": "c" * 64,
    "samples": 11,
    "shard_size": 3,
    "steps": 6,
    "class_names": ("x", "y"),
    "method": Method("qcfs", 3, None),
    "layers": NEW.layers[:1],
    "net_spikes": False,
    "engine": "GPU, batch 4",
}


def test_every_other_key_does():
    assert set(OTHERWISE) == set(TraceHeader.__struct_fields__) - {"network", "data"}
    for key, value in OTHERWISE.items():
        other = msgspec.structs.replace(NEW, **{key: value})
        assert other.differences(NEW) == [key]
        assert other.digest() != NEW.digest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            r"holds no trace \(trace\.json: No such file or directory\)\. Make one: `dc-eval net\.onnx --data DIR -o",
        ),
        (b"{}", r"trace\.json: not a header of a trace \(.*missing required field `version`"),
        (b"\xff", r"trace\.json: not a header of a trace"),
        (b'{"version": 2', "not a header of a trace"),
    ],
)
def test_what_is_no_header(tmp_path: Path, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / HEADER).write_bytes(content)
    with pytest.raises(DynamicConfidenceError, match=message):
        load_trace(tmp_path)


@pytest.mark.parametrize("change", [{"version": 2}, {"samples": 0}, {"shard_size": 0}, {"steps": 0}])
def test_a_header_with_impossible_numbers(tmp_path: Path, change: dict[str, int]):
    write_header(tmp_path, msgspec.structs.replace(NEW, **change))
    with pytest.raises(DynamicConfidenceError, match="expected version 1 and at least 1 of each"):
        read_header(tmp_path)


def test_a_trace_whose_labels_count_other_classes(folder: Path, exported):
    manifest = read_onnx(exported())[1]
    same_graph = msgspec.structs.replace(manifest.provenance, graph_sha256=read_header(folder).graph_sha256)
    text = "its labels count the classes as x, y, z, the network as zero, one, two, three. Trace it again"
    with pytest.raises(DynamicConfidenceError, match=text):
        load_trace(folder, msgspec.structs.replace(manifest, provenance=same_graph))


def test_the_trace_of_another_network(folder: Path, exported):
    manifest = read_onnx(exported())[1]
    with pytest.raises(
        DynamicConfidenceError, match=rf"holds a trace of net \(graph a{{12}}\), expected one of {manifest.name}"
    ):
        load_trace(folder, manifest)


@pytest.mark.parametrize(("bytes_of_logits", "size"), [(2**26, 1024), (12 * 4 * 4 * 10, 10), (1, 1)])
def test_a_shard_holds_what_memory_can(exported, monkeypatch: pytest.MonkeyPatch, bytes_of_logits: int, size: int):
    class Images:
        title = "data"

        def identity(self) -> str:
            return "c" * 64

        def __len__(self) -> int:
            return 3000

    monkeypatch.setattr(trace_header, "SHARD_BYTES", bytes_of_logits)
    header = header_of(read_onnx(exported())[1], Images(), None)  # type: ignore[arg-type]
    assert header.shard_size == size
    assert header.layers == ()


def test_layers_are_the_networks_membranes(exported):
    manifest = read_onnx(exported(method="qffs", count_spikes=True))[1]
    layers = counted_layers(manifest)
    assert [layer.name for layer in layers][:2] == ["activation1", "layer1.0.activation1"]
    assert layers[0].neurons == 4 * 12 * 12
    assert len(layers) == 7
    states = tuple(state for state in manifest.states if state.input != "v_in.activation1")
    with pytest.raises(DynamicConfidenceError, match="counts the spikes of 7 layers, expected 6, one per state 'v_in"):
        counted_layers(msgspec.structs.replace(manifest, states=states))
    products = read_onnx(exported(method="qffs", precision="int8", form="matmul"))[1]
    assert counted_layers(products) == layers  # though it keeps no membranes
