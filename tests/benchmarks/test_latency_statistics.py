"""What the samples of a record come to, beside an independent computation, and what makes them doubtful."""

from __future__ import annotations

import statistics as standard

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from latency_records import MACHINE, latency_record, latency_run

from dynamic_confidence.benchmarks.latency.cautions import cautions
from dynamic_confidence.benchmarks.latency.record import Overhead, Run, Series
from dynamic_confidence.benchmarks.latency.statistics import (
    HostCost,
    distribution,
    host_cost,
    paired,
    per_image,
    ratio,
    round_ratios,
    spread,
    summary,
)

EXITS = [1, 2, 4, 4]
FAST = [[1.0, 2.0, 4.0, 4.0], [1.0, 2.0, 4.0, 4.0], [1.0, 2.0, 4.0, 4.0]]
SLOW = [[4.0] * 4, [4.0] * 4, [4.0] * 4]


def run_of(
    with_exit: list[list[float]], without_exit: list[list[float]], exits: list[int] | None = None, **changes: object
) -> Run:
    """A run of T = 4 with these samples; every second answer with early exit is right, every one without."""
    exits = EXITS if exits is None else exits
    return latency_run(
        steps=4,
        with_exit=Series(ms=with_exit),
        without_exit=Series(ms=without_exit),
        exit_steps=exits,
        right=[index % 2 == 0 for index in range(len(exits))],
        right_without_exit=[True] * len(exits),
        **changes,
    )


def test_a_summary_by_hand():
    found = summary(run_of(FAST, SLOW))
    assert (found.images, found.rounds, found.steps) == (4, 3, 4)
    assert found.mean_steps == 2.75
    assert (found.accuracy, found.accuracy_without_exit) == (0.5, 1.0)
    assert found.saving_steps == pytest.approx(1 - 2.75 / 4)
    assert found.saving_ms == pytest.approx(1 - 2.75 / 4)
    assert found.saving_gap == pytest.approx(0.0)
    assert found.with_over_without == pytest.approx((2.75 / 4, 0.0))
    assert found.with_exit.mean == 2.75
    assert found.with_exit.cv == pytest.approx(0.0)  # what the exits make of it is no scatter
    assert not found.unsteady


def test_one_hiccup_moves_the_tail_and_not_the_mean():
    jumped = [[1.0, 2.0, 4.0, 400.0], *FAST[1:]]
    found = summary(run_of(jumped, SLOW))
    assert found.with_exit.max == 400.0
    assert found.with_exit.mean == 2.75
    assert found.saving_ms == pytest.approx(found.saving_steps)
    assert found.unsteady


@given(st.lists(st.floats(0.01, 1e3), min_size=1, max_size=60))
def test_percentiles_are_those_of_the_sorted_samples(ms: list[float]):
    found = distribution(Series(ms=[ms]), np.ones(len(ms), np.int64))
    ordered = sorted(ms)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    for name, share in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)):
        assert getattr(found, name) == pytest.approx(at(share))
    assert found.samples == len(ms)
    assert found.cv == pytest.approx(standard.pstdev(ms) / standard.mean(ms), abs=1e-9)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_last_round_may_be_cut_short(rounds: int, images: int, missing: int, random):
    table = [[random.uniform(0.1, 9.0) for _ in range(images)] for _ in range(rounds)]
    if rounds > 1:
        table[-1] = table[-1][: max(1, images - missing)]
    exits = [random.randint(1, 4) for _ in range(images)]
    run = run_of(table, table, exits)
    columns = [[round_[image] for round_ in table if image < len(round_)] for image in range(images)]
    assert per_image(run.with_exit) == pytest.approx([standard.median(column) for column in columns])
    assert round_ratios(run.with_exit, run.without_exit) == pytest.approx([1.0] * rounds)


def test_ratios_of_two_runs_are_per_round():
    one = run_of(FAST, SLOW)
    twice = [[2 * ms for ms in round_] for round_ in FAST]
    other = run_of([*twice[:2], [2.0]], [[4.0] * 4, [8.0] * 4, [12.0]])
    found = paired([one, other], 0, 1)
    assert (found.first, found.second) == (0, 1)
    assert found.with_exit == [2.0, 2.0, 2.0]
    assert found.without_exit == [1.0, 2.0, 3.0]  # of the images that both have
    assert ratio(found.without_exit) == pytest.approx((2.0, 0.5))


def test_the_spread_of_few_values_is_half_their_range():
    assert spread([3.0]) == 0.0
    assert spread([1.0, 2.0, 4.0]) == pytest.approx(0.75)


def test_what_the_host_adds():
    overhead = Overhead(
        loop_us=[9.0, 8.0, 30.0],
        bare_us=[2.0, 1.5, 2.5],
        loop_once_us=[90.0, 50.0, 60.0],
        bare_once_us=[30.0, 2.0, 4.0],
        confidence_us=[5.0, 4.0, 6.0],
    )
    run = latency_run(steps=4, overhead=overhead)
    step_us = 1e3 * run.step_ms[-1] / 4
    assert host_cost(latency_run(overhead=None)) is None
    # The medians of 7, 6.5 and 27.5, and of 60, 48 and 56.
    assert host_cost(run) == HostCost(7.0, 7.0 / step_us, 56.0, 56.0 / step_us, 5.0, 5.0 / step_us)


def test_nothing_to_caution_against():
    assert cautions(latency_record(run_of(FAST, SLOW))) == []


def test_engines_that_differ_are_named():
    backends = {"conv.onnx": "ONNX Runtime 1.31.1, CPU, NCHW16c", "matmul.onnx": "ONNX Runtime 1.31.1, CPU"}
    runs = [run_of(FAST, SLOW, file=file, backend=backend) for file, backend in backends.items()]
    plan = run_of(FAST, SLOW, file="net.plan", backend="TensorRT 11.3.0")
    assert cautions(latency_record(*runs, plan)) == []
    other = run_of(FAST, SLOW, file="other.onnx", backend="OpenVINO 2026.4.1, CPU")
    (caution,) = cautions(latency_record(*runs, other))
    assert caution.startswith("The .onnx files ran on different engines (ONNX Runtime 1.31.1, OpenVINO 2026.4.1), so")


def test_cautions():
    shaken = [[4.0, 4.0, 4.0, 4.0], [4.0, 6.0, 4.0, 2.0], [4.0] * 4]
    network = latency_run(steps=4).network
    run = run_of(SLOW, shaken, file="net.onnx", network=msgspec.structs.replace(network, calibrated_on=None))
    busy = msgspec.structs.replace(MACHINE, load_per_core=1.5)
    found = cautions(latency_record(run, machine=busy, complete=False, stopped="Ctrl-C"))
    for text, wanted in zip(
        found,
        (
            "The measurement ended before its end (Ctrl-C): these are the samples until then.",
            "The machine was busy (150% of all cores): these are not the times of an idle one. Measure again when",
            "net.onnx is not calibrated, so that confidence stops nothing early. First: dc-calibrate net.onnx --data",
            "net.onnx: samples of equally many time steps scatter by 20 % (coefficient of variation; above 10 % they",
            "net.onnx: 31.2 % of the time steps are saved and 0.0 % of the milliseconds. The difference is what an",
        ),
        strict=True,
    ):
        assert text.startswith(wanted)
    assert "`taskset`" not in found[3]  # the process is kept to one core
    free = cautions(latency_record(run, machine=msgspec.structs.replace(MACHINE, pinned_to=[])))
    assert "Fix the clock, keep the process to some cores with `taskset`, or measure longer." in free[1]
    (early,) = cautions(latency_record(run_of([[1.0, 1.0, 4.0, 4.0]] * 4, [[4.0] * 4] * 4)))
    assert early.endswith(
        "37.5 % of the milliseconds. The steps that are saved cost more than the others, or the machine was not "
        "steady: measure longer."
    )
    silent = msgspec.structs.replace(MACHINE, load_per_core=None)
    assert cautions(latency_record(run_of(FAST, SLOW), machine=silent)) == []
