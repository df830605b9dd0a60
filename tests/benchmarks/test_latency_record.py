"""A record is read as it was written; one that is cut short or contradicts itself is refused; its schema is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from latency_records import latency_record, latency_run
from support import ROOT

from dynamic_confidence.benchmarks.latency.record import (
    Energy,
    LatencyRecord,
    Series,
    read_record,
    schema,
)
from dynamic_confidence.benchmarks.latency.report import markdown_of
from dynamic_confidence.benchmarks.latency.report_page import page_of
from dynamic_confidence.benchmarks.record import write_record
from dynamic_confidence.runtime.errors import DynamicConfidenceError

SCHEMA = ROOT / "docs" / "latency_record.schema.json"


def test_read_is_what_was_written(tmp_path: Path):
    energy = Energy(source="RAPL", idle_watts=3.0, joules_with_exit=0.1, joules_without_exit=0.2)
    record = latency_record(latency_run(), latency_run(energy=energy, evaluation=None, overhead=None))
    write_record(tmp_path / "folder" / "r.json", record)
    assert read_record(tmp_path / "folder" / "r.json") == record


def test_the_schema_in_the_docs_is_that_of_the_structs():
    assert SCHEMA.read_text(encoding="utf-8") == schema(), (
        "run: python -m dynamic_confidence.benchmarks.latency.record > docs/latency_record.schema.json"
    )


def test_the_schema_allows_and_requires_the_keys_of_a_record():
    found = json.loads(schema())
    fields = found["$defs"]["LatencyRecord"]
    assert fields["additionalProperties"] is False
    keys = set(json.loads(msgspec.json.encode(latency_record())))
    assert set(fields["required"]) == set(fields["properties"]) == keys
    assert fields["properties"]["study"] == {"enum": ["latency"]}


def edited(edit: Callable[[dict[str, Any]], object]) -> bytes:
    content = json.loads(msgspec.json.encode(latency_record()))
    edit(content)
    return json.dumps(content).encode()


def text_without(record: bytes) -> bytes:
    return record[: len(record) // 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"study": "peers", "machine": {}}', "not a latency record of version 1 (Invalid value 'peers'"),
        (text_without(msgspec.json.encode(latency_record())), "(Input data was truncated). Measure one with"),
        (b"\xff\xfe", "not a latency record of version 1 ("),
        (b"[]", "(Expected `object`, got `array`)"),
        (edited(lambda r: r.update(version=2)), "(Invalid enum value 2 - at `$.version`). Measure one with `dc-bench"),
        (edited(lambda r: r.update(more=1)), "unknown field `more`"),
        (edited(lambda r: r.pop("machine")), "missing required field `machine`"),
        (edited(lambda r: r.pop("study")), "missing required field `study`"),
        (edited(lambda r: r["runs"][0]["evaluation"]["calibration"].pop("rule")), "missing required field `rule`"),
        (edited(lambda r: r["runs"][0].pop("step_ms")), "missing required field `step_ms` - at `$.runs[0]`"),
        (edited(lambda r: r["runs"][0]["with_exit"].update(ms="4")), "Expected `array`, got `str` - at `$.runs[0]."),
        (edited(lambda r: r["runs"][0]["with_exit"]["ms"].pop()), "expected equal - at `$.runs[0]`"),
        (edited(lambda r: r["runs"][0]["with_exit"]["ms"].append([])), "the last cut short - at"),
        (edited(lambda r: r["runs"][0]["with_exit"]["ms"][0].pop()), "the last cut short - at"),
        (edited(lambda r: r["runs"][0]["without_exit"]["ms"][0].__setitem__(0, -1.0)), "must be positive and finite"),
        (edited(lambda r: r["runs"][0]["right"].pop()), "expected 40, one for each image"),
        (edited(lambda r: r["runs"][0]["exit_steps"].__setitem__(0, 7)), "exit_steps: expected 1 to 6"),
        (edited(lambda r: r["runs"][0]["step_ms"].pop()), "step_ms has 5 entries, expected 6"),
        (
            edited(lambda r: r["runs"][0]["evaluation"]["upper_bound"]["accuracy"].pop()),
            "evaluation: {'upper_bound.accuracy': 5} entries, expected 6, one for each step - at `$.runs[0]`",
        ),
        (
            edited(lambda r: r["runs"][0]["evaluation"]["gross_spikes"]["per_layer"].pop()),
            "evaluation: {'gross_spikes.per_layer': 1} entries, expected 2, one for each layer",
        ),
        (edited(lambda r: r["runs"][0]["evaluation"].update(steps=7)), "evaluation of 7 steps, expected 6 - at"),
        (
            edited(lambda r: r["runs"][0]["overhead"]["loop_once_us"].pop()),
            "{'loop_us': 2, 'bare_us': 2, 'loop_once_us': 1, 'bare_once_us': 2, 'confidence_us': 2} entries, expected "
            "equally many, at least one - at",
        ),
        (
            edited(lambda r: [r["runs"][0]["overhead"].pop(key) for key in ("loop_once_us", "bare_once_us")]),
            "Object missing required field `loop_once_us` - at `$.runs[0].overhead`",
        ),
        (
            edited(lambda r: r["runs"][0]["network"].update(steps=0)),
            "steps 0: expected at least 1 - at `$.runs[0].netw",
        ),
        (
            edited(lambda r: r["pairs"].append({"first": 0, "second": 1, "with_exit": [1.0], "without_exit": [1.0]})),
            "pairs of the runs [0, 1]: there are 1, from 0",
        ),
        (edited(lambda r: r.update(runs=[])), "r.json: holds no sample (nothing was measured). Measure again."),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(DynamicConfidenceError) as caught:
        read_record(tmp_path / "r.json")
    assert message in str(caught.value)
    assert str(tmp_path / "r.json") in str(caught.value)


def lists(part: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the lists of a record are, and in each list those of its first entry."""
    entries = part.items() if isinstance(part, dict) else enumerate(part[:1]) if isinstance(part, list) else ()
    if isinstance(part, list):
        yield path
    for key, value in entries:
        yield from lists(value, (*path, key))


WHOLE: dict[str, Any] = json.loads(msgspec.json.encode(latency_record(latency_run(), latency_run(seed=1))))
LISTS = list(lists(WHOLE))
FREE = {"flags", "pinned_to", "calls", "passes", "throughput", "runs", "pairs"}
"""Lists that may be of any length."""


def test_there_are_lists():
    assert len(LISTS) > 30
    assert {path[-1] for path in LISTS if isinstance(path[-1], str)} > FREE


@pytest.mark.parametrize("path", LISTS, ids=lambda path: ".".join(map(str, path)))
@pytest.mark.parametrize("spoil", [list.pop, list.clear, lambda entries: entries.append(entries[-1])])
def test_a_list_of_another_length_is_refused_or_shown(tmp_path: Path, path: tuple[str | int, ...], spoil: Any):
    spoiled = found = json.loads(json.dumps(WHOLE))
    for key in path:
        found = found[key]
    spoil(found)
    (tmp_path / "r.json").write_text(json.dumps(spoiled))
    try:
        record = read_record(tmp_path / "r.json")
    except DynamicConfidenceError:
        assert path != ("machine", "flags")
    else:
        assert path[-1] in FREE
        assert "answers" in markdown_of(page_of([record]))


def test_a_record_without_a_sample_is_refused(tmp_path: Path):
    empty = latency_run(
        with_exit=Series(ms=[]), without_exit=Series(ms=[]), exit_steps=[], right=[], right_without_exit=[]
    )
    record = latency_record(empty, complete=False, stopped="Ctrl-C")
    write_record(tmp_path / "r.json", record)
    with pytest.raises(DynamicConfidenceError, match=r"holds no sample \(Ctrl-C\). Measure again."):
        read_record(tmp_path / "r.json")


def test_a_record_that_is_not_there(tmp_path: Path):
    with pytest.raises(
        DynamicConfidenceError, match=r"cannot be read .* Measure one with `dc-bench net.onnx --data DIR -o "
    ):
        read_record(tmp_path / "missing.json")


def test_a_record_replaces_another_whole(tmp_path: Path):
    path = tmp_path / "r.json"
    write_record(path, latency_record(latency_run(seed=1)))
    write_record(path, latency_record())
    assert msgspec.json.decode(path.read_bytes(), type=LatencyRecord) == latency_record()
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]
