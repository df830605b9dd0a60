"""A matplotlib drawing as SVG that lies inside a page: text stays text, colours are the page's, nothing is fetched."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from ...runtime.errors import BackendMissing

PACKAGES = "pip install 'dynamic-confidence[report]'"
SIZE = 4.4, 3.2
"""Inches, at 72 units per inch: what a phone shows about as large as it is drawn."""
ROLES = ("ink", "muted", "grid", "with", "without", "bound")
"""The page's colours, CSS custom properties of report.html.j2; matplotlib draws with a stand-in for each."""
COLOUR = {role: f"#0000{number:02x}" for number, role in enumerate(ROLES, start=1)}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dynamic-confidence",  # the same record gives the same bytes
    "text.parse_math": False,  # names come from files: a $ in them is a dollar
    "font.size": 10,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "auto",
    "text.color": COLOUR["ink"],
    "axes.labelcolor": COLOUR["ink"],
    "xtick.color": COLOUR["ink"],
    "ytick.color": COLOUR["ink"],
    "axes.edgecolor": COLOUR["muted"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOUR["grid"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
}
_STAND_IN = re.compile("|".join(COLOUR.values()))
_ROLE_OF = {colour: role for role, colour in COLOUR.items()}
_URL = re.compile(r"url\(#([^)]+)\)")
_PIXELS = re.compile(r"[\d.]+px")


def inline_svg(
    key: str, title: str, description: str, draw: Callable[[Any], None], size: tuple[float, float] = SIZE
) -> str:
    """Return an `<svg>` element, named and described for those who do not see it.

    `draw` gets the axes and the colours of `COLOUR`; `key` begins every id, so that one page can hold many.
    Raises: BackendMissing without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendMissing(f"the report's pictures need matplotlib ({error}). Install it with {PACKAGES}.") from error
    content = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        figure.savefig(content, format="svg")
    root = ElementTree.fromstring(content.getvalue())
    _adapt(root, key)
    view_box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update(
        {"viewBox": view_box, "role": "img", "aria-labelledby": f"{key}-title", "aria-describedby": f"{key}-desc"}
    )
    for number, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{key}-{tag}"})
        element.text = text
        root.insert(number, element)
    return ElementTree.tostring(root, encoding="unicode")


def printable(text: str, longest: int = 28) -> str:
    """What XML can hold of a name out of a file, cut to a length that fits beside an axis."""
    shown = "".join(character if character.isprintable() else "�" for character in text)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def _adapt(root: ElementTree.Element, key: str) -> None:
    """Take out what a page has already (metadata, a style sheet, namespaces), and rewrite what is left."""
    for element in list(root):
        if _local(element.tag) == "metadata" or any(_local(child.tag) == "style" for child in element):
            root.remove(element)
    texts = [value for element in root.iter() for value in element.attrib.values()]
    used = {found for text in texts for found in _URL.findall(text)} | {t[1:] for t in texts if t.startswith("#")}
    for element in root.iter():
        element.tag = _local(element.tag)
        found = {_local(name): value for name, value in element.attrib.items()}
        if found.get("id") not in used:
            found.pop("id", None)
        element.attrib.clear()
        element.attrib.update({name: _attribute(name, value, key) for name, value in found.items()})


def _attribute(name: str, value: str, key: str) -> str:
    if name == "id":
        return f"{key}-{value}"
    if name == "href":
        return f"#{key}-{value[1:]}"
    if name == "style":
        return _style(value)
    return _URL.sub(rf"url(#{key}-\1)", value)


def _style(text: str) -> str:
    """CSS of one element: the page's font, in the size drawn, and the page's colours."""
    declarations = []
    for declaration in filter(str.strip, text.split(";")):
        name, value = (part.strip() for part in declaration.split(":", 1))
        if name == "font":  # before matplotlib 3.10: size and family in one
            name, value = "font-size", "".join(_PIXELS.findall(value)[:1])
        if name != "font-family":
            coloured = _STAND_IN.sub(lambda found: f"var(--{_ROLE_OF[found.group()]})", value)
            declarations.append(f"{name}: {coloured}")
    return "; ".join(declarations)


def _local(name: str) -> str:
    """A tag or an attribute without its namespace: inside a page it has none."""
    return name.rsplit("}", 1)[-1]
