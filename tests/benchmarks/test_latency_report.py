"""What a report computes from latency records, and what it says when things are odd."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np
import pytest
from html_outline import outline
from hypothesis import given
from hypothesis import strategies as st
from latency_records import GPU, MACHINE, MEASURED_ENERGY, latency_record, latency_run

from dynamic_confidence.benchmarks.latency.accuracy_curves import milliseconds_of, pareto_front
from dynamic_confidence.benchmarks.latency.record import LatencyRecord
from dynamic_confidence.benchmarks.latency.report import html
from dynamic_confidence.benchmarks.latency.report_page import page_of
from dynamic_confidence.benchmarks.latency.report_parts import Picture, Table, Text
from dynamic_confidence.benchmarks.latency.report_samples import exit_shares, latency_by_step
from dynamic_confidence.benchmarks.latency.report_text import headline, network_name, number, points
from dynamic_confidence.benchmarks.latency.statistics import summary

POINT = st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float))


def tables(record: LatencyRecord, *more: LatencyRecord) -> dict[str, Table]:
    parts = [part for section in page_of([record, *more]).sections for part in section.parts]
    return {part.caption: part for part in parts if isinstance(part, Table)}


def table_of(record: LatencyRecord, caption: str) -> dict[str, tuple[str, ...]]:
    """Rows of the table whose caption begins like this, by their heading."""
    (found,) = (table for name, table in tables(record).items() if name.startswith(caption))
    return {row[0]: row[1:] for row in found.rows}


def titles(record: LatencyRecord) -> list[str]:
    parts = [part for section in page_of([record]).sections for part in section.parts]
    return [part.title for part in parts if isinstance(part, Picture)]


def sentences(record: LatencyRecord) -> str:
    parts = [part for section in page_of([record]).sections for part in section.parts]
    return "\n".join(part.text for part in parts if isinstance(part, Text))


@given(st.lists(POINT, max_size=12))
def test_the_pareto_front_is_every_point_that_none_dominates(found: list[tuple[float, float]]):
    def dominated(point: tuple[float, float]) -> bool:
        return any(c <= point[0] and a >= point[1] and (c, a) != point for c, a in found)

    assert pareto_front(found) == sorted({point for point in found if not dominated(point)})


@given(st.integers(1, 9), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_mean_steps_with_each_cap_give_mean_milliseconds_with_each_cap(steps: int, images: int, seed: int):
    generator = np.random.default_rng(seed)
    exits, step_ms = generator.integers(1, steps + 1, images), np.cumsum(generator.uniform(0, 2, steps))
    stops = [np.minimum(exits, cap) for cap in range(1, steps + 1)]
    found = milliseconds_of([float(stop.mean()) for stop in stops], step_ms.tolist())
    np.testing.assert_allclose(found, [step_ms[stop - 1].mean() for stop in stops], atol=1e-9)
    with pytest.raises(ValueError, match=f"{steps} mean steps and the times of {steps + 1} steps"):
        milliseconds_of([1.0] * steps, [1.0] * (steps + 1))


def test_samples_belong_to_the_step_their_image_stops_at_also_in_a_round_cut_short():
    run = latency_run(images=3, rounds=1, steps=4)
    ms = [[1.0, 2.0, 3.0], [4.0, 5.0]]
    cut = msgspec.structs.replace(run.with_exit, ms=ms)
    run = msgspec.structs.replace(run, exit_steps=[2, 4, 2], with_exit=cut, without_exit=cut)
    assert latency_by_step(run) == {2: [1.0, 3.0, 4.0], 4: [2.0, 5.0]}
    assert exit_shares(run) == [0, 2 / 3, 0, 1 / 3]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (4.5649, "4.56"), (78.94, "78.9"), (1234.5, "1,234"), (0.0, "0.000"), (-4.5649, "-4.56")],
)
def test_numbers_have_three_digits(value: float, text: str):
    assert number(value) == text


def test_a_difference_of_nothing_has_no_minus():
    assert (points(0.0123), points(-0.0123), points(-0.00001)) == ("+1.23 points", "-1.23 points", "+0.00 points")


def test_networks_are_called_as_people_call_them():
    assert [network_name(name) for name in ("resnet20", "vgg16", "mynet3", "resnet20x")] == [
        "ResNet-20",
        "VGG-16",
        "mynet3",
        "resnet20x",
    ]


@pytest.mark.parametrize(
    ("exit_cost_ms", "says"),
    [
        (0.0, r"ResNet-20 \(QCFS, int8, openvino\) answers \d+ % sooner with Dynamic Confidence: "),
        (9.0, r"answers \d+ % later with Dynamic Confidence: "),
        ("same", r"answers as fast with Dynamic Confidence as without: "),
    ],
)
def test_the_headline_is_honest(exit_cost_ms: Any, says: str):
    run = latency_run()
    if exit_cost_ms == "same":
        run = msgspec.structs.replace(run, with_exit=run.without_exit)
    else:
        run = latency_run(exit_cost_ms=exit_cost_ms)
    found = summary(run)
    slow, fast = found.without_exit.mean, found.with_exit.mean
    right, before = 100 * np.mean(run.right), 100 * np.mean(run.right_without_exit)
    times = f"{number(fast)} ms on average instead of {number(slow)} ms"
    numbers = f"{times}, {right:.1f} % right" + (f" instead of {before:.1f} %." if before != right else ".")
    assert re.search(says + re.escape(numbers), headline(run, found))
    if exit_cost_ms != "same":
        assert f" {abs(100 * (1 - fast / slow)):.0f} % " in headline(run, found)


def test_table_2_is_that_of_the_samples():
    run = latency_run(rounds=5)
    rows = table_of(latency_record(run), "Latency of one image at a time (batch 1) over 40 images and 5 rounds")
    fast, slow = np.array(run.with_exit.ms), np.array(run.without_exit.ms)
    mean_fast, mean_slow = np.median(fast, axis=0).mean(), np.median(slow, axis=0).mean()
    change = f"{100 * (mean_fast / mean_slow - 1):+.1f} %"
    assert rows["latency in ms, on average"] == (f"{mean_slow:.2f}", f"{mean_fast:.2f}", change)
    p95 = [np.percentile(ms, 95) for ms in (slow, fast)]
    assert rows["latency in ms, 95th percentile"][:2] == tuple(f"{ms:.2f}" for ms in p95)
    assert rows["latency in ms, longest"][0] == f"{slow.max():.2f}"
    steps = np.mean(run.exit_steps)
    assert rows["time steps, on average"] == ("6", f"{steps:.2f}", f"{100 * (steps / 6 - 1):+.1f} %")
    right = 100 * np.mean(run.right_without_exit), 100 * np.mean(run.right)
    assert rows["right answers, %"] == (f"{right[0]:.2f}", f"{right[1]:.2f}", f"{right[1] - right[0]:+.2f} points")


def test_step_by_step_is_that_of_the_samples_and_of_the_evaluation():
    run = latency_run(images=2, rounds=2, steps=3)
    run = msgspec.structs.replace(
        run, exit_steps=[3, 1], with_exit=msgspec.structs.replace(run.with_exit, ms=[[3.0, 1.0], [3.2, 1.0]])
    )
    rows = table_of(latency_record(run), "Step by step")
    assert run.evaluation is not None
    right = [f"{100 * run.evaluation.accuracy_at_step[step]:.2f}" for step in range(3)]
    assert rows["1"][:3] == ("50.0", "50.0", right[0])
    assert rows["1"][5:] == ("0.500", "1.00", "1.00 – 1.00", "2")
    assert rows["2"][:3] == ("0.0", "50.0", right[1])
    assert rows["2"][5:] == ("1.00", "–", "–", "0")
    assert rows["3"][5:] == ("1.50", "3.10", "3.01 – 3.19", "2")


def test_what_else_it_costs():
    rows = table_of(latency_record(), "What else it costs")
    assert rows["added by the stepping loop"] == ("3.00 µs per time step, 0.6 % of one",)
    assert rows["added by the stepping loop, once"] == ("80.0 µs per inference, 16.0 % of a time step",)
    assert rows["confidence, were it computed on the host"] == ("4.20 µs per time step, 0.8 % of one",)
    assert rows["throughput at batch 32, early exit, continuous batching"] == ("812 images per second",)
    assert rows["memory of the process"][0].endswith("120 MB after the first call, 130 MB at most")
    assert rows["energy"] == ("not measured: no meter on this machine",)
    rows = table_of(latency_record(latency_run(energy=MEASURED_ENERGY)), "What else it costs")
    (text,) = rows["energy of an image (RAPL)"]
    assert text.startswith("0.100 J with all steps, 0.050 J with early exit, 50.0 % saved")


def test_what_was_not_got_to_is_said():
    run = latency_run(
        complete=False, failure="the engine failed", overhead=None, throughput=[], memory=None, evaluation=None
    )
    record = latency_record(run, complete=False, stopped="the engine failed")
    rows = table_of(record, "What else it costs")
    assert rows["host overhead"] == ("not measured: it ended before",)
    assert rows["throughput"] == rows["memory"] == ("not measured",)
    assert table_of(record, "Step by step")["1"][2:5] == ("–", "–", "–")
    assert titles(record) == ["Where the images stop", "Latency by the step of the exit"]
    assert "It ended before the accuracy at every step was measured" in sentences(record)
    assert "This run is incomplete (the engine failed)" in sentences(record)
    page = page_of([record])
    assert page.sections[0].title.endswith(" (incomplete)")
    assert "ended before its end (the engine failed)" in page.warnings[0]
    assert "(incomplete)" in outline(html([record])).one("main").all("h2")[0].text


def test_spikes_that_were_not_counted_are_said():
    record = latency_record(latency_run(layers=()))
    assert "Spikes were not counted: `dc-export --count-spikes`" in sentences(record)
    assert not any(caption.startswith("Spikes") for caption in tables(record))
    counted = tables(latency_record(latency_run(method="qffs")))["Spikes per neuron and image, layer by layer"]
    assert counted.header[2:] == (
        "of either sign, all steps",
        "of either sign, until the exit",
        "net, all steps",
        "net, until the exit",
    )
    assert counted.rows[0] == ("stem", "100", "0.6000", "0.3000", "0.6000", "0.3000")


def test_records_of_one_machine_stand_beside_each_other():
    runs = latency_run(), latency_run(backend="events", step_ms=1.0, file="nets/other.onnx")
    record = latency_record(*runs)
    page = page_of([record])
    comparison = page.sections[0]
    assert comparison.title == "Comparison"
    every = comparison.parts[0]
    assert isinstance(every, Table)
    assert [row[0] for row in every.rows] == [
        "1. ResNet-20 (QCFS, int8, openvino), resnet20_qcfs.onnx",
        "2. ResNet-20 (QCFS, int8, events), other.onnx",
    ]
    assert [part.title for part in comparison.parts if isinstance(part, Picture)] == [
        "Accuracy against latency of every run"
    ]
    assert "openvino" in page.headlines[0]
    assert "events" not in page.headlines[0]  # the slower one
    (warning,) = page.warnings
    assert warning.startswith("The .onnx files ran on different engines (openvino, events)")
    (pair,) = comparison.parts[1].rows  # type: ignore[union-attr]
    assert pair[0] == f"{every.rows[1][0]} over {every.rows[0][0]}"
    rounds = [sum(b) / sum(a) for a, b in zip(*(run.without_exit.ms for run in runs), strict=True)]
    assert pair[1].startswith(f"{np.median(rounds):.3f} ± ")
    assert len(page_of([record, record]).sections) == 1 + 2 * (1 + 2 + 1)
    assert page_of([record, record]).warnings == tuple(f"Record {number}: {warning}" for number in (1, 2))
    every = page_of([record, record]).sections[0].parts[0]
    assert isinstance(every, Table)
    numbers = [row[0].split(".")[0] for row in every.rows]
    assert numbers == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"processor": "Another"}, r"different machines \(processor: Some processor \| Another\)"),
        ({"pinned_to": []}, r"different machines \(pinned to: 0 \| no particular cores\)"),
        ({"gpu": GPU}, r"different machines \(GPU: none \| Some GPU, driver 570.1\)"),
        ({"governor": "powersave", "cores": 8}, r"machines \(cores: 2 \| 8; governor: performance \| powersave\)"),
        ({"libraries": {"numpy": "2.1"}}, r"different software \(numpy: 2.0 \| 2.1; onnxruntime: 1.20 \| none\)"),
        ({"commit": "def"}, r"different software \(commit: abc1234 \| def\)"),
        ({"clock_mhz": None, "load_per_core": 0.1, "date": "2027"}, None),
    ],
)
def test_machines_that_differ_are_warned_of(changes: dict[str, Any], says: str | None):
    other = latency_record(machine=msgspec.structs.replace(MACHINE, **changes))
    page = page_of([latency_record(), other])
    pictures = [part for part in page.sections[0].parts if isinstance(part, Picture)]
    if says is None:
        assert page.warnings == ()
        return
    assert re.search(says, page.warnings[0])
    assert bool(pictures) == ("software" in says)  # milliseconds of two machines share no axis
    assert page.warnings[0] in " ".join(node.text for node in outline(html([latency_record(), other])).all("p"))


def test_images_that_differ_are_warned_of_and_cautions_name_their_record():
    one = latency_record()
    other = latency_record(latency_run(), data=msgspec.structs.replace(one.data, samples_sha256="0" * 16))
    busy = msgspec.structs.replace(one, machine=msgspec.structs.replace(MACHINE, load_per_core=3.0))
    assert "of different images (images: test fedcba987654 | test 000000000000)" in page_of([one, other]).warnings[0]
    assert page_of([one, busy]).warnings[0].startswith("Record 2: The machine was busy")
    assert page_of([busy]).warnings[0].startswith("The machine was busy")


def test_no_record_is_an_error():
    with pytest.raises(ValueError, match="needs a record"):
        page_of([])
