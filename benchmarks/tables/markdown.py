"""Tables 1, 3 and S1 from the record, as Markdown."""

from __future__ import annotations

from typing import Any

from ..markdown_table import markdown_table
from .pictures import MAIN_RULE
from .published import CIFAR_SAVING, S1, SETTINGS, Published, counterpart

FADING = 0.01
"""Accuracy, a fraction, that may be lost beyond T before the page says so."""


def page(settings: list[dict[str, Any]]) -> str:
    """All tables with what they mean; the published numbers stand in columns and rows of their own."""
    return "\n\n".join(
        (
            "# Tables 1, 3 and S1",
            "Accuracies in %, measured on test images that nothing was chosen on. T, temperature and thresholds were "
            "chosen on the calibration images. Columns named *paper* are published figures of ResNet-18 on CIFAR-10, "
            "another network on other images: compare what is saved, not the accuracies. “–”: not known to us, or that "
            "no step reaches the accuracy asked for.",
            "## Table 1: accuracy and time steps\n\n"
            "T is the first step that comes within 0.1 points of the best accuracy on the calibration images.",
            _accuracy_table(settings, "table_1", SETTINGS),
            _verdicts(settings),
            "## Table S1: as few steps as the quantised network's accuracy takes\n\n"
            "T is the first step that reaches the accuracy of the quantised network on the calibration images. (Our "
            "reading of the paper's supplement, whose rows have fewer steps than its Table 1.)",
            _accuracy_table(settings, "table_s1", S1),
            "## Table 3: spikes per neuron and inference\n\nNet spikes: of QFFS, positive less negative ones.",
            _spike_table(settings),
            "## What each threshold rule gives",
            _rule_table(settings),
            "## The published settings",
            _published_table(),
        )
    )


def _accuracy_table(settings: list[dict[str, Any]], which: str, published: tuple[Published, ...]) -> str:
    header = ("network", "method", "quantised", "T", "accuracy at T", "with early exit", "steps", "saved")
    rows = []
    for setting in settings:
        row, paper = setting[which], counterpart(setting["method"], published)
        ours = _ours(row) if row else ("–",) * 5
        beside = _number(paper.steps, 0), _number(paper.mean_steps), _saved(paper.saving)
        rows.append((setting["network"], setting["method"], _percent(setting["ann_accuracy"]), *ours, *beside))
    return markdown_table((*header, "paper: T", "paper: steps", "paper: saved"), rows)


def _ours(row: dict[str, Any]) -> tuple[str, ...]:
    found = row["rules"][MAIN_RULE]["evaluation"]
    accuracies = _percent(found["accuracy_at_step"][-1]), _percent(found["accuracy"])
    return str(row["steps"]), *accuracies, _number(found["mean_steps"]), _saved(100 * found["saved"])


def _verdicts(settings: list[dict[str, Any]]) -> str:
    """Whether early exit loses nothing and saves what the paper says, in a sentence per setting."""
    lines = []
    for setting in settings:
        row = setting["table_1"]
        rule = row["rules"][MAIN_RULE]
        drop, around, saved = 100 * rule["drop"], 100 * rule["drop_95"], 100 * rule["evaluation"]["saved"]
        low, high = CIFAR_SAVING
        against = "inside" if low <= saved <= high else "above" if saved > high else "below"
        lost = f"loses {drop:.2f}" if drop >= 0 else f"gains {-drop:.2f}"
        line = (
            f"- {setting['network']}: early exit {lost} ± {around:.2f} points on the test images (95 %, paired); "
            f"{saved:.1f} % of the steps are saved, {against} the paper's range on CIFAR-10 ({low:g} to {high:g} %)."
        )
        lines.append(line + _why_below(row) * (against == "below") + _fading(setting))
    return "\n".join(lines)


def _why_below(row: dict[str, Any]) -> str:
    """Where the difference lies, measured: in when answers stand, or in when the confidence shows that they do."""
    steps, standing, forced = row["steps"], row["answers_stand_from"], row["saving_as_paper"]
    saved, lost = 100 * forced["evaluation"]["saved"], 100 * forced["drop"]
    return (
        f" Answers stand from step {standing:.2f} of {steps} on average, so an exit that knew when would save "
        f"{100 * (1 - standing / steps):.1f} %; the confidence shows it later: a threshold that saves {saved:.1f} % "
        f"loses {lost:.2f} ± {100 * forced['drop_95']:.2f} points."
    )


def _fading(setting: dict[str, Any]) -> str:
    """What happens beyond T, where that is bad: a QCFS network turns into the one without rounding."""
    accuracy, steps = setting["accuracy_at_step"], setting["table_1"]["steps"]
    if accuracy[steps - 1] - accuracy[-1] <= FADING:
        return ""
    return (
        f" Beyond T it falls, to {_percent(accuracy[-1])} % after {len(accuracy)} steps: export it with `-T {steps}`."
    )


def _spike_table(settings: list[dict[str, Any]]) -> str:
    header = ("network", "method", "neurons", "at T", "with early exit", "saved", "of either sign, at T")
    rows = []
    for setting in settings:
        found, paper = setting["table_1"]["rules"][MAIN_RULE]["evaluation"], counterpart(setting["method"])
        net, gross = found["net_spikes"], found["gross_spikes"]
        rows.append(
            (
                setting["network"],
                setting["method"],
                f"{sum(found['neurons']):,}",
                _number(net["at_step"][-1], 3),
                _number(net["at_exit"], 3),
                _saved(100 * (1 - net["at_exit"] / net["at_step"][-1]) if net["at_step"][-1] else None),
                _number(gross["at_step"][-1], 3),
                _number(paper.spikes),
                _number(paper.exit_spikes),
            )
        )
    return markdown_table((*header, "paper: at T", "paper: with early exit"), rows)


def _rule_table(settings: list[dict[str, Any]]) -> str:
    rows = []
    for setting in settings:
        for rule, found in setting["table_1"]["rules"].items():
            evaluation = found["evaluation"]
            rows.append(
                (
                    setting["network"],
                    rule,
                    f"{evaluation['calibration']['threshold']:.3f}",
                    f"{evaluation['mean_steps']:.2f} of {evaluation['steps']}",
                    _percent(evaluation["accuracy"]),
                    f"{0.0 - 100 * found['drop']:+.2f} ± {100 * found['drop_95']:.2f}",
                )
            )
    return markdown_table(("network", "rule", "th_c", "steps", "accuracy", "against T, points"), rows)


def _published_table() -> str:
    header = ("table", "data", "network", "method", "ANN", "T", "accuracy", "early exit", "steps", "saved")
    rows = [
        (
            table,
            row.data,
            row.network,
            row.method,
            _number(row.ann),
            _number(row.steps, 0),
            _number(row.accuracy),
            _number(row.exit_accuracy),
            _number(row.mean_steps),
            _saved(row.saving),
            _number(row.spikes),
            _number(row.exit_spikes),
            row.note,
        )
        for table, published in (("1, 3", SETTINGS), ("S1", S1))
        for row in published
    ]
    return markdown_table((*header, "spikes", "with early exit", "note"), rows)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _saved(percent: float | None) -> str:
    return "–" if percent is None else f"{percent:.1f} %"
