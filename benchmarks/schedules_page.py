"""What schedules gain, as a Markdown table: what docs/tuning.md shows of records of `benchmarks.schedules`."""

from __future__ import annotations

from typing import Any

from .markdown_table import markdown_table

HEADER = (
    "network",
    "exit rule",
    "engine",
    "mean steps",
    "best fixed K, ms",
    "schedule",
    "its ms",
    "expected",
    "times as fast",
)


def table(networks: list[dict[str, Any]]) -> str:
    """One row for each; the milliseconds are those of the images that no exits were taken from."""
    return markdown_table(HEADER, map(_row, networks))


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    form = f" ({found['form']})" * (found["precision"] == "int8")
    name = f"{found['architecture']}, {found['method'].upper()}, {found['precision']}{form}"
    best, fixed = min(found["fixed"].items(), key=lambda item: item[1]["measured_ms"])
    steps = f"{found['mean_steps']['timed on']:.2f} of {found['steps']}"
    rule = found["rule"] or f"threshold {found['threshold']:.2f}"
    about = (name, rule, found["engine"].split(",")[0], steps, f"{fixed['measured_ms']:.2f} ({best})")
    tuned = found["schedule"]
    if tuned is None:
        return (*about, "none", "–", "–", "1.00")
    return (
        *about,
        ", ".join(map(str, tuned["calls"])) + ", …",
        f"{tuned['measured_ms']:.2f}",
        f"{tuned['expected_ms']:.2f}",
        f"{tuned['best_fixed_over_this']:.2f}",
    )
