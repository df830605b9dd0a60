"""The summary of a trace against its definitions, sample by sample; parts add up to the whole exactly, in any order."""

from __future__ import annotations

from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_confidence.calib.evaluation import Sums, added, evaluation_of, sums_of
from dynamic_confidence.calib.trace import Trace
from dynamic_confidence.calib.trace_folder import Shard
from dynamic_confidence.calib.trace_header import LayerSize, TraceHeader
from dynamic_confidence.calib.upper_bound import upper_bound
from dynamic_confidence.runtime.manifest import Calibration, Method

NEURONS = (7, 3)


@st.composite
def shards(draw: st.DrawFn) -> Shard:
    samples, steps, classes = draw(st.integers(1, 9)), draw(st.integers(1, 6)), draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.integers(-3, 4, (samples, steps, classes)).cumsum(axis=1).astype(np.float32)
    trace = Trace(logits, rng.integers(0, classes, samples), rng.integers(1, steps + 1, samples))
    counts = [rng.integers(low, 5, (samples, steps, len(NEURONS))).cumsum(axis=1) for low in (0, -2)]
    return Shard(trace, np.array([str(row) for row in range(samples)]), "0" * 64, *counts)


@st.composite
def calibrations(draw: st.DrawFn) -> Calibration:
    return Calibration(
        alpha=draw(st.sampled_from([0.5, 1.0, 4.0])), threshold=draw(st.sampled_from([0.0, 0.6, 0.9, 1.0]))
    )


def header_of(shard: Shard, method: str = "qffs", *, counted: bool = True, net: bool = True) -> TraceHeader:
    return TraceHeader(
        version=1,
        network="net",
        data="test",
        graph_sha256="a" * 64,
        samples_sha256="b" * 64,
        samples=shard.trace.samples,
        shard_size=shard.trace.samples,
        steps=shard.trace.steps,
        class_names=tuple(map(str, range(shard.trace.logits.shape[2]))),
        method=Method("qffs", 3, 3) if method == "qffs" else Method("qcfs", 3, None),
        layers=tuple(LayerSize(str(size), size) for size in NEURONS) if counted else (),
        net_spikes=net,
        engine=None,
    )


def part_of(shard: Shard, rows: np.ndarray) -> Shard:
    assert shard.spikes is not None
    assert shard.net_spikes is not None
    return Shard(
        shard.trace.subset(rows), shard.names[rows], shard.images_sha256, shard.spikes[rows], shard.net_spikes[rows]
    )


def mean(values: list[int]) -> float:
    return float(Fraction(sum(values), len(values)))


@settings(max_examples=60, deadline=None)
@given(shards(), calibrations())
def test_it_is_its_definition(shard: Shard, calibration: Calibration):
    trace, steps = shard.trace, shard.trace.steps
    found = evaluation_of(header_of(shard), [shard], calibration)
    exits, right = [], []
    for logits, label, last in zip(trace.logits.astype(np.float64), trace.label, trace.last_step, strict=True):
        p = np.exp(logits / calibration.scale)
        p /= p.sum(axis=1, keepdims=True)
        # Beside the thresholds 0.6 and 0.9, which no rounding may pass.
        sure = [t for t in range(1, steps + 1) if p[t - 1].max() > calibration.threshold + 1e-12]
        exits.append(min([last, *sure]) if calibration.threshold < 1 else last)
        right.append([int(np.argmax(row)) == label for row in logits])
    samples = range(trace.samples)
    assert found.accuracy_at_step == [mean([right[i][t] for i in samples]) for t in range(steps)]
    assert found.fixed_steps == mean(trace.last_step.tolist())
    assert found.mean_steps == mean(exits)
    assert found.accuracy == mean([right[i][exits[i] - 1] for i in samples])
    assert found.saved == pytest.approx(1 - found.mean_steps / steps, abs=1e-15)
    assert found.exit_histogram == [mean([exits[i] == t for i in samples]) for t in range(1, steps + 1)]
    for cap in range(1, steps + 1):
        stops = [min(exits[i], cap) for i in samples]
        assert found.capped.mean_steps[cap - 1] == mean(stops)
        assert found.capped.accuracy[cap - 1] == mean([right[i][stops[i] - 1] for i in samples])
    bound_steps, bound_accuracy = upper_bound(trace.correct, trace.last_step)
    assert found.upper_bound.mean_steps == bound_steps.tolist()
    assert found.upper_bound.accuracy == bound_accuracy.tolist()
    for counts, table in ((shard.spikes, found.gross_spikes), (shard.net_spikes, found.net_spikes)):
        assert counts is not None
        assert table is not None
        for t in range(steps):  # of each image, the sum over layers over the neurons of all; then the mean
            images = [Fraction(int(counts[i, t].sum()), sum(NEURONS)) for i in samples]
            assert table.at_step[t] == pytest.approx(float(sum(images) / len(images)), rel=1e-15)
        images = [Fraction(int(counts[i, exits[i] - 1].sum()), sum(NEURONS)) for i in samples]
        assert table.at_exit == pytest.approx(float(sum(images) / len(images)), rel=1e-15)
        for layer, size in enumerate(NEURONS):
            assert table.per_layer[layer] == pytest.approx(counts[:, -1, layer].mean() / size, rel=1e-14)
            at_exit = [counts[i, exits[i] - 1, layer] for i in samples]
            assert table.per_layer_at_exit[layer] == pytest.approx(np.mean(at_exit) / size, rel=1e-14)


@settings(max_examples=40, deadline=None)
@given(shards(), calibrations(), st.integers(0, 2**32))
def test_parts_in_any_order_add_up_to_the_whole(shard: Shard, calibration: Calibration, seed: int):
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, 3, shard.trace.samples)
    parts = [part_of(shard, owner == rank) for rank in rng.permutation(3) if (owner == rank).any()]
    total: Sums = sums_of(parts[0], calibration)
    for part in parts[1:]:
        total = added(total, sums_of(part, calibration))
    for found, expected in zip(total, sums_of(shard, calibration), strict=True):
        np.testing.assert_array_equal(found, expected)
    header = header_of(shard)
    assert evaluation_of(header, parts, calibration) == evaluation_of(header, [shard], calibration)


@pytest.fixture
def one() -> Shard:
    rng = np.random.default_rng(0)
    trace = Trace(rng.normal(size=(5, 4, 3)).astype(np.float32), rng.integers(0, 3, 5), np.full(5, 4))
    return Shard(trace, np.array(list("abcde")), "0" * 64, rng.integers(0, 9, (5, 4, 2)).cumsum(axis=1), None)


def test_without_negative_spikes_net_is_gross(one: Shard):
    found = evaluation_of(header_of(one, "qcfs", net=False), [one], Calibration(alpha=1.0))
    assert found.net_spikes == found.gross_spikes is not None


def test_gross_spikes_are_never_taken_for_net_ones(one: Shard):
    found = evaluation_of(header_of(one, "qffs", net=False), [one], Calibration(alpha=1.0))
    assert found.net_spikes is None
    assert found.gross_spikes is not None


@pytest.mark.parametrize("method", ["qcfs", "qffs"])
def test_spikes_that_were_not_counted_are_not_zero(one: Shard, method: str):
    bare = Shard(one.trace, one.names, one.images_sha256, None, None)
    found = evaluation_of(header_of(one, method, counted=False, net=False), [bare], Calibration(alpha=1.0))
    assert found.net_spikes is found.gross_spikes is None
    assert found.layers == found.neurons == []


def test_the_other_metrics_are_replayed_too(one: Shard):
    patience = Calibration(alpha=1.0, metric="patience", threshold=0.0)
    header = header_of(one, net=False)
    assert evaluation_of(header, [one], msgspec.structs.replace(patience, metric="max-softmax")).mean_steps == 1
    assert evaluation_of(header, [one], patience).mean_steps >= 2  # an answer must come twice


def test_no_shard_is_a_fault_of_the_caller(one: Shard):
    with pytest.raises(ValueError, match="at least one shard"):
        evaluation_of(header_of(one), [], Calibration(alpha=1.0))
