"""Trace: checked shapes, correctness and confidence against a plain float64 softmax."""

from __future__ import annotations

import numpy as np
import pytest

from dynamic_confidence.calib.trace import Trace
from dynamic_confidence.runtime.errors import DynamicConfidenceError


def parts(samples: int = 6, steps: int = 4, classes: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "logits": rng.normal(size=(samples, steps, classes)).cumsum(axis=1).astype(np.float32),
        "label": rng.integers(0, classes, samples),
        "last_step": np.full(samples, steps),
    }


def test_sizes_and_correct():
    trace = Trace(**parts())
    assert (trace.samples, trace.steps) == (6, 4)
    expected = [[int(np.argmax(z)) == y for z in rows] for rows, y in zip(trace.logits, trace.label, strict=True)]
    np.testing.assert_array_equal(trace.correct, expected)
    assert trace.correct.dtype == bool


def test_correct_takes_the_lowest_class_on_a_tie():
    trace = Trace(np.zeros((2, 1, 3), np.float32), np.array([0, 1]), np.array([1, 1]))
    np.testing.assert_array_equal(trace.correct, [[True], [False]])


def test_confidence_is_the_largest_softmax():
    trace = Trace(**parts())
    softmax = np.exp(trace.logits.astype(np.float64) / 2.5)
    softmax /= softmax.sum(axis=2, keepdims=True)
    confidence = trace.confidence(2.5)
    np.testing.assert_allclose(confidence, softmax.max(axis=2), rtol=1e-12)
    assert confidence.dtype == np.float64


@pytest.mark.parametrize("index", [np.array([4, 0]), np.arange(6) % 2 == 0])
def test_subset_keeps_each_sample_together(index: np.ndarray):
    trace = Trace(**parts() | {"last_step": np.array([1, 2, 3, 4, 1, 2])})
    part = trace.subset(index)
    np.testing.assert_array_equal(part.logits, trace.logits[index])
    np.testing.assert_array_equal(part.label, trace.label[index])
    np.testing.assert_array_equal(part.last_step, trace.last_step[index])


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scale_must_be_positive(scale: float):
    with pytest.raises(DynamicConfidenceError, match=r"scale is .*, expected a positive number; pass alpha"):
        Trace(**parts()).confidence(scale)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"logits": np.zeros((6, 4), np.float32)},
            r"logits have shape \(6, 4\) .* expected float32 \[sample, step, cl",
        ),
        ({"logits": np.zeros((6, 4, 3))}, r"type float64, expected float32 \[sample, step, class\]"),
        (
            {"logits": np.zeros((6, 0, 3), np.float32)},
            r"shape \(6, 0, 3\) .* none of them empty; stack the accumulated",
        ),
        ({"logits": np.full((6, 4, 3), np.nan, np.float32)}, r"logits hold NaN or infinity, .*; check the images"),
        ({"label": np.zeros(5, np.int64)}, r"labels have shape \(5,\) .* expected \(6,\) int64; give one class"),
        ({"label": np.zeros(6)}, r"labels .* type float64, expected \(6,\) int64"),
        ({"label": np.full(6, 3)}, r"labels lie in 3\.\.3, expected 0\.\.2; use the data set"),
        ({"label": np.full(6, -1)}, r"labels lie in -1\.\.-1, expected 0\.\.2"),
        (
            {"last_step": np.full((6, 1), 4)},
            r"last_step has shape \(6, 1\) .* expected \(6,\) int64; pass np\.full\(6, 4",
        ),
        ({"last_step": np.full(6, 4.0)}, r"last_step .* type float64, expected \(6,\) int64"),
        ({"last_step": np.full(6, 5)}, r"last_step lies in 5\.\.5, expected 1\.\.4; count steps from 1"),
        ({"last_step": np.full(6, 0)}, r"last_step lies in 0\.\.0, expected 1\.\.4"),
    ],
)
def test_bad_parts_are_refused(changed: dict[str, np.ndarray], message: str):
    with pytest.raises(DynamicConfidenceError, match=message):
        Trace(**parts() | changed)


def test_an_empty_subset_is_refused():
    with pytest.raises(DynamicConfidenceError, match="none of them empty"):
        Trace(**parts()).subset(np.array([], dtype=np.int64))
