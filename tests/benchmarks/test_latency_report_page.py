"""The page of a report: complete, self-contained, escaped, for keyboard and ear too, in its own colours."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from html_outline import Node, outline
from latency_records import GPU, MACHINE, latency_record, latency_run

from dynamic_confidence.benchmarks.latency import report
from dynamic_confidence.benchmarks.latency.record import LatencyRecord
from dynamic_confidence.benchmarks.latency.report import html, markdown_of, write_report
from dynamic_confidence.benchmarks.latency.report_page import page_of
from dynamic_confidence.benchmarks.latency.report_parts import Picture, Table
from dynamic_confidence.benchmarks.latency.svg import COLOUR, ROLES, inline_svg, printable

ROOT = Path(__file__).resolve().parent.parent.parent
HOSTILE = '<script>alert("1")</script>&$x_1|`*'


def two_records() -> list[LatencyRecord]:
    slow = latency_run(method="qffs", backend="events", steps=14, layers=[f"layer{i}" for i in range(20)], seed=1)
    return [latency_record(latency_run(), slow), latency_record(machine=msgspec.structs.replace(MACHINE, gpu=GPU))]


@pytest.fixture(scope="module")
def page() -> Node:
    return outline(html(two_records()))


def test_every_table_and_picture_is_on_the_page(page: Node):
    parts = [part for section in page_of(two_records()).sections for part in section.parts]
    captions = [part.caption for part in parts if isinstance(part, Table)]
    pictures = [part.title for part in parts if isinstance(part, Picture)]
    assert [node.text for node in page.all("caption")] == captions
    assert [node.one("figcaption").one("strong").text for node in page.all("figure")] == pictures
    assert len(set(captions)) >= 7
    assert set(pictures) >= {
        "Accuracy against latency in time steps",
        "Accuracy against latency in milliseconds",
        "Where the images stop",
        "Latency by the step of the exit",
        "Spikes per layer",
    }
    assert page_of(two_records()).headlines[0] in page.one("header").text
    rows = sum(len(part.rows) for part in parts if isinstance(part, Table))
    assert sum(len(body.all("tr")) for body in page.all("tbody")) == rows


def test_the_page_needs_nothing_from_outside(page: Node):
    assert page.all("script", "img", "iframe", "object", "embed") == []
    for node in page.all():
        for name in ("src", "href", "xlink:href", "data", "srcset", "action"):
            assert re.match(r"#|data:,$", node.attributes.get(name) or "#"), (node.tag, node.attributes)
    style = page.one("head").one("style").text
    assert "url(" not in style
    assert "@import" not in style
    policy = next(node for node in page.all("meta") if node.attributes.get("http-equiv") == "Content-Security-Policy")
    assert (policy.attributes["content"] or "").startswith("default-src 'none'")


def test_ids_are_unique_and_every_reference_leads_somewhere(page: Node):
    ids = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
    assert len(ids) == len(set(ids)) > 20
    for node in page.all():
        for name in ("href", "aria-labelledby", "aria-describedby", "clip-path"):
            value = node.attributes.get(name) or "data:,"
            target = value.removeprefix("url(").removesuffix(")").removeprefix("#")
            assert value == "data:," or target in ids, (node.tag, name, value)


def test_tables_are_readable_by_keyboard_and_by_ear(page: Node):
    assert page.one("html").attributes["lang"] == "en-GB"
    assert page.all("a")[0].attributes == {"class": "skip", "href": "#content"}
    assert page.one("main").attributes["id"] == "content"
    scrolled = [node for node in page.all("div") if node.attributes.get("class") == "scroll"]
    assert len(scrolled) == len(page.all("table")) > 10
    for box in scrolled:
        assert box.attributes["tabindex"] == "0"
        assert box.attributes["role"] == "region"
        table = box.one("table")
        assert {cell.attributes.get("scope") for cell in table.one("thead").all("th")} == {"col"}
        assert all(cell.text for cell in table.all("th"))
        for row in table.one("tbody").all("tr"):
            assert [cell.attributes.get("scope") for cell in row.all("th")] == ["row"]
            assert len(row.children) == len(table.one("thead").one("tr").children)


def test_headings_leave_no_level_out(page: Node):
    levels = [int(node.tag[1]) for node in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert set(levels) == {1, 2, 3}
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_long_tables_are_folded(page: Node):
    folded = {node.one("caption").text: len(node.one("tbody").all("tr")) for node in page.all("details")}
    assert folded == {"Step by step": 14, "Spikes per neuron and image, layer by layer": 21}


def test_pictures_have_names_descriptions_and_text(page: Node):
    drawn = page.all("svg")
    assert len(drawn) >= 10
    for svg in drawn:
        assert svg.attributes["role"] == "img"
        assert svg.attributes.keys() == {"viewbox", "role", "aria-labelledby", "aria-describedby"}
        title, description = svg.children[:2]
        assert (title.tag, title.attributes["id"]) == ("title", svg.attributes["aria-labelledby"])
        assert (description.tag, description.attributes["id"]) == ("desc", svg.attributes["aria-describedby"])
        assert len(title.text) > 10
        assert len(description.text) > 40
        assert len(svg.all("text")) > 4  # labels are text, not outlines
        assert svg.all("style", "metadata") == []


def test_pictures_use_the_page_s_colours_and_no_other(page: Node):
    used = set()
    for svg in page.all("svg"):
        for node in svg.all():
            style = node.attributes.get("style") or ""
            assert "#" not in style, style
            assert "font-family" not in style
            used |= set(re.findall(r"var\(--(\w+)\)", style))
    assert used == set(ROLES)
    for scheme in schemes().values():
        assert used < scheme.keys()


def schemes() -> dict[str, dict[str, str]]:
    """Name -> CSS custom property -> colour."""
    blocks = re.findall(r":root \{(.*?)\}", report.TEMPLATE.read_text(encoding="utf-8"), re.DOTALL)
    light, dark = (dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block)) for block in blocks)
    assert light.keys() == dark.keys()
    return {"light": light, "dark": dark}


def contrast(one: str, other: str) -> float:
    """WCAG 2: (L1 + 0.05) / (L2 + 0.05) of the relative luminances."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_that_of_wcag_aa(scheme: str):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    colours = schemes()[scheme]
    for text, behind in (("ink", "paper"), ("muted", "paper"), ("link", "paper"), ("ink", "warning")):
        assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
    for shape in ("with", "without", "bound", "muted", "edge"):
        assert contrast(colours[shape], colours["paper"]) >= 3, shape


def test_what_comes_from_a_record_is_escaped_everywhere():
    run = latency_run(
        file=f"nets/{HOSTILE}", architecture=HOSTILE, backend=HOSTILE, layers=("layer\x00\n", HOSTILE), complete=False
    )
    run = msgspec.structs.replace(run, failure=HOSTILE)
    machine = msgspec.structs.replace(MACHINE, processor=HOSTILE, libraries={HOSTILE: HOSTILE})
    record = latency_record(run, machine=machine, command=HOSTILE, complete=False, stopped=HOSTILE)
    page = outline(html([record, latency_record()]))
    assert page.all("script") == []
    for tag in ("h3", "p", "td", "th", "desc", "li"):
        assert any(HOSTILE in node.text for node in page.all(tag)), tag
    assert any(node.text == printable(HOSTILE) for node in page.all("text"))
    text = markdown_of(page_of([record]))
    assert "\\<script\\>" in text
    assert not re.search(r"(?<!\\)<", text)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1, table


def test_names_in_pictures_are_printable_and_short():
    assert printable("layer\x00\n") == "layer��"
    assert printable("l" * 40) == "l" * 27 + "…"
    assert printable("layer1") == "layer1"


def test_a_picture_gets_a_key_for_its_ids_and_keeps_its_text():
    def draw(axes: Any) -> None:
        axes.plot([1, 2], [3, 4], "o-", color=COLOUR["with"], label="$a_1$ & <b>")
        axes.legend()

    one, other = (outline(inline_svg(key, "title", "about", draw)).one("svg") for key in ("a", "b"))
    assert "$a_1$ & <b>" in {node.text for node in one.all("text")}
    ids = [{node.attributes["id"] for node in svg.all() if "id" in node.attributes} for svg in (one, other)]
    assert len(ids[0]) >= 4  # title, desc, a clip and a marker
    assert not ids[0] & ids[1]
    assert "var(--with)" in inline_svg("a", "title", "about", draw)


def test_the_same_record_gives_the_same_page(tmp_path: Path):
    record = latency_record()
    write_report([record], tmp_path / "one.html")
    write_report([record], tmp_path / "other.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "other.html").read_bytes()
    assert (tmp_path / "one.html").read_bytes().startswith(b"<!doctype html>\n<html lang=")


def test_markdown_shows_the_same_tables():
    record = latency_record()
    text = markdown_of(page_of([record]))
    page = page_of([record])
    assert text.startswith(f"# {page.title}\n\n**ResNet-20 (QCFS, int8, openvino) answers ")
    assert "| time steps, on average | 6 | " in text
    shown = [part for section in page.sections for part in section.parts if isinstance(part, Table)]
    assert len(re.findall(r"^\| --- \|", text, re.MULTILINE)) == len(shown) > 5
    assert "<svg" not in text


def test_the_template_is_packaged():
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    templates = [*(ROOT / "benchmarks").rglob("*.j2")]
    assert report.TEMPLATE in templates
    for template in templates:
        package = ".".join(("dynamic_confidence", *template.parent.relative_to(ROOT).parts))
        assert template.name in data[package]


def test_commands_in_sentences_are_set_as_code():
    page = outline(html([latency_record(latency_run(layers=()))]))
    assert [node.text for node in page.all("code")] == ["dc-export --count-spikes"]
