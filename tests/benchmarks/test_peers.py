"""Every peer computes the same network as the oracle; the tables are computed from the record and from nothing else."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from support import GREY, random_checkpoint

from dynamic_confidence.benchmarks.peers import __main__ as command
from dynamic_confidence.benchmarks.peers import authors, eager, floor, jelly, machine, measure, study, tuned
from dynamic_confidence.benchmarks.peers import ours as ours_module
from dynamic_confidence.benchmarks.peers import setting as setting_module
from dynamic_confidence.benchmarks.peers.candidate import Candidate, Missing
from dynamic_confidence.benchmarks.peers.loop import loop_cost
from dynamic_confidence.benchmarks.peers.markdown import page, summary
from dynamic_confidence.benchmarks.peers.numbers import line, loop_us, once_us, over_steps, rows_of
from dynamic_confidence.benchmarks.peers.ours import PLAIN, VARIANTS, exported, ours
from dynamic_confidence.benchmarks.peers.quantised import NAME as QUANTISED
from dynamic_confidence.benchmarks.peers.quantised import quantised_graph
from dynamic_confidence.benchmarks.peers.setting import Setting, setting
from dynamic_confidence.models.checkpoint import Checkpoint
from dynamic_confidence.runtime.errors import BackendMissing, CheckFailed, DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Method
from dynamic_confidence.toolchain.export import ann_logits
from dynamic_confidence.toolchain.oracle import oracle_steps
from dynamic_confidence.toolchain.self_check import synthetic_pixels
from dynamic_confidence.toolchain.snap import snap
from dynamic_confidence.toolchain.snn import Layer, Pool, Snn, Synapse
from dynamic_confidence.toolchain.snn_from_ann import snn_from_ann

METHODS = ("qcfs", "qffs")
STEPS = 8
LARGER = msgspec.structs.replace(GREY, height=32, width=32)


@functools.cache
def checkpoint_of(architecture: str) -> Checkpoint:
    return random_checkpoint(architecture, LARGER if architecture == "vgg16" else GREY)


@functools.cache
def setting_of(architecture: str, method: str) -> Setting:
    return setting(architecture, checkpoint_of(architecture), method, steps=STEPS)


def oracle(snn: Snn, pixels: np.ndarray, steps: int) -> np.ndarray:
    """Logits `[step, image, class]`, float64."""
    return np.stack([step.logits for step in oracle_steps(snn, pixels, steps)])


networks = pytest.mark.parametrize("architecture", ["resnet8", "vgg16"])
methods = pytest.mark.parametrize("method", METHODS)


class Exact:
    """A quantised network in float64, where rounding flips no spike, its images, and what the oracle says of them."""

    def __init__(self, architecture: str, method: str) -> None:
        checkpoint = checkpoint_of(architecture)
        about = checkpoint.preprocessing
        pixels = synthetic_pixels(about.shape, 3)
        self.network = checkpoint.network().double()
        mean, std = (torch.tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in (about.mean, about.std))
        self.image = (torch.from_numpy(pixels).double() / 255.0 - mean) / std
        self.expected = oracle(snn_from_ann(checkpoint.network(), about, method), pixels, STEPS)
        assert np.ptp(self.expected) > 0.5


@networks
@methods
def test_the_demos_way_is_the_oracle(architecture: str, method: str):
    exact = Exact(architecture, method)
    network, window = eager.demo_network(exact.network, method)
    for _ in range(2):  # it forgets the image before
        logits = eager.run_demo(network, window, exact.image, STEPS, 1.0)
        np.testing.assert_allclose(logits.numpy(), exact.expected, atol=1e-9)


@networks
@methods
def test_all_steps_in_the_batch_are_the_oracle(architecture: str, method: str):
    exact = Exact(architecture, method)
    network, window = authors.sequence_network(exact.network, method, batch=3)
    logits = authors.layer_by_layer(network, window, exact.image, STEPS, 1.0)
    np.testing.assert_allclose(logits.numpy(), exact.expected, atol=1e-9)


@networks
@methods
@pytest.mark.parametrize("mode", jelly.MODES)
def test_spikingjelly_is_the_oracle(architecture: str, method: str, mode: str):
    pytest.importorskip("spikingjelly", reason="needs SpikingJelly: pip install 'dynamic-confidence[peers]'")
    exact = Exact(architecture, method)
    network, window = jelly.jelly_network(exact.network, method, mode, batch=3)
    for _ in range(2):
        logits = jelly.run_jelly(network, window, mode, exact.image, STEPS, 1.0)
        np.testing.assert_allclose(logits.numpy(), exact.expected, atol=1e-4)  # its QFFS keeps thresholds in float32


@networks
@methods
def test_the_tuned_step_is_the_oracle_bit_for_bit(architecture: str, method: str, monkeypatch: pytest.MonkeyPatch):
    one = setting_of(architecture, method)
    expected = oracle(one.snn, one.pixels, STEPS)
    # Without a C++ compiler: that the step is one graph is what can be wrong here.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    for candidate in (tuned.tuned(one), tuned.compiled(one)):
        assert isinstance(candidate, Candidate)
        for index, pixels in enumerate(one.pixels):
            np.testing.assert_array_equal(candidate.run(pixels[None], STEPS), expected[:, index])


@networks
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_quantised_network_is_what_qffs_settles_at(architecture: str, precision: Any):
    import onnxruntime

    checkpoint = checkpoint_of(architecture)
    pixels = synthetic_pixels(checkpoint.preprocessing.shape, 4)
    snn, _ = snap(snn_from_ann(checkpoint.network(), checkpoint.preprocessing, "qcfs"), 3, None, precision)
    session = onnxruntime.InferenceSession(quantised_graph(snn, precision).SerializeToString())
    (logits,) = session.run(None, {"input": pixels})
    qffs = msgspec.structs.replace(snn.method, name="qffs", injection_steps=snn.method.levels)
    settled = oracle(Snn(qffs, snn.input_shape, snn.nodes, snn.readout), pixels, 40)[-1] / snn.method.levels
    np.testing.assert_allclose(logits, settled, atol=1e-5)
    if precision == "fp32" and architecture == "resnet8":  # few neurons: snapping flips none
        np.testing.assert_allclose(logits, ann_logits(checkpoint.network(), GREY, pixels), atol=1e-3)


def test_levels_whose_pool_is_no_byte():
    """8 levels at 8 x 8 positions add up to 512; the read-out has no bias that would make it a convolution."""
    import onnxruntime

    first = Layer("first", (Synapse("input", np.ones((2, 1, 1, 1))),), np.zeros((2, 1, 1)), (2, 8, 8), 1.0)
    pool = Pool("pool", "first", (8, 8), (1, 1), (0, 0), (2, 1, 1))
    weights = np.array([[0.25, 0.5], [0.5, 1.0]]).reshape(2, 2, 1, 1)
    readout = Layer("readout", (Synapse("pool", weights),), np.zeros((2, 1, 1)), (2, 1, 1), 1.0)
    snn = Snn(Method("qcfs", 8, None), (1, 8, 8), (first, pool), readout)
    for form in ("conv", "matmul"):
        session = onnxruntime.InferenceSession(quantised_graph(snn, "fp32", form).SerializeToString())
        (logits,) = session.run(None, {"input": np.full((1, 1, 8, 8), 255, np.uint8)})
        np.testing.assert_array_equal(logits, [[64 * 0.75, 64 * 1.5]])


@methods
def test_each_of_ours_is_the_oracle_of_its_precision(method: str, tmp_path: Path):
    one = setting_of("resnet8", method)
    converted = snn_from_ann(one.network, GREY, method)
    with ExitStack() as stack:
        found = list(ours(one, tmp_path, stack))
        assert [candidate.name for candidate in found] == [variant.name for variant in VARIANTS]
        assert len({variant.name for variant in VARIANTS}) == len(VARIANTS) >= 14
        for candidate in found:
            if isinstance(candidate, Missing):
                assert re.search("openvino|numba", candidate.reason.lower())
                assert candidate.status == "not installed"
                continue
            snn, _ = snap(converted, STEPS, None, candidate.precision)
            expected = oracle(snn, one.pixels[:1], STEPS)[:, 0]
            np.testing.assert_array_equal(candidate.trace(one.pixels[:1], STEPS), expected, candidate.name)
            for steps in (STEPS, STEPS // 4):
                np.testing.assert_array_equal(candidate.run(one.pixels[:1], steps)[0], expected[steps - 1])


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One variant of each kind: all of them are checked above."""
    kinds = {(variant.backend, variant.precision, variant.form): variant for variant in reversed(VARIANTS)}
    monkeypatch.setattr(ours_module, "VARIANTS", (PLAIN, *(v for v in kinds.values() if v != PLAIN)))


@pytest.mark.usefixtures("few")
def test_no_candidate_touches_anothers_state(tmp_path: Path):
    one = setting_of("resnet8", "qffs")
    with ExitStack() as stack:
        found = [eager.demo(one), tuned.tuned(one), authors.authors(one), *jelly.spikingjelly(one)]
        found = [c for c in (*found, *ours(one, tmp_path, stack)) if isinstance(c, Candidate)]
        first = [candidate.run(one.pixels[:1], STEPS).copy() for candidate in found]
        for candidate in found:
            candidate.run(one.pixels[1:2], STEPS // 2)
        for candidate, before in zip(reversed(found), reversed(first), strict=True):
            np.testing.assert_array_equal(candidate.run(one.pixels[:1], STEPS), before, candidate.name)
    assert {type(module).__name__ for module in one.network.modules()} >= {"LSQ", "BatchNorm2d"}


def test_what_is_not_there_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    one = setting_of("resnet8", "qcfs")

    def absent(*_: object, **__: object) -> Any:
        raise ImportError("No module named 'spikingjelly'")

    monkeypatch.setattr(jelly, "jelly_network", absent)
    hint = "No module named 'spikingjelly': pip install 'dynamic-confidence[peers]'"
    assert list(jelly.spikingjelly(one)) == [Missing(name, "not installed", hint) for name in jelly.MODES.values()]

    def old(*_: object, **__: object) -> Any:
        raise AttributeError("HalfThresholdIFNode")

    monkeypatch.setattr(jelly, "jelly_network", old)
    (first, _) = jelly.spikingjelly(one)
    assert isinstance(first, Missing)
    assert (first.status, first.reason) == (
        "not possible",
        "this version has no HalfThresholdIFNode: pip install 'spikingjelly>=2.0'",
    )

    def broken(*_: object, **__: object) -> Any:
        def step(*_: object) -> None:
            raise RuntimeError("\nNo working C++ compiler found\nand more")

        return step

    monkeypatch.setattr(torch, "compile", broken)
    assert tuned.compiled(one) == Missing("torch.compile", "not working here", "No working C++ compiler found")

    def without_openvino(path: Path, *, backend: str, **options: Any) -> Any:
        if backend == "openvino":
            raise BackendMissing("OpenVINO is not installed")
        return open_engine(path, backend=backend, **options)

    open_engine = ours_module.open_engine
    monkeypatch.setattr(ours_module, "open_engine", without_openvino)
    with ExitStack() as stack:
        missing = [c for c in ours(one, tmp_path, stack) if isinstance(c, Missing)]
    assert {m.name for m in missing} == {v.name for v in VARIANTS if v.backend == "openvino"}
    assert {m.reason for m in missing} == {"OpenVINO is not installed"}


def test_what_a_network_is_made_of():
    one = setting_of("resnet8", "qffs")
    size = setting_module.size_of(one.snn)
    parameters = {name: p.numel() for name, p in one.network.named_parameters() if p.ndim > 1}
    identities = sum(s.is_identity for layer in one.snn.layers for s in layer.synapses)
    assert size["weights"] == sum(parameters.values()) + identities
    assert size["states"] == 2 * size["neurons"] == 2 * sum(int(np.prod(layer.shape)) for layer in one.snn.layers)
    emitted = [np.abs(z).sum() for step in oracle_steps(one.snn, one.pixels, STEPS) for z in step.spikes.values()]
    expected = sum(emitted) / (STEPS * len(one.pixels) * size["neurons"])
    assert setting_module.spike_rate(one.snn, one.pixels, STEPS) == pytest.approx(expected)
    assert one.pixels.any(axis=(1, 2, 3)).all()


class Clock:
    """Wall and CPU time that pass only when something is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ns, self.log = 0, []
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.ns / 1e9)
        monkeypatch.setattr(measure.time, "perf_counter_ns", lambda: self.ns)
        monkeypatch.setattr(measure.time, "process_time_ns", lambda: self.ns // 2)

    def call(self, name: str, *ms: float) -> measure.Call:
        def run(round_: int) -> None:
            self.log.append((name, round_))
            self.ns += int(ms[round_ % len(ms)] * 1e6)

        return run


def test_rounds_go_forwards_and_backwards_until_the_medians_stand_still(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    samples = measure.interleaved({"a": clock.call("a", 10.0), "b": clock.call("b", 40.0)}, seconds=1e9)
    warm_up = [entry for entry in clock.log if entry[1] == 0][:-1]
    assert sum(name == "a" for name, _ in warm_up) * 10 >= 200 <= sum(name == "b" for name, _ in warm_up) * 40
    timed = clock.log[-2 * measure.ROUNDS :]
    expected = [(name, round_) for round_ in range(measure.ROUNDS) for name in ("ab" if round_ % 2 == 0 else "ba")]
    assert timed == expected
    assert samples["a"].wall_ms == [10.0] * measure.ROUNDS
    assert samples["b"].cpu_ms == [20.0] * measure.ROUNDS


@pytest.mark.parametrize(
    ("seconds", "quick", "rounds"), [(1e9, False, 200), (0.0, False, 7), (2.2, False, 20), (1e9, True, 3)]
)
def test_noise_takes_more_rounds_within_the_budget(
    monkeypatch: pytest.MonkeyPatch, seconds: float, quick: bool, rounds: int
):
    clock = Clock(monkeypatch)
    samples = measure.interleaved({"a": clock.call("a", 50.0, 150.0)}, seconds, quick=quick)
    assert len(samples["a"].wall_ms) == rounds


def test_the_spread_is_the_interval_of_a_median():
    generator = np.random.default_rng(0)
    medians = [np.median(generator.normal(100.0, 5.0, 101)) for _ in range(2000)]
    claimed = np.mean([measure.spread(generator.normal(100.0, 5.0, 101).tolist()) for _ in range(200)])
    assert claimed == pytest.approx(1.96 * np.std(medians) / 100.0, rel=0.15)


def test_the_floor():
    size = {"macs_per_step": 1000, "weights": 400, "states": 50}
    rate = floor.rates(
        {"slow": ("fp32", 1e6, 2.0), "fast": ("fp32", 1e6, 1.0), "i": ("int8", 4e6, 1.0), "c": ("copy", 1e6, 1.0)}
    )
    assert rate == {"fp32": 1e9, "int8": 4e9, "copy": 1e9}
    assert floor.floor_ms(size, rate, "fp32", 1) == pytest.approx((400 * 4 + 8 * 50) / 1e9 * 1e3)  # memory is the bound
    assert floor.floor_ms(size, rate, "fp32", 8) == pytest.approx(2 * 1000 / 1e9 * 1e3)  # arithmetic is
    assert floor.floor_ms(size, rate, "int8", 1) == pytest.approx((400 + 8 * 50) / 1e9 * 1e3)


def test_the_limits_are_measured_on_what_they_say(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(floor, "SIZE", 32)
    monkeypatch.setattr(floor, "COPIED", 4096)
    found = floor.probes(threads=1)
    assert {probe.kind for probe in found.values()} == {"fp32", "int8", "copy"}
    assert found["copy"].amount == 2 * 4096
    product = found["sgemm, PyTorch"].call()
    assert isinstance(product, torch.Tensor)
    assert product.shape == (32, 32)
    for probe in found.values():
        probe.call()


def cell(**changes: Any) -> dict[str, Any]:
    """A record's entry with T = 4 and numbers that are easy to reckon with."""

    def row(name: str, ms: list[float], **more: Any) -> dict[str, Any]:
        about = {"precision": "fp32", "steps_per_call": 1, "one_pass": False, "ours": False, "equal": None}
        about |= {"backend": "", "name": name, "status": "measured"}
        return {**about, "wall_ms": ms, "cpu_ms": [x / 2 for x in ms], **more}

    return {
        "network": "tiny",
        "method": "qcfs",
        "steps": 4,
        "macs_per_step": 1_000_000,
        "weights": 1000,
        "neurons": 500,
        "states": 500,
        "spike_rate": 0.125,
        "commit": "abc",
        "load_average": [0.0, 1.0],
        "rounds": 3,
        "largest_spread": 0.02,
        "rows": [
            row(eager.NAME, [40.0, 44.0, 36.0]),
            row(f"{QUANTISED} fp32", [3.0, 3.0, 3.0], one_pass=True, steps_per_call=None),
            row(f"{QUANTISED} int8", [2.0, 2.0, 2.0], one_pass=True, steps_per_call=None, precision="int8"),
            row(PLAIN.name, [10.0, 22.0, 6.0], equal=True, ours=True),
            row(
                "ours, OpenVINO int8, K = 4", [4.0, 4.0, 4.0], equal=True, ours=True, precision="int8", steps_per_call=4
            ),
            {"name": "SpikingJelly, single-step", "status": "not installed", "reason": "No module"},
        ],
        "over_steps": [
            {"name": PLAIN.name, "steps": steps, "wall_ms": [2.5 * steps], "cpu_ms": [1.0]} for steps in (1, 2)
        ],
        "limits": [
            {"name": "s", "kind": "fp32", "amount": 2e6, "wall_ms": [1.0, 1.0, 9.0], "cpu_ms": [1.0] * 3},
            {"name": "i", "kind": "int8", "amount": 4e6, "wall_ms": [1.0] * 3, "cpu_ms": [1.0] * 3},
            {"name": "c", "kind": "copy", "amount": 1e9, "wall_ms": [1.0] * 3, "cpu_ms": [1.0] * 3},
        ],
        "stepping_loop": {
            "loop_us": [9.0, 8.0, 30.0],
            "bare_us": [2.0, 1.5, 2.5],
            "loop_once_us": [90.0, 50.0, 60.0],
            "bare_once_us": [30.0, 2.0, 4.0],
        },
        **changes,
    }


def test_a_row_is_computed_from_the_samples():
    rows = {row.name: row for row in rows_of(cell())}
    assert list(rows) == [
        eager.NAME,
        f"{QUANTISED} fp32",
        f"{QUANTISED} int8",
        PLAIN.name,
        "ours, OpenVINO int8, K = 4",
    ]
    plain = rows[PLAIN.name]
    assert (plain.wall_ms, plain.cpu_ms) == (2.5, 1.25)
    assert plain.ratio == 4.0  # of 4, 2 and 6, the ratios of the rounds
    assert plain.ratio_range == (2.0, 6.0)
    assert plain.to_floor == pytest.approx(2.5)  # 2 million operations at 2e9 per second: 1 ms
    assert plain.steps_per_pass == pytest.approx(0.8)
    assert rows[f"{QUANTISED} fp32"].wall_ms == 3.0  # a pass, not a step
    assert rows[f"{QUANTISED} fp32"].ratio == pytest.approx(10 / 3)
    assert rows["ours, OpenVINO int8, K = 4"].to_floor == pytest.approx(2.0)
    assert loop_us(cell()) == 7.0  # the median of 7, 6.5 and 27.5
    assert once_us(cell()) == 56.0  # of 60, 48 and 56
    assert over_steps(cell(), PLAIN.name) == [(1, 2.5), (2, 5.0), (4, 10.0)]
    assert line([(1, 3.0), (2, 5.0), (4, 9.0)]) == pytest.approx((1.0, 2.0, 0.0))


def record_of(*cells: dict[str, Any], quick: bool = False) -> dict[str, Any]:
    computer = dict.fromkeys(("processor", "system", "python", "torch", "onnxruntime", "openvino", "numpy"), "x")
    computer |= {
        "spikingjelly": "not installed",
        "numba": "not installed",
        "flags": ["avx2"],
        "governor": "performance",
        "pinned_to": 1,
    }
    results = {"setting": {"threads": 1, "quick": quick}, "machine": computer}
    return {"study": "peers", "results": {**results, "cells": {f"{c['network']}/{c['method']}": c for c in cells}}}


def test_the_tables_say_what_the_record_says():
    text = page(record_of(cell(), cell(method="qffs")), "peers.png")
    lines = text.splitlines()
    assert "|  | tiny, qcfs | tiny, qffs |" in lines
    assert "| the demo's way, ms per step | 10 | 10 |" in lines
    assert f"| {PLAIN.name} | 4.00 | 4.00 |" in lines
    assert "| the fastest of ours | 10.00 / 10.00 |" in lines
    steps = lines.index("| added by the stepping loop, µs per step | 7 / 7 |")
    assert lines[steps + 1] == "| added once per inference, µs | 56 / 56 |"
    assert "The stepping loop adds 7.0 µs per step and 56 µs once per inference." in text
    assert "| SpikingJelly, single-step | not installed | not installed |" in lines
    assert "- SpikingJelly, single-step: not installed (No module)." in lines
    assert f"| {PLAIN.name} | 2.500 | 1.250 | 4.00 | 2.00 – 6.00 | 4.00 | 2.50 | 0.80 | yes |" in lines
    assert f"- {PLAIN.name} over T: 2.500 ms per step and 0.000 ms per inference, a straight line to 0.0%." in lines
    assert "12.5% spike per step" in text
    assert "![Cost over size and T](peers.png)" in text
    assert "--quick" not in text
    assert "too few rounds to quote a number from" in page(record_of(cell(), quick=True), "p.png")


def test_the_readme_and_the_page_are_the_record_s():
    root = Path(__file__).parents[2]
    record = json.loads((root / "benchmarks/results/peers.json").read_text())
    readme, written = ((root / name).read_text() for name in ("README.md", "docs/peers_table.md"))
    assert summary(record) in readme
    assert written == f"{page(record, 'peers_table.png')}\n"


@pytest.fixture
def small(few: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The command on a tiny network; yields what was measured, in order."""
    done: list[str] = []
    measured = study.measured

    def noted(one: Setting, *arguments: Any, **options: Any) -> dict[str, Any]:
        done.append(f"{one.name}/{one.method}")
        return measured(one, *arguments, **options)

    monkeypatch.setattr(setting_module, "NETWORKS", {"tiny": lambda: checkpoint_of("resnet8")})
    monkeypatch.setattr(setting_module, "CHOICES", ("tiny/qcfs", "tiny/qffs"))
    monkeypatch.setattr(machine, "pin", lambda threads: [0])  # pytest's other tests go on in this process
    monkeypatch.setattr(measure, "WARM_UP_S", 0.0)
    monkeypatch.setattr(floor, "SIZE", 32)
    monkeypatch.setattr(floor, "COPIED", 4096)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(study, "measured", noted)
    threads = torch.get_num_threads()
    yield done
    torch.set_num_threads(threads)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command.main, [str(argument) for argument in arguments])


def test_the_command_measures_goes_on_and_writes_the_table(small: list[str], tmp_path: Path):
    record, table = tmp_path / "peers.json", tmp_path / "peers.md"
    result = run("--only", "tiny/qffs", "--quick", "-o", record)
    assert result.exit_code == 0, result.output
    first = json.loads(record.read_text())
    assert first["study"] == "peers"
    found = first["results"]["cells"]["tiny/qffs"]
    assert found["rounds"] == measure.QUICK_ROUNDS
    names = [row["name"] for row in found["rows"]]
    assert names[0] == eager.NAME
    assert {authors.NAME, tuned.NAME, tuned.COMPILED, *jelly.MODES.values()} < set(names)
    assert {f"{QUANTISED} fp32", f"{QUANTISED} int8", *(variant.name for variant in ours_module.VARIANTS)} < set(names)
    for row in found["rows"]:
        if row["status"] == "measured":
            assert len(row["wall_ms"]) == len(row["cpu_ms"]) == measure.QUICK_ROUNDS
            assert row["equal"] is (True if row["ours"] or row["name"] in (tuned.NAME, tuned.COMPILED) else None)
        else:
            assert row["reason"]

    result = run("--quick", "-o", record, "--table", table)
    assert result.exit_code == 0, result.output
    assert small == ["tiny/qffs", "tiny/qcfs"]
    assert "tiny/qffs: measured already" in result.stderr
    whole = json.loads(record.read_text())
    assert whole["results"]["cells"]["tiny/qffs"] == found
    assert table.read_text() == f"{page(whole, 'peers.png')}\n"
    with Image.open(tmp_path / "peers.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50

    table.unlink()
    assert run("--from-record", "-o", record, "--table", table).exit_code == 0
    assert table.read_text() == f"{page(whole, 'peers.png')}\n"
    assert len(small) == 2

    result = run("-o", record)
    assert result.exit_code == 2
    assert "was measured with quick True, now it is False" in result.stderr
    assert "Name another file with -o" in result.stderr
    whole["results"]["machine"]["processor"] = "another one"
    record.write_text(json.dumps(whole))
    result = run("--quick", "-o", record)
    assert "was measured with processor another one, now it is" in result.stderr


def test_several_are_measured_in_processes_of_their_own(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record, codes, commands = tmp_path / "peers.json", iter((0, 0, 3, -9)), []

    def started(words: list[str]) -> int:
        commands.append(words)
        return next(codes)

    monkeypatch.setattr(command, "_run", started)
    result = run("--quick", "--seconds", 5, "-o", record)
    assert result.exit_code == 0, result.output
    for words, name in zip(commands, ("tiny/qcfs", "tiny/qffs"), strict=True):
        options = f"-m {command.MODULE} --only {name} --threads 1 --seconds 5.0 --quick -o {record}".split()
        assert words == [sys.executable, *options]
    assert not small
    assert run("-o", record).exit_code == 3
    assert len(commands) == 3  # the second one is not begun
    killed = run("-o", record)
    assert killed.exit_code == 2
    assert "tiny/qcfs: its process was ended by signal 9" in killed.stderr
    assert len(commands) == 4


def test_ours_must_be_equal(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one = setting_of("resnet8", "qcfs")

    def candidates(*_: object) -> Iterator[Candidate]:
        for shift, name in enumerate(("one", "other")):

            def logits(pixels: np.ndarray, steps: int, shift: int = shift) -> np.ndarray:
                return np.full((steps, 4), float(shift))

            yield Candidate(name, logits, logits, equals="fp32", ours=True)

    monkeypatch.setattr(study, "candidates", candidates)
    with pytest.raises(
        CheckFailed, match="resnet8/qcfs: the logits of 'other' are not those of 'one', expected the same"
    ):
        study.measured(one, tmp_path, 1.0, quick=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--only", "resnet21", "-o", "r.json"],
            "--only resnet21: expected a network (tiny), or one with a method, as",
        ),
        (["--only", "tiny/if", "-o", "r.json"], "as tiny/qcfs (qcfs, qffs)."),
        (["--from-record", "-o", "r.json"], "--from-record writes nothing but a table: name it with --table."),
        (["--from-record", "--table", "t.md", "-o", "missing.json"], "missing.json: not a record ("),
        (["-o", "other.json"], "other.json: not a record of this version of the command. Name another file with -o."),
        (["-o", "old.json"], "old.json: not a record of this version of the command."),
        (["--from-record", "--table", "t.md", "-o", "old.json"], "old.json: not a record of this version"),
        ([], "Missing option '-o'"),
    ],
)
def test_bad_usage(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text('{"study": "tables"}')
    Path("old.json").write_text(json.dumps(record_of(cell(stepping_loop={"loop_us": [9.0], "bare_us": [2.0]}))))
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not small


def test_more_threads_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch):
    for variable in machine.THREAD_VARIABLES:
        monkeypatch.setenv(variable, "1")
    pinned: list[list[int]] = []
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {5, 3}, raising=False)
    monkeypatch.setattr(machine.os, "sched_setaffinity", lambda _, cores: pinned.append(cores), raising=False)
    assert machine.pin(1) == [3]
    assert pinned == [[3]]
    with pytest.raises(DynamicConfidenceError, match="--threads 3: this process may use 2 cores, expected at most as"):
        machine.pin(3)


def test_a_busy_machine_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for unremarkable in (None, 0.1):
        monkeypatch.setattr(machine, "used_share", lambda found=unremarkable: found)
        machine.warn_if_busy()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(machine, "used_share", lambda: 0.5)
    machine.warn_if_busy()
    assert "this machine is busy (50% of all cores)" in capsys.readouterr().err


def test_the_stepping_loop_is_timed_without_the_engine(tmp_path: Path):
    one = setting_of("resnet8", "qcfs")
    found = loop_cost(exported(one, PLAIN, tmp_path), one.pixels, 1, 3)
    for loop, bare in (("loop_us", "bare_us"), ("loop_once_us", "bare_once_us")):
        assert len(found[loop]) == len(found[bare]) == 3
        assert min(found[bare]) > 0
        assert np.median(found[loop]) > np.median(found[bare])
