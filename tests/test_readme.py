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


def test_the_table_of_table_2_is_the_record_s() -> None:
    from dynamic_confidence.benchmarks.latency.report import markdown_of
    from dynamic_confidence.benchmarks.table2.page import page_of
    from dynamic_confidence.benchmarks.table2.record import read_measured
    from dynamic_confidence.benchmarks.table2.summary import summary

    record = read_measured(ROOT / "benchmarks" / "results" / "table2.json")
    assert summary(record) in README
    assert markdown_of(page_of([record])) == (ROOT / "docs" / "table2.md").read_text(encoding="utf-8")


def test_latencies_are_the_record_s() -> None:
    from dynamic_confidence.benchmarks.latency.record import read_record
    from dynamic_confidence.benchmarks.latency.statistics import summary

    record = read_record(ROOT / "benchmarks" / "results" / "latency_resnet20.json")
    assert record.complete
    for run in record.runs:
        found = summary(run)
        numbers = (
            f"{run.network.method.upper()}",
            f"{found.steps} → {found.mean_steps:.2f}",
            f"{100 * found.accuracy_without_exit:.1f} → {100 * found.accuracy:.1f}",
            f"{found.without_exit.mean:.2f} → {found.with_exit.mean:.2f}",
            f"{100 * found.saving_steps:.1f}",
            f"{100 * found.saving_ms:.1f}",
        )
        assert f"| {' | '.join(numbers)} |" in README
