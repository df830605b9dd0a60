"""The page of Table 2: what was measured, what is projected, what is the paper's, and what makes it doubtful."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from html_outline import outline
from table2_records import COMPUTER, GPU, ROWS, TINY, TINY_SETTINGS, cell, row, series, table2_record, trained_cell

from dynamic_confidence.benchmarks.latency.report import html_of, markdown_of
from dynamic_confidence.benchmarks.latency.report_parts import Page, Picture, Table, Text
from dynamic_confidence.benchmarks.table2 import settings
from dynamic_confidence.benchmarks.table2.page import fastest, page_of, projected
from dynamic_confidence.benchmarks.table2.picture import Bar, latencies_picture
from dynamic_confidence.benchmarks.table2.record import Cell, Table2Record
from dynamic_confidence.benchmarks.table2.settings import PaperSetting

UNKNOWN = "not known"
HOSTILE = '<script>alert("1")</script>&$x_1|`*'


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of two settings, of which the second is hardly known."""
    monkeypatch.setattr(settings, "NETWORKS", TINY)
    monkeypatch.setattr(settings, "SETTINGS", TINY_SETTINGS)


def record_of(qcfs: Cell | None = None, qffs: Cell | None = None, **changes: Any) -> Table2Record:
    cells = {"tiny/qcfs": qcfs, "tiny/qffs": qffs}
    return table2_record({name: one for name, one in cells.items() if one is not None}, **changes)


def table(page: Page, caption: str, section: str = "") -> dict[str, tuple[str, ...]]:
    """Rows of the table whose caption begins so, by their heading."""
    parts = [part for one in page.sections if one.title.startswith(section) for part in one.parts]
    (found,) = (part for part in parts if isinstance(part, Table) and part.caption.startswith(caption))
    return {row[0]: row[1:] for row in found.rows}


def texts(page: Page) -> list[str]:
    return [part.text for section in page.sections for part in section.parts if isinstance(part, Text)]


def test_the_projection_is_linear_in_the_steps():
    assert projected(127.0, PaperSetting("n", "qcfs", 27, 11.51)) == pytest.approx(127.0 / 27 * 11.51)
    assert projected(60.0, PaperSetting("n", "qcfs", 30)) is None


def test_the_fastest_is_that_of_the_medians():
    assert fastest([row("a", series(1.0, 9.0, 9.0)), row("b", series(5.0, 5.0, 5.0))]).name == "b"


def test_the_page_says_what_the_record_says():
    page = page_of([record_of(cell(), cell(steps=3))])
    summary = table(page, "Milliseconds per image (batch 1)")
    here = "12.5", "events fp32", "8.00"
    assert summary["Tiny, Noise, QCFS"] == ("4", "2.5", *here, "5.00 (projected)", "10.0", "100", "50.0")
    assert summary["Tiny, Noise, QFFS"] == ("3", UNKNOWN, *here, UNKNOWN, "10.0", UNKNOWN, UNKNOWN)
    engines = table(page, "Milliseconds per image, engine by engine", "Tiny, Noise, QCFS")
    # 20 ms * 2.5 / 4; two steps in a pass
    one = "20.0", "16.0 – 24.0", "5.00", "12.5 (projected)", "10.0", "2.00"
    assert engines["ONNX Runtime fp32 (ONNX 1.0)"] == one
    assert engines["events fp32 (events 1.0)"] == ("8.00", "8.00 – 9.00", "2.00", "5.00 (projected)", "–", "–")
    assert engines["the paper, V100"] == ("100", "–", "25.0", "50.0", "–", "–")
    assert "the paper, V100" not in table(page, "Milliseconds per image, engine", "Tiny, Noise, QFFS")
    absent = table(page, "Engines that were not", "Tiny, Noise, QCFS")
    assert absent == {GPU: ("not possible: no NVIDIA GPU on this machine",)}
    assert table(page, "Of the paper's numbers") == {"Tiny, Noise, QCFS": ("nobody published this",)}
    assert any(
        text.startswith("Random weights, 16 channels in the first stage; 1 × 12 × 12 values, 1.5 million")
        and text.endswith("12.5 % spike per step. T = 4; 3 rounds, medians known to ± 20.0 %.")
        for text in texts(page)
    )
    machine = {name: value for name, (value,) in table(page, "The machine").items()}
    assert machine["pinned to"] == "1 core(s)"
    assert machine["software"] == "Python 3.11, onnxruntime 1.0"
    assert (machine["commit"], machine["load average"]) == ("abc", "0.0 to 1.5")
    assert page.headlines == (
        "Tiny, Noise, QCFS: 8.00 ms per image for all 4 time steps (events fp32), with Dynamic Confidence 5.00 ms "
        "(projected); in the paper 100 and 50.0 ms on a V100.",
    )
    assert page.warnings == ()


def test_random_weights_only_say_how_to_measure():
    said = "All weights of this record are random, so what Dynamic Confidence takes is projected."
    assert any(
        text.startswith(said) and "--model model.pt=DATA" in text for text in texts(page_of([record_of(cell())]))
    )
    assert not any(text.startswith(said) for text in texts(page_of([record_of(trained_cell())])))


def test_a_measured_exit_is_not_projected():
    page = page_of([record_of(trained_cell())])
    summary = table(page, "Milliseconds per image (batch 1)")["Tiny, Noise, QCFS"]
    assert summary == ("4", "1.75 (here)", "12.5", "ONNX Runtime fp32", "8.00", "3.00 (measured)", "–", "100", "50.0")
    engines = table(page, "Milliseconds per image, engine by engine")
    assert engines["ONNX Runtime fp32 (ONNX 1.0)"][3] == "3.00 (measured)"
    trained = "Trained: net (SHA-256 000000000000…), exits calibrated on 1,000 images of noise and tested on 2,000"
    assert any(text.startswith(trained) for text in texts(page))
    tested = table(page, "Accuracy with early exit, and after all steps")
    assert tested == {"fp32": ("70.0", "69.5", "0.600", "1.75", "56.2", "3", "1.67")}
    assert page.warnings == ()
    assert "with Dynamic Confidence 3.00 ms (measured);" in page.headlines[0]


def test_a_quick_record_has_no_headline_beside_the_paper():
    page = page_of([record_of(cell(), quick=True)])
    assert page.headlines == ("1 of the 2 settings of the paper's Table 2, measured on a processor.",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spike_rate": 1.5}, r"spike_rate 1\.5: expected a share, 0 to 1"),
        ({"model": None}, r"with_exit of \['ONNX Runtime fp32'\]: expected null without a model"),
    ],
)
def test_cells_that_cannot_be(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        msgspec.structs.replace(trained_cell(), **changes)


def test_the_page_of_a_part():
    page = page_of([record_of(qffs=cell(load_average=[None, None]))])
    assert table(page, "Milliseconds per image (batch 1)")["Tiny, Noise, QCFS"] == (
        *("4", "2.5", *["not measured"] * 5, "100", "50.0"),
    )
    assert page.headlines == ("1 of the 2 settings of the paper's Table 2, measured on a processor.",)
    assert table(page, "The machine")["load average"] == ("not known",)
    assert sum(section.title.startswith("Tiny") for section in page.sections) == 1


@pytest.mark.parametrize(
    ("record", "warning"),
    [
        (lambda: record_of(cell(), quick=True), "Measured with `--quick`: networks with 4 times fewer channels"),
        (
            lambda: record_of(cell(spike_rate=0.3)),
            "tiny/qcfs: 30.0% of the neurons spike per step, trained networks 5%",
        ),
        (
            lambda: record_of(trained_cell(test_images=999)),
            "tiny/qcfs: net was tested on 999 images: too few to tell what early exit does to",
        ),
        (
            lambda: record_of(trained_cell(accuracy=0.68)),
            "tiny/qcfs, fp32: early exit loses 2.0 points of accuracy, which its milliseconds do not show",
        ),
        (
            lambda: record_of(cell(steps=5)),
            "tiny/qcfs: measured with T = 5, the paper's is 4: not to be set beside it.",
        ),
        (lambda: record_of(cell(load_average=[3.2, None])), "The load average was up to 3.2 with 1 thread(s): other"),
        (
            lambda: table2_record({"tiny/qcfs": cell(), "large/qcfs": cell()}),
            "The record also holds large/qcfs, which this version's table does not have: not shown.",
        ),
    ],
    ids=["quick", "spikes", "few test images", "accuracy lost", "other T", "busy", "unknown"],
)
def test_what_is_doubtful_is_said(record: Any, warning: str):
    (found,) = page_of([record()]).warnings
    assert found.startswith(warning)


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (
            {"machine": msgspec.structs.replace(COMPUTER, processor="B")},
            "machines (processor: a processor | B). Compare",
        ),
        ({"machine": msgspec.structs.replace(COMPUTER, gpu="sm89")}, "from different machines (GPU: none | sm89)."),
        (
            {"machine": msgspec.structs.replace(COMPUTER, libraries={"onnxruntime": "2"})},
            "software (onnxruntime: 1.0 | 2)",
        ),
        ({"threads": 2}, "measured with different options (threads: 1 | 2)"),
    ],
    ids=["processor", "gpu", "software", "options"],
)
def test_records_that_do_not_compare_are_warned_of(changes: dict[str, Any], warning: str):
    page = page_of([record_of(cell()), record_of(cell(), **changes)])
    (found,) = page.warnings
    assert warning in found
    assert [text[:10] for text in page.headlines] == ["Record 1: ", "Record 2: "]
    titles = [section.title for section in page.sections]
    assert titles == [
        "In short, record 1",
        "In short, record 2",
        "How to read it",
        "Tiny, Noise, QCFS, record 1",
        "Tiny, Noise, QCFS, record 2",
        "Machine and method, record 1",
        "Machine and method, record 2",
    ]


def test_a_page_needs_a_record():
    with pytest.raises(ValueError, match="a page needs a record"):
        page_of([])


def test_every_table_and_picture_is_on_the_page_and_nothing_from_outside():
    content = page_of([record_of(trained_cell(), cell())])
    text = html_of(content)
    page = outline(text)
    parts = [part for section in content.sections for part in section.parts]
    assert [node.text for node in page.all("caption")] == [part.caption for part in parts if isinstance(part, Table)]
    (picture,) = (part for part in parts if isinstance(part, Picture))
    assert page.one("figcaption").one("strong").text == picture.title
    assert {"fixed T", "with DC, measured", "one pass", "V100, with DC"} <= {node.text for node in page.all("text")}
    assert content.footer in page.one("footer").text
    assert page.all("script", "img", "iframe", "link")[0].attributes["href"] == "data:,"
    assert len(page.all("script", "img", "iframe", "link")) == 1
    assert text == html_of(page_of([record_of(trained_cell(), cell())]))


def test_what_comes_from_a_record_is_escaped():
    hostile = row(HOSTILE, series(1.0), backend=HOSTILE)
    machine = msgspec.structs.replace(COMPUTER, processor=HOSTILE, libraries={HOSTILE: HOSTILE})
    content = page_of([record_of(cell(hostile, *ROWS), machine=machine)])
    page = outline(html_of(content))
    assert page.all("script") == []
    for tag in ("p", "td", "th"):
        assert any(HOSTILE in node.text for node in page.all(tag)), tag
    assert "<script" not in markdown_of(content).replace("\\<", "")


def test_the_axis_ends_at_powers_of_ten():
    bars = [Bar("one", 30.0, 12.0, None, None, 127.0, 47.0), Bar("other", 2.0, None, 1.0, 0.5, None, None)]
    text = latencies_picture("key", "title", "about", bars)
    labels = {node.text for node in outline(text).all("text")}
    assert {
        "0.1",
        "1",
        "10",
        "100",
        "1,000",
        "ms per image",
        "one",
        "other",
        "with DC, projected",
        "one pass",
    } <= labels
    assert "var(--bound)" in text
