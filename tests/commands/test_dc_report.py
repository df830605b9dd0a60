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
from table2_records import cell, table2_record

from dynamic_confidence.benchmarks.latency import dc_report
from dynamic_confidence.benchmarks.latency.report import markdown_of
from dynamic_confidence.benchmarks.latency.report_page import page_of
from dynamic_confidence.benchmarks.record import write_record
from dynamic_confidence.benchmarks.table2 import page as table2_page


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
    assert (shown.exit_code, shown.output) == (0, markdown_of(page_of([latency_record()])))
    done = run_command(record_file, "--markdown", "-o", tmp_path / "report.md")
    assert (done.exit_code, done.output) == (0, f"{tmp_path / 'report.md'}: 1 run of 1 record\n")
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == shown.output


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[:-4], "Table 2, of version 1 (Input data was truncated). Measure one with `dc-bench net"),
        (
            lambda text: text.replace('"version": 1', '"version": 2'),
            "not a record of dc-bench or of Table 2, of version",
        ),
        (lambda text: text.replace('"study": "latency"', '"study": "speed"'), "(Invalid value 'speed' - at `$.study`)"),
        (lambda text: text.replace('"command"', '"order"'), "unknown field `order`"),
        (lambda text: "[]", "(Expected `object`, got `array`)"),
        (lambda text: "", "is empty, expected a record of dc-bench or of Table 2"),
        (lambda text: text.replace('"study": "latency"', '"study": "table2"'), "unknown field `complete`"),
    ],
    ids=["truncated", "version", "study", "field", "list", "empty", "wrong study"],
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


@pytest.fixture
def table2_file(tmp_path: Path) -> Path:
    path = tmp_path / "table2.json"
    write_record(path, table2_record({"resnet18_cifar10/qcfs": cell(), "vgg16_cifar10/qffs": cell()}))
    return path


def test_a_record_of_table_2_makes_its_own_page(table2_file: Path, tmp_path: Path):
    done = run_command(table2_file, "-o", tmp_path / "table2.html")
    assert (done.exit_code, done.output) == (0, f"{tmp_path / 'table2.html'}: 2 settings of 1 record\n")
    page = outline((tmp_path / "table2.html").read_text(encoding="utf-8"))
    assert page.one("h1").text == table2_page.TITLE
    assert "5.00" not in page.one("header").text  # 8 ms * 11.51 / 27
    assert "with Dynamic Confidence 3.41 ms (projected); in the paper 127 and 47.0 ms" in page.one("header").text
    shown = run_command(table2_file, "--markdown")
    assert shown.output.startswith(f"# {table2_page.TITLE}\n")


def test_records_of_two_kinds_do_not_share_a_page(record_file: Path, table2_file: Path, tmp_path: Path):
    done = run_command(record_file, table2_file, "-o", tmp_path / "report.html")
    assert done.exit_code == 2
    says = "1 of these 2 records are of dc-bench, 1 of Table 2: a page shows one kind, expected records of the same. "
    assert f"{says}Call dc-report once for each." in done.output
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], "not a record of dc-bench or of Table 2, of version 1 (Input data was"),
        (lambda text: text.replace('"threads": 1', '"threads": "1"'), "(Expected `int`, got `str` - at `$.threads`)"),
        (lambda text: text.replace("24.0,", "0.0,", 1), "(milliseconds must be positive and finite - at `$.cells[...]"),
        (
            lambda text: text.replace("_cifar10", "_mnist"),
            "holds no setting of Table 2 (resnet18_mnist/qcfs, vgg16_mni",
        ),
    ],
    ids=["truncated", "type", "time", "no setting"],
)
def test_bad_records_of_table_2_are_refused(table2_file: Path, tmp_path: Path, damage: Any, says: str):
    table2_file.write_text(damage(table2_file.read_text(encoding="utf-8")), encoding="utf-8")
    done = run_command(table2_file, "-o", tmp_path / "table2.html")
    assert done.exit_code == 2
    assert says in done.output
    assert not (tmp_path / "table2.html").exists()


def test_a_record_of_table_2_without_a_setting_is_refused(table2_file: Path, tmp_path: Path):
    write_record(table2_file, table2_record({}))
    done = run_command(table2_file, "-o", tmp_path / "table2.html")
    assert done.exit_code == 2
    assert (
        "table2.json: holds no setting of Table 2 (nothing), expected one as vgg16_cifar10/qcfs. Measure "
        in done.output
    )
    assert "one: python -m dynamic_confidence.benchmarks.table2 -o table2_2.json" in done.output


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
    assert f"-o {record_file}: a page is no .json, expected another name: -o report.html." in done.output
    assert record_file.read_bytes() == before
    plain = record_file.rename(record_file.with_suffix(""))
    done = run_command(plain, "-o", plain)
    assert f"-o {plain}: is one of the records, expected another file" in done.output
    assert plain.read_bytes() == before


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
