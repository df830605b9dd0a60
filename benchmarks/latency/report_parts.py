"""What a report is made of, whatever it is written as: sections of sentences, tables and pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Text:
    text: str
    warning: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Table:
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The first cell of a row says what the row is."""
    folded: bool = False
    """Long: shown when asked for, where that is possible."""
    words: bool = False
    """Its cells are words, not numbers: they stand to the left, and may wrap."""
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        if any(len(row) != len(self.header) for row in self.rows):
            raise ValueError(f"table '{self.caption}': rows unlike its {len(self.header)} headings")


@dataclass(frozen=True)
class Picture:
    """Its numbers stand in a table as well: not everyone sees pictures, and Markdown has none."""

    title: str
    description: str
    draw: Callable[[str, str, str], str]
    """(key, title, description) -> an `<svg>` element; the key begins its ids."""
    kind: ClassVar[str] = "picture"


Part = Text | Table | Picture


@dataclass(frozen=True)
class Section:
    title: str
    parts: tuple[Part, ...]
    level: int = 2
    """Of its heading; 1 is the page's."""


@dataclass(frozen=True)
class Page:
    title: str
    headlines: tuple[str, ...]
    """What was found, a sentence for each run."""
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]
    footer: str = "Every number on this page is computed from the records."
