"""The README: its two commands exist, nothing is left to fill in, and its figures are those of the records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORD = json.loads((ROOT / "benchmarks" / "results" / "resnet20_exactness.json").read_text(encoding="utf-8"))


def test_nothing_is_left_to_fill_in() -> None:
    assert "<!--" not in README


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_are_targets_of_the_makefile(target: str) -> None:
    assert f"    make {target} " in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def table_row(method: str, images: str, entry: dict[str, Any]) -> str:
    steps = str(entry["steps"])
    early = entry["dynamic_confidence"]
    numbers = (
        f"{100 * entry['accuracy_unsnapped_float64'][steps]:.1f}",
        f"{100 * entry['accuracy_exported'][steps]:.1f}",
        f"{entry['difference_at_T_points']:+.1f} ± {entry['difference_95_interval_points']:.1f}",
        f"{100 * early['accuracy_at_T']:.1f} → {100 * early['accuracy']:.1f}",
        f"{steps} → {early['mean_steps']:.2f}",
    )
    return f"| {method.upper()} | {images} | " + " | ".join(numbers) + " |"


@pytest.mark.parametrize("method", ["qcfs", "qffs"])
@pytest.mark.parametrize(("name", "images"), [("c500", "500 lossless"), ("c5000j", "5,000 JPEG")])
def test_figures_are_the_record_s(method: str, name: str, images: str) -> None:
    entry = RECORD["results"]["methods"][method][name]
    assert set(entry["engine_equals_simulation"].values()) == {True}
    assert table_row(method, images, entry) in README
