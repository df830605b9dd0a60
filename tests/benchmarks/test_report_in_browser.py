"""The report in a real browser: it loads in silence, asks for nothing, and fits a desktop, a phone and paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from chromium import NAMES, PICTURES, Chromium, chromium, found_program
from latency_records import MACHINE, latency_record, latency_run
from PIL import Image
from table2_records import COMPUTER, cell, row, series, table2_record, trained_cell

from dynamic_confidence.benchmarks.latency.report import html, html_of, write_report
from dynamic_confidence.benchmarks.table2.page import page_of
from dynamic_confidence.benchmarks.table2.settings import names

pytestmark = pytest.mark.browser

OUTSIDE = """[...document.querySelectorAll('svg text')].filter(text => {
  const own = text.getBoundingClientRect(), frame = text.closest('svg').getBoundingClientRect();
  return own.left < frame.left - 1 || own.right > frame.right + 1 || own.top < frame.top - 1
      || own.bottom > frame.bottom + 1;
}).map(text => text.textContent)"""
SMALLEST = "Math.min(...[...document.querySelectorAll('svg text')].map(text => text.getBoundingClientRect().height))"
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    program = found_program()
    if program is None:
        pytest.skip(f"needs Chromium (looked for {', '.join(NAMES)}): apt-get install chromium")
    with chromium(program) as found:
        yield found


@pytest.fixture(scope="module")
def latency_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All there can be: two records of two machines, two runs, a folded table, a warning, an incomplete run."""
    long = latency_run(method="qffs", backend="events", steps=14, layers=[f"layer{i}.conv" for i in range(20)], seed=1)
    other = msgspec.structs.replace(MACHINE, processor="Another processor with a name that is long, as they are")
    incomplete = latency_run(complete=False, failure="Ctrl-C", evaluation=None)
    path = tmp_path_factory.mktemp("report") / "report.html"
    records = [latency_record(latency_run(), long), latency_record(incomplete, machine=other)]
    write_report(records, path)
    return path


@pytest.fixture(scope="module")
def table2_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All eight settings, one of them trained, and a quick record of another machine."""
    slow = row("ONNX Runtime int8 of a long name", series(6123.4, 6199.9), one_pass=series(0.123, 0.124))
    whole = {name: cell(slow, row("events fp32", series(6200.0, 6300.0))) for name in names()}
    whole["resnet18_cifar10/qcfs"] = trained_cell()
    other = msgspec.structs.replace(COMPUTER, processor="Another processor with a name that is long, as they are")
    records = [table2_record(whole), table2_record({names()[0]: cell()}, machine=other, quick=True)]
    path = tmp_path_factory.mktemp("table2") / "table2.html"
    path.write_text(html_of(page_of(records)), encoding="utf-8")
    return path


@pytest.fixture(params=["latency", "table2"])
def page(request: pytest.FixtureRequest) -> Path:
    """Each kind of report."""
    return request.getfixturevalue(f"{request.param}_page")


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_loads_in_silence_and_fits(browser: Chromium, page: Path, width: int, scheme: str):
    browser.open(page, width, scheme=scheme)
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]
    assert browser.run("document.documentElement.clientWidth") == width
    assert browser.run(TOO_WIDE) == 0
    assert browser.run(OUTSIDE) == []
    assert browser.run(SMALLEST) >= 8
    text = page.read_text(encoding="utf-8")
    for tag in ("table", "figure", "svg", "h2", "h3"):
        assert browser.run(f"document.querySelectorAll('{tag}').length") == text.count(f"<{tag}")
    assert min(text.count("<table"), text.count("<figure"), text.count("<h2")) > 0
    heights = browser.run("[...document.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect().height)")
    assert min(heights) > 100


def test_a_page_that_is_wrong_is_noticed(browser: Chromium, latency_page: Path, tmp_path: Path):
    wrong = tmp_path / "wrong.html"
    text = latency_page.read_text(encoding="utf-8")
    addition = (
        '<script>console.log(1)</script><img src="https://example.invalid/a.png"><p style="min-width: 3000px">wide'
    )
    wrong.write_text(text.replace("</main>", f"{addition}</main>").replace('<text style="', '<text x="-900" style="'))
    browser.open(wrong, 360)
    found = " ".join(browser.complaints())
    assert "script" in found  # refused by the page's own policy, like the picture
    assert "example.invalid" in found
    assert browser.run(TOO_WIDE) > 2000
    assert len(browser.run(OUTSIDE)) > 10


def test_colours_follow_the_reader_and_paper_is_white(browser: Chromium, page: Path):
    def behind(scheme: str, media: str = "screen") -> int:
        browser.open(page, 1280, scheme=scheme, media=media)
        colour = browser.run("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))

    assert behind("light") == 3 * 255
    assert behind("dark") < 3 * 40
    assert behind("dark", "print") == 3 * 255
    curve = "getComputedStyle(document.querySelector('figure [style*=\"stroke: var(--with)\"]')).stroke"
    strokes = {}
    for scheme in ("light", "dark"):
        browser.open(page, 1280, scheme=scheme)
        strokes[scheme] = browser.run(curve)
    assert strokes["light"] != strokes["dark"]


def test_paper_shows_folded_tables(browser: Chromium, latency_page: Path):
    shown = "document.querySelector('details tbody').checkVisibility()"
    browser.open(latency_page, 1280)
    assert browser.run(shown) is False
    browser.open(latency_page, 1280, media="print")
    assert browser.run(shown) is True


def test_paper_cuts_no_table(browser: Chromium, page: Path):
    browser.open(page, 1280, media="print")
    assert browser.run("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"


def test_the_keyboard_reaches_the_results_and_every_table(browser: Chromium, page: Path):
    browser.open(page, 360)
    browser.press("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    assert browser.run("document.activeElement.getBoundingClientRect().left") >= 0
    browser.press("Enter")
    assert browser.run("document.activeElement.id") == "content"
    reached = set()
    for _ in range(60):
        browser.press("Tab")
        reached.add(browser.run("document.activeElement.getAttribute('aria-labelledby')"))
    shown = browser.run(
        "[...document.querySelectorAll('.scroll')].filter(box => box.checkVisibility())"
        ".map(box => box.getAttribute('aria-labelledby'))"
    )
    assert len(shown) > 10
    assert set(shown) <= reached


@pytest.mark.parametrize("name", PICTURES)
def test_screenshots_show_something(browser: Chromium, page: Path, name: str, tmp_path: Path):
    width, height, scheme = PICTURES[name]
    browser.open(page, width, height, scheme)
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        assert image.size == (width, height)
        assert (np.asarray(image.convert("L")).mean() < 80) == (scheme == "dark")
        assert len(set(np.asarray(image.convert("L")).ravel().tolist())) > 30


def test_hostile_names_stay_text(browser: Chromium, tmp_path: Path):
    hostile = "<img src=x onerror=alert(1)>"
    record = latency_record(latency_run(file=hostile, backend=hostile, layers=(hostile,)), command=hostile)
    (tmp_path / "hostile.html").write_text(html([record]), encoding="utf-8")
    browser.open(tmp_path / "hostile.html", 1280)
    assert browser.complaints() == []
    assert browser.run("document.querySelectorAll('img').length") == 0
