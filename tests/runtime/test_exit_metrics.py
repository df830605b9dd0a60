"""Exit metrics against plain definitions, to the bit in any batch, and the same on the engine as in a replay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dynamic_confidence.calib import dc_calibrate
from dynamic_confidence.calib.exits import replay
from dynamic_confidence.calib.trace import Trace
from dynamic_confidence.runtime.engine import open_engine
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.exit_metrics import METRICS, score
from dynamic_confidence.runtime.exit_policy import policy_from_manifest
from dynamic_confidence.runtime.manifest import Calibration, Metric
from dynamic_confidence.runtime.run import records
from dynamic_confidence.runtime.stepping import infer, run_to_the_end

ALL: tuple[Metric, ...] = get_args(Metric)
STATELESS = tuple(METRICS)
OTHERS = tuple(name for name in STATELESS if name != "max-softmax")


def definition(metric: str, logits: list[float], scale: float) -> float:
    """One input's score, as it stands in the paper or the decision record, in plain Python."""
    z = sorted((value / scale for value in logits), reverse=True)
    weights = [math.exp(value - z[0]) for value in z]
    p = [weight / sum(weights) for weight in weights]
    return {
        "max-softmax": p[0],
        "softmax-margin": p[0] - p[1],
        "logit-margin": 1 - 1 / (1 + z[0] - z[1]),
        "entropy": 1 + sum(x * math.log(x) for x in p if x > 0) / math.log(len(p)),
    }[metric]


logits_of_a_step = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(2, 12)),
    elements=st.one_of(
        st.sampled_from([0.0, 1.0, -3.0]), st.floats(-200, 200, width=32), st.floats(-(2.0**127), 2.0**127, width=32)
    ),
)


def test_every_metric_is_known_everywhere():
    assert len(ALL) == 5
    assert {*METRICS, "patience"} == set(ALL)
    assert dc_calibrate.METRICS == ALL


@settings(max_examples=200, deadline=None)
@given(arrays.arrays(np.float32, (3, 5), elements=st.floats(-50, 50, width=32)), st.floats(0.1, 50))
@pytest.mark.parametrize("metric", STATELESS)
def test_scores_are_their_definitions(metric: Metric, logits: np.ndarray, scale: float):
    found, run = score(metric, logits, scale, None)
    assert (found.dtype, found.shape, run) == (np.float64, (3,), None)
    expected = [definition(metric, row, scale) for row in logits.tolist()]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(logits_of_a_step, st.sampled_from([2.0**-126, 0.3, 1.0, 16.0, 2.0**126]))
@pytest.mark.parametrize("metric", STATELESS)
def test_scores_lie_in_0_to_1_whatever_the_logits(metric: Metric, logits: np.ndarray, scale: float):
    found, _ = score(metric, logits, scale, None)
    assert ((found >= 0) & (found <= 1)).all()


@settings(max_examples=100, deadline=None)
@given(logits_of_a_step)
@pytest.mark.parametrize("metric", STATELESS)
def test_a_score_has_the_same_bits_in_every_batch_and_every_layout(metric: Metric, logits: np.ndarray):
    together, _ = score(metric, logits, 7.3, None)
    alone = np.concatenate([score(metric, row[None], 7.3, None)[0] for row in logits])
    trace = np.zeros((len(logits), 3, logits.shape[1]), np.float32)
    trace[:, 1] = logits
    np.testing.assert_array_equal(alone, together)
    np.testing.assert_array_equal(score(metric, trace[:, 1], 7.3, None)[0], together)


@pytest.mark.parametrize("classes", [2, 3, 7, 10, 49, 100, 1000])
@pytest.mark.parametrize("metric", OTHERS)
def test_equal_logits_score_nothing(metric: Metric, classes: int):
    assert score(metric, np.full((2, classes), 1.7, np.float32), 3.0, None)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("metric", OTHERS)
def test_a_larger_margin_scores_more_and_saturates_at_one(metric: Metric):
    logits = np.zeros((6, 10), np.float32)
    logits[:, 3] = [0.1, 1, 5, 30, 1e4, 1e30]
    found = score(metric, logits, 1.0, None)[0]
    assert (np.diff(found[:4]) > 0).all()
    assert found[-1] == 1.0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=1, max_size=12))
def test_patience_counts_equal_answers_in_a_row(answers: list[list[int]]):
    run, seen = None, []
    for row in answers:
        logits = np.eye(3, dtype=np.float32)[row]
        found, run = score("patience", logits, 1.0, run)
        seen.append(row)
        for column in range(4):
            length = 1
            while length < len(seen) and seen[-length - 1][column] == row[column]:
                length += 1
            assert found[column] == (length - 1) / length


@pytest.mark.parametrize("metric", OTHERS)
def test_one_class_has_nothing_to_compare(metric: Metric):
    message = rf"metric {metric} compares classes, but this network has 1: expected 2 or more.*--metric max-softmax"
    with pytest.raises(DynamicConfidenceError, match=message):
        score(metric, np.zeros((2, 1), np.float32), 1.0, None)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("method", ["qcfs", "qffs"])
@pytest.mark.parametrize("metric", ALL)
def test_the_engine_exits_where_the_trace_says(
    exported: Callable[..., Path], pixels: np.ndarray, metric: Metric, method: str, k: int
):
    """Also in other batches than the trace was made in, and with a first step that may exit."""
    with open_engine(exported(method=method, steps_per_call=k), batch=64) as engine:
        manifest = engine.manifest
        logits, last_step, *_ = run_to_the_end(engine, pixels, manifest.calibration.scale)
    trace = Trace(logits, logits[:, -1].argmax(axis=1), last_step)
    scores = trace.scores(manifest.calibration.scale, metric)
    exits_seen: set[int] = set()
    for quantile, min_step, batch in ((0.2, 1, 64), (0.6, 1, 7), (0.9, 1, 64), (0.4, 3, 64)):
        seen = np.unique(scores)
        place = int(quantile * (len(seen) - 2))
        # Between two scores for the graph's own confidence, which is rounded to float32; on one for what we compute.
        threshold = float(seen[place] if metric != "max-softmax" else seen[place : place + 2].mean())
        calibration = Calibration(
            manifest.calibration.alpha, threshold=threshold, metric=metric, min_step=min_step, data="here"
        )
        expected = replay(trace, calibration)
        with open_engine(exported(method=method, steps_per_call=k), batch=batch) as engine:
            policy = policy_from_manifest(msgspec.structs.replace(manifest, calibration=calibration))
            parts = [infer(engine, pixels[at : at + batch], policy) for at in range(0, 64, batch)]
        steps = np.concatenate([part.steps for part in parts])
        np.testing.assert_array_equal(steps, expected)
        found = np.concatenate([part.score for part in parts])
        at_exit = scores[np.arange(64), steps - 1]
        if metric == "max-softmax":
            np.testing.assert_allclose(found, at_exit, rtol=1e-5)
        else:
            np.testing.assert_array_equal(found, at_exit)
        confident = np.array([reason == "confident" for part in parts for reason in part.reason])
        np.testing.assert_array_equal(confident, (at_exit > threshold) & (steps >= min_step))
        exits_seen |= set(steps.tolist())
    assert len(exits_seen) > 3


@pytest.mark.parametrize("metric", ["max-softmax", "patience"])
def test_a_record_has_the_score_of_another_metric(
    exported: Callable[..., Path], pixels: np.ndarray, tmp_path: Path, metric: Metric
):
    np.save(tmp_path / "images.npy", pixels[:3])
    with open_engine(exported(), batch=2) as engine:
        policy = replace(policy_from_manifest(engine.manifest, threshold=0.6), metric=metric)
        found = list(records(engine, [tmp_path / "images.npy"], policy))
    assert len(found) == 3
    for record in found:
        assert ("score" in record) == (metric == "patience")
        if metric == "patience" and record["exit"] == "confident":
            assert record["score"] == 2 / 3  # three equal answers, the first score above 0.6


def test_the_confidence_stays_that_of_the_graph(exported: Callable[..., Path], pixels: np.ndarray):
    with open_engine(exported(), batch=64) as engine:
        manifest = engine.manifest
        calibration = msgspec.structs.replace(manifest.calibration, metric="entropy", threshold=0.1)
        answers = infer(
            engine, pixels, policy_from_manifest(msgspec.structs.replace(manifest, calibration=calibration))
        )
    assert (answers.score < answers.confidence).all()
    largest = [score("max-softmax", row[None], calibration.scale, None)[0][0] for row in answers.logits]
    np.testing.assert_allclose(answers.confidence, largest, rtol=1e-5)
