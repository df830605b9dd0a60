"""The README: its two commands exist, nothing is left to fill in, and its figures are those of the records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PLANS = json.loads((ROOT / "benchmarks" / "results" / "rtx_plans.json").read_text(encoding="utf-8"))["results"]["cells"]
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


@pytest.mark.parametrize(
    ("network", "title"),
    [
        ("resnet20", "ResNet-20, CIFAR-10"),
        ("resnet18", "ResNet-18, CIFAR-10"),
        ("vgg16", "VGG-16, CIFAR-10"),
        ("resnet50", "ResNet-50, ImageNet"),
    ],
)
def test_sizes_of_plans_are_the_record_s(network: str, title: str) -> None:
    cells = [PLANS[f"{network}/qcfs/{precision}/K1"] for precision in ("fp32", "fp16", "int8")]
    sizes = [f"{cell['plan_bytes'] / 1e6:.1f}" for cell in cells]
    seconds = sorted(second for cell in cells for second in cell["build_seconds"])
    row = f"| {title} | {' | '.join(sizes)} | {seconds[0]:.1f} – {seconds[-1]:.1f} |"
    assert row in README, row
    assert f"All {len(PLANS)} cells" in README


@pytest.mark.parametrize("method", ["qcfs", "qffs"])
@pytest.mark.parametrize(("name", "images"), [("c500", "500 lossless"), ("c5000j", "5,000 JPEG")])
def test_figures_are_the_record_s(method: str, name: str, images: str) -> None:
    entry = RECORD["results"]["methods"][method][name]
    assert set(entry["engine_equals_simulation"].values()) == {True}
    assert table_row(method, images, entry) in README
