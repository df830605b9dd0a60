"""The study of exit metrics runs on a trace and reports every metric and rule."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from dynamic_confidence.benchmarks.exit_metrics import main
from dynamic_confidence.benchmarks.risk_control import synthetic_population
from dynamic_confidence.calib import trace_folder, trace_header
from dynamic_confidence.runtime.manifest import Method


def test_every_metric_and_rule_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    header = SimpleNamespace(method=Method("qcfs", 3, None), steps=8)
    monkeypatch.setattr(trace_header, "read_header", lambda folder: header)
    monkeypatch.setattr(trace_folder, "load_trace", lambda folder: synthetic_population(600))
    record = tmp_path / "r.json"
    result = CliRunner().invoke(main, [str(tmp_path), "--images", "200", "--splits", "2", "-o", str(record)])
    assert result.exit_code == 0, result.output
    cases = json.loads(record.read_text())["results"]["cases"]
    assert len(cases) == 5 * 2 + 4 * 3
    assert all(len(found["mean_steps"]) == 2 for found in cases.values())
    # Under "safe" the limit is kept on the calibration data, so nearly on the rest.
    assert all(steps < 3.5 for steps in cases["max-softmax, safe, 3 mean steps"]["mean_steps"])
