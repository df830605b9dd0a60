"""How a report says things: numbers with their digits, names of networks, the sentence that says what was found."""

from __future__ import annotations

import re
from pathlib import PurePath

from .record import Run
from .statistics import Summary

SAME = 0.005
"""Less than half a per cent is neither sooner nor later."""
NOTHING = "–"
FAMILIES = {"resnet": "ResNet", "vgg": "VGG"}


def number(value: float) -> str:
    """Three digits or more: 0.123, 4.56, 78.9, 1,234."""
    size = abs(value)
    decimals = 3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0
    return f"{value:,.{decimals}f}"


def percent(share: float, decimals: int = 1) -> str:
    """A fraction in per cent, without the sign."""
    return f"{100 * share:.{decimals}f}"


def points(difference: float) -> str:
    """A difference of two fractions; no minus before a zero."""
    return f"{round(100 * difference, 2) + 0.0:+.2f} points"


def network_name(architecture: str) -> str:
    """`resnet20` as people write it; any other name as it is."""
    known = re.fullmatch(r"([a-z]+)(\d+)", architecture)
    return f"{FAMILIES[known[1]]}-{known[2]}" if known and known[1] in FAMILIES else architecture


def run_name(run: Run) -> str:
    """What ran, on what: short enough for a heading."""
    network = run.network
    form = "" if network.form == "conv" else f" {network.form}"
    return f"{network_name(network.architecture)} ({network.method.upper()}, {network.precision}{form}, {run.backend})"


def file_name(run: Run) -> str:
    return PurePath(run.file).name


def headline(run: Run, found: Summary) -> str:
    """Say in one sentence what early exit is worth, also when it is worth nothing."""
    saved = found.saving_ms
    if abs(saved) < SAME:
        what = "as fast with Dynamic Confidence as without"
    else:
        what = f"{percent(abs(saved), 0)} % {'sooner' if saved > 0 else 'later'} with Dynamic Confidence"
    right, before = percent(found.accuracy), percent(found.accuracy_without_exit)
    return (
        f"{run_name(run)} answers {what}: {number(found.with_exit.mean)} ms on average instead of "
        f"{number(found.without_exit.mean)} ms, {right} % right{f' instead of {before} %' * (right != before)}."
    )
