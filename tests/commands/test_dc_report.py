"""dc-report writes the page or Markdown; records that cannot be read, and libraries that are not there, are said."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from html_outline import outline
from latency_records import latency_record

from dynamic_confidence.benchmarks.latency import dc_report
from dynamic_confidence.benchmarks.latency.report import markdown
from dynamic_confidence.benchmarks.record import write_record


def run_command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(dc_report.main, [str(argument) for argument in arguments])


@pytest.fixture
def record_file(tmp_path: Path) -> Path:
    path = tmp_path / "record.json"
    write_record(path, latency_record())
    return path


def test_the_command_writes_the_page(record_file: Path, tmp_path: Path):
    done = run_command(record_file, record_file, "-o", tmp_path / "report.html")
    assert (done.exit_code, done.output) == (0, f"{tmp_path / 'report.html'}: 2 runs of 2 records\n")
    assert "Record 2" in outline((tmp_path / "report.html").read_text(encoding="utf-8")).text


def test_the_command_writes_markdown(record_file: Path, tmp_path: Path):
    shown = run_command(record_file, "--markdown")
    assert (shown.exit_code, shown.output) == (0, markdown([latency_record()]))
    done = run_command(record_file, "--markdown", "-o", tmp_path / "report.md")
    assert (done.exit_code, done.output) == (0, f"{tmp_path / 'report.md'}: 1 run of 1 record\n")
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == shown.output


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[:-4], "not a latency record of version 1 (Input data was truncated)"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "not a latency record of version 1 (Invalid enum"),
        (lambda text: text.replace('"study": "latency"', '"study": "speed"'), "(Invalid value 'speed' - at `$.study`)"),
        (lambda text: text.replace('"command"', '"order"'), "unknown field `order`"),
        (lambda text: "[]", "(Expected `object`, got `array`)"),
    ],
    ids=["truncated", "version", "study", "field", "list"],
)
def test_bad_records_are_refused_and_nothing_is_written(record_file: Path, tmp_path: Path, damage: Any, says: str):
    record_file.write_text(damage(record_file.read_text(encoding="utf-8")), encoding="utf-8")
    done = run_command(record_file, "-o", tmp_path / "report.html")
    assert done.exit_code == 2
    assert done.output.startswith(f"Error: {record_file}: ")
    assert says in done.output
    assert not (tmp_path / "report.html").exists()


def test_a_record_without_a_sample_is_refused(record_file: Path, tmp_path: Path):
    write_record(record_file, latency_record(runs=[], stopped="Ctrl-C", complete=False))
    done = run_command(record_file, "-o", tmp_path / "report.html")
    assert (done.exit_code, done.output) == (2, f"Error: {record_file}: holds no sample (Ctrl-C). Measure again.\n")


def test_a_record_that_is_not_there(tmp_path: Path):
    done = run_command(tmp_path / "none.json", "--markdown")
    assert done.exit_code == 2
    assert "none.json: cannot be read (" in done.output


def test_where_to_write_has_to_be_said_and_is_no_record(record_file: Path):
    done = run_command(record_file)
    assert done.exit_code == 2
    assert "no -o: expected the page's file, as in -o report.html, or --markdown." in done.output
    before = record_file.read_bytes()
    done = run_command(record_file, "-o", record_file)
    assert done.exit_code == 2
    assert f"-o {record_file}: is one of the records, expected another file" in done.output
    assert record_file.read_bytes() == before


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_a_missing_library_says_what_to_install(
    record_file: Path, tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, library, None)  # type: ignore[arg-type]
    done = run_command(record_file, "-o", tmp_path / "report.html")
    assert done.exit_code == 3
    assert re.search(rf"need(s)? {library} .*Install it with pip install 'dynamic-confidence\[report\]'", done.output)
    assert not (tmp_path / "report.html").exists()
    assert run_command(record_file, "--markdown").exit_code == 0
