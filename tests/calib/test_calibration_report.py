"""What is said of a calibration, beside its numbers."""

from __future__ import annotations

import numpy as np
import pytest

from dynamic_confidence.calib.calibration_report import fading
from dynamic_confidence.calib.policy import Goal, calibrate
from dynamic_confidence.calib.trace import Trace
from dynamic_confidence.runtime.manifest import Calibration


def trace_of(accuracy: list[float]) -> Trace:
    """1,000 samples of two classes, so many of them right at each step."""
    logits = np.zeros((1000, len(accuracy), 2), np.float32)
    label = np.arange(1000) % 2
    for step, share in enumerate(accuracy):
        right = np.arange(1000) < 1000 * share
        logits[np.arange(1000), step, np.where(right, label, 1 - label)] = 1 + step
    return Trace(logits, label, np.full(1000, len(accuracy)))


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [
        ([0.5, 0.9, 0.7], "More steps make it worse: 90.00 % after 2, 70.00 % after 3. Export it with -T 2."),
        ([0.5, 0.9, 0.895], None),
        ([0.5, 0.8, 0.9], None),
    ],
)
def test_that_more_steps_make_it_worse_is_said(accuracy: list[float], said: str | None):
    report = calibrate(trace_of(accuracy), Calibration(alpha=1.0), Goal("grid"))
    assert report.accuracy_at_step == accuracy
    assert fading(report) == said
