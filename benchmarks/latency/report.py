"""A report of latency records: one self-contained page, or Markdown. Both show the same `Page`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ...runtime.errors import BackendMissing
from ...runtime.files import write_atomically
from ..markdown_table import markdown_table
from .record import LatencyRecord
from .report_page import page_of
from .report_parts import Page, Part, Picture, Table
from .svg import PACKAGES

TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_report(records: Sequence[LatencyRecord], path: Path) -> None:
    """Write one page that shows all of these records, whole or not at all.

    Raises: BackendMissing without jinja2 or matplotlib; DynamicConfidenceError where it cannot be written.
    """
    write_atomically(path, html(records).encode())


def html(records: Sequence[LatencyRecord]) -> str:
    """The page: no script, no network, light and dark; whatever comes from a record is escaped."""
    return html_of(page_of(records))


def html_of(page: Page) -> str:
    """Write a page as HTML. Raises: BackendMissing without jinja2 or matplotlib."""
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup, escape
    except ImportError as error:
        raise BackendMissing(f"the report's page needs jinja2 ({error}). Install it with {PACKAGES}.") from error

    def svg(picture: Picture, key: str) -> Markup:
        return Markup(picture.draw(key, picture.title, picture.description))

    def prose(text: str) -> Markup:
        units_kept = re.sub(r"(?<=\d) (?=ms\b|%)", "\N{NO-BREAK SPACE}", str(escape(text)))
        return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", units_kept))

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals["svg"] = svg
    environment.filters["prose"] = prose
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(page=page)


def markdown_of(page: Page) -> str:
    """Write a page as Markdown (GitHub's: it has tables), without pictures: all their numbers stand in tables."""
    blocks = [f"# {_plain(page.title)}", *map(_bold, page.headlines), *map(_warning, page.warnings)]
    for section in page.sections:
        blocks.append(f"{'#' * section.level} {_plain(section.title)}")
        blocks += [_block(part) for part in section.parts if not isinstance(part, Picture)]
    return "\n\n".join(blocks) + "\n"


def _block(part: Part) -> str:
    if isinstance(part, Table):
        rows = (map(_plain, row) for row in part.rows)
        return f"{_bold(part.caption)}\n\n{markdown_table(map(_plain, part.header), rows)}"
    if isinstance(part, Picture):
        raise TypeError("Markdown has no pictures")
    return _warning(part.text) if part.warning else _plain(part.text)


def _bold(text: str) -> str:
    return f"**{_plain(text)}**"


def _warning(text: str) -> str:
    return f"> **Warning:** {_plain(text)}"


def _plain(text: str) -> str:
    """Text in which nothing counts as Markdown or HTML, on one line: a name out of a record may hold anything."""
    escaped = "".join(f"\\{character}" if character in "\\`*_[]<>|~&" else character for character in text)
    return " ".join(escaped.split())
