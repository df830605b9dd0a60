"""The simulation of calibration sets: true drops are those of the population, rules choose what they are defined to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dynamic_confidence.benchmarks import risk_control
from dynamic_confidence.benchmarks.risk_control import (
    RULES,
    Setting,
    chosen_threshold,
    main,
    study,
    synthetic_population,
    true_points,
)
from dynamic_confidence.calib.exits import replay
from dynamic_confidence.calib.risk_control import CANDIDATES
from dynamic_confidence.calib.thresholds import grid_points
from dynamic_confidence.runtime.manifest import Calibration

CALIBRATION = Calibration(alpha=4.0)
SETTING = Setting(max_drop=0.02, delta=0.2, images=300, draws=30)


def test_true_points_are_a_replay_on_the_population():
    population = synthetic_population(2000)
    thresholds = np.array([1.0, 0.9, 0.5, 0.123456, 0.0])
    drops, steps = true_points(population, CALIBRATION, thresholds)
    for threshold, drop, mean in zip(thresholds.tolist(), drops, steps, strict=True):
        exits = replay(population, Calibration(alpha=4.0, threshold=threshold))
        right = population.correct[np.arange(2000), exits - 1]
        assert drop == pytest.approx(100 * (population.correct[:, -1].mean() - right.mean()), abs=1e-9)
        assert mean == exits.mean()


def test_rules_choose_by_their_definition():
    seen = synthetic_population(300, seed=5)
    points = {p.threshold: p for p in grid_points(seen, CALIBRATION.scale, (1.0, *CANDIDATES))}
    baseline = points[1.0].accuracy
    kept = [t for t, p in points.items() if baseline - p.accuracy <= 0.02]
    assert chosen_threshold("naive", seen, CALIBRATION, SETTING) == min(kept)
    risk = {t: (300 * (baseline - p.accuracy) + 1) / 301 for t, p in points.items()}
    expected = 1.0
    for candidate in CANDIDATES:
        if risk[candidate] > 0.02:
            break
        expected = candidate
    assert chosen_threshold("in expectation", seen, CALIBRATION, SETTING) == expected < 1.0
    assert chosen_threshold("certified", seen, CALIBRATION, SETTING) >= expected


def test_a_study_counts_what_it_draws():
    found = study(synthetic_population(5000), CALIBRATION, SETTING)
    assert set(found["rules"]) == set(RULES)
    for facts in found["rules"].values():
        assert sum(facts["times"]) == 30
        above = sum(n for drop, n in zip(facts["drop_points"], facts["times"], strict=True) if drop > 2.0)
        assert facts["violated"] == above / 30
    assert found["rules"]["certified"]["violated"] <= 0.2 < found["rules"]["exact"]["violated"]


def test_the_command_writes_record_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(risk_control, "synthetic_population", lambda samples: synthetic_population(2000))
    record, plot = tmp_path / "r.json", tmp_path / "r.png"
    arguments = ["--draws", "10", "--images", "300", "--max-drop", "2", "-o", str(record), "--plot", str(plot)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(record.read_text())["results"]["synthetic"]["draws"] == 10
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "certified" in result.output


def test_a_broken_promise_ends_with_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(risk_control, "synthetic_population", lambda samples: synthetic_population(2000))
    monkeypatch.setattr(risk_control, "chosen_threshold", lambda *_: 0.0)
    result = CliRunner().invoke(main, ["--draws", "3", "-o", str(tmp_path / "r.json")])
    assert result.exit_code == 1
    assert "synthetic: certified thresholds broke their promise in more than 10 % of draws." in result.output


def test_a_promise_that_cannot_be_made(tmp_path: Path):
    result = CliRunner().invoke(main, ["--max-drop", "0", "-o", str(tmp_path / "r.json")])
    assert result.exit_code == 2
    assert "a drop of 0 points: a certified threshold must be allowed to lose something" in result.output
