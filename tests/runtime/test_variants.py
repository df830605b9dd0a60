"""Several K in one file: each cut is the network exported with that K alone, and one engine runs them in any order."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamic_confidence.runtime import engine as engine_module
from dynamic_confidence.runtime.engine import BACKENDS, PACKAGES, EngineOptions, onnx_backend, open_engine
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.exit_policy import policy_from_manifest
from dynamic_confidence.runtime.manifest import Manifest, Schedule
from dynamic_confidence.runtime.onnx_file import bytes_with_manifest, graph_sha256, read_onnx, write_schedule
from dynamic_confidence.runtime.stepping import infer, run_to_the_end
from dynamic_confidence.runtime.variants import chosen_call_sizes, manifest_at, variant

Exported = Callable[..., Path]
METHODS = ("qcfs", "qffs")
SIZES = (1, 3, 4)
FORMS = [{}, {"count_spikes": True}, {"precision": "int8"}, {"precision": "int8", "form": "matmul"}, {"form": "matmul"}]


def several(exported: Exported, sizes: tuple[int, ...] = SIZES, **options: object) -> Path:
    return exported(steps_per_call=sizes[0], more_steps_per_call=sizes[1:], **options)


def schedule_of(calls: tuple[int, ...], sizes: tuple[int, ...] = SIZES) -> Schedule:
    costs = tuple((size, 0.5 + size) for size in sizes)
    return Schedule(calls, costs, "ONNX Runtime", 1, expected_ms=2.5, measured_ms=2.25)


def in_order(graph: onnx.GraphProto) -> onnx.GraphProto:
    """The same graph with its constants by name."""
    found = onnx.GraphProto()
    found.CopyFrom(graph)
    del found.initializer[:]
    found.initializer.extend(sorted(graph.initializer, key=lambda tensor: tensor.name))
    return found


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_each_cut_is_what_an_export_of_that_k_writes(exported: Exported, method: str, form: dict[str, object]):
    model, manifest = read_onnx(several(exported, method=method, **form))
    assert manifest.call_sizes == SIZES
    for size in SIZES:
        cut, described = variant(model, manifest, size)
        alone, expected = read_onnx(exported(method=method, steps_per_call=size, **form))
        assert in_order(cut.graph) == in_order(alone.graph)
        assert graph_sha256(cut) == described.provenance.graph_sha256
        assert msgspec.structs.replace(described, name="", provenance=expected.provenance) == msgspec.structs.replace(
            expected, name=""
        )
        assert cut.opset_import == alone.opset_import
    first = variant(model, manifest, 1)[1]
    assert first.provenance == read_onnx(exported(method=method, **form))[1].provenance  # to the last byte


def test_a_cut_is_an_ordinary_file(exported: Exported, tmp_path: Path):
    cut, described = variant(*read_onnx(several(exported)), 4)
    path = tmp_path / "cut.onnx"
    path.write_bytes(bytes_with_manifest(cut, described))
    assert read_onnx(path)[1] == described


def test_weights_are_stored_once(exported: Exported):
    """What a further K adds is nodes, whose number hardly grows with the weights."""
    model, _ = read_onnx(several(exported))
    alone, _ = read_onnx(exported())
    large = [tensor.name for tensor in model.graph.initializer if len(tensor.raw_data) > 100]
    assert large == [tensor.name for tensor in alone.graph.initializer if len(tensor.raw_data) > 100]
    assert len(large) > 5


def test_a_file_of_one_k_is_left_alone(exported: Exported):
    model, manifest = read_onnx(exported(steps_per_call=4))
    found, described = variant(model, manifest, 4)
    assert found is model
    assert described is manifest


def test_an_unknown_k_is_refused(exported: Exported):
    model, manifest = read_onnx(several(exported))
    message = r"network\d+: calls of 2 time steps asked for, it has 1, 3, 4\. Export others: `dc-export .* -K 1,2,3,4`"
    with pytest.raises(DynamicConfidenceError, match=message):
        variant(model, manifest, 2)


def test_a_graph_without_the_outputs_of_its_manifest(exported: Exported):
    model, manifest = read_onnx(several(exported))
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    kept = [end for end in changed.graph.output if end.name != "label@4"]
    del changed.graph.output[:]
    changed.graph.output.extend(kept)
    with pytest.raises(DynamicConfidenceError, match=r"lacks outputs of the call of 4 steps \(not listed\)\. Export"):
        variant(changed, manifest, 4)
    for node in changed.graph.node:
        if node.output[0] == "logits@3":
            node.output[0] = "elsewhere"
    with pytest.raises(DynamicConfidenceError, match=r"lacks outputs of the call of 3 steps \(logits@3\)\. Export"):
        variant(changed, manifest, 3)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(st.sampled_from(SIZES), min_size=1, max_size=8), threshold=st.sampled_from([0.4, 0.6, 0.8, 1.0]))
def test_any_schedule_answers_as_single_steps(
    exported: Exported, pixels: np.ndarray, method: str, form: dict[str, object], calls: list[int], threshold: float
):
    path = several(exported, method=method, **form)
    with open_engine(path, call_sizes=SIZES) as engine, open_engine(exported(method=method, **form)) as single:
        policy = policy_from_manifest(engine.manifest, threshold=threshold)
        for image in pixels[:6]:
            found = infer(engine, image[None], policy, calls=calls).rows[0]
            expected = infer(single, image[None], policy).rows[0]
            np.testing.assert_array_equal(found.logits, expected.logits)
            assert found._replace(ms=0, logits=expected.logits) == expected._replace(ms=0)


@pytest.mark.parametrize("size", [None, *SIZES])
def test_calls_share_their_states(exported: Exported, pixels: np.ndarray, size: int | None):
    """Also from an odd and from an even number of calls on, in batches, and after a refill."""
    path = several(exported, method="qffs")
    with open_engine(path, batch=3, call_sizes=SIZES) as engine, open_engine(exported(method="qffs"), batch=3) as one:
        logits = run_to_the_end(one, pixels[:3], 2.0).logits
        for before in (0, 1, 2):
            engine.reset(2.0)
            for call in range(before):
                engine.step(pixels[:3] if call == 0 else None, 1)
            output = engine.step(None if before else pixels[:3], size)
            assert len(output.logits) == (size or 1)
            np.testing.assert_array_equal(output.logits.swapaxes(0, 1), logits[:, before : before + (size or 1)])
        engine.refill(np.array([1]), pixels[2:3])
        np.testing.assert_array_equal(engine.step(None, 4).logits[:, 1], logits[2, :4])


@pytest.mark.parametrize("options", [{}, {"call_sizes": (1, 4)}])
def test_an_engine_has_the_calls_it_was_opened_for(exported: Exported, pixels: np.ndarray, options: dict):
    with open_engine(several(exported), **options) as engine:
        opened = options.get("call_sizes", (1,))
        assert engine.manifest.call_sizes == opened
        message = rf"a call of 3 steps: this engine \(ONNX Runtime.*\) was opened for {', '.join(map(str, opened))}\."
        with pytest.raises(DynamicConfidenceError, match=message + r" .*open_engine\(\.\.\., call_sizes=\(1, 4\)\)"):
            engine.step(pixels[:1], 3)
        engine.step(pixels[:1], 1)


def test_one_k_only_is_the_default_of_its_engine(exported: Exported, pixels: np.ndarray):
    with open_engine(several(exported), call_sizes=(4,)) as engine:
        assert len(engine.step(pixels[:1]).logits) == len(engine.step(steps=4).logits) == 4


def manifest_with(manifest: Manifest, calls: tuple[int, ...]) -> Manifest:
    return msgspec.structs.replace(manifest, schedule=schedule_of(calls))


@pytest.mark.parametrize(
    ("calls", "asked", "batch", "held", "alone"),
    [
        (None, (), 1, (1,), (1,)),
        (None, (4, 3), 1, (3, 4), None),
        (None, (4,), 7, (4,), (4,)),
        ((4, 3), (), 1, (1, 3, 4), (1,)),
        ((4,), (), 1, (1, 4), (4,)),
        ((4,), (), 2, (1,), (1,)),
        ((4,), (3,), 1, (3,), (3,)),
    ],
)
def test_which_calls_are_opened(exported: Exported, calls, asked, batch: int, held, alone):
    manifest = read_onnx(several(exported))[1]
    manifest = manifest if calls is None else manifest_with(manifest, calls)
    options = EngineOptions(batch=batch, call_sizes=asked)
    assert chosen_call_sizes(manifest, options, several=True) == held
    if alone is None:
        message = r"calls of 4, 3 steps in one engine: only ONNX Runtime on a CPU and the event-driven engine hold"
        with pytest.raises(DynamicConfidenceError, match=message):
            chosen_call_sizes(manifest, options, several=False)
    else:
        assert chosen_call_sizes(manifest, options, several=False) == alone


def test_a_schedule_stays_with_the_calls_it_needs(exported: Exported):
    manifest = manifest_with(read_onnx(several(exported))[1], (4, 1))
    assert manifest_at(manifest, (1, 4)).schedule == manifest.schedule
    assert manifest_at(manifest, (1, 3)).schedule is None
    assert manifest_at(manifest, (4,)).schedule is None


@pytest.mark.parametrize(
    ("tuned_on", "batch", "chosen"),
    [
        ("ONNX Runtime 1.31.1, CPU", 1, "onnxruntime"),
        ("OpenVINO 2026.4.1, CPU", 1, "openvino"),
        ("OpenVINO 2026.4.1, CPU", 2, "onnxruntime"),  # what so small a network runs on without a schedule
        ("something else", 1, "onnxruntime"),
    ],
)
def test_auto_keeps_to_what_the_schedule_was_tuned_on(
    exported: Exported, tmp_path: Path, tuned_on: str, batch: int, chosen: str
):
    pytest.importorskip("openvino", reason="openvino is not installed")
    path = tmp_path / "net.onnx"
    path.write_bytes(several(exported).read_bytes())
    write_schedule(path, msgspec.structs.replace(schedule_of((4,)), engine=tuned_on))
    assert onnx_backend(path, EngineOptions(batch=batch)) == chosen


@pytest.mark.parametrize("tuned_on", ["events (numba 0.68.1), CPU", "OpenVINO 2026.4.1, CPU"])
def test_a_schedule_of_what_is_not_installed_runs_on_what_is(
    exported: Exported, tmp_path: Path, tuned_on: str, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "net.onnx"
    path.write_bytes(several(exported).read_bytes())
    write_schedule(path, msgspec.structs.replace(schedule_of((4,)), engine=tuned_on))
    missing = "numba" if tuned_on.startswith("events") else "openvino"
    monkeypatch.setattr(engine_module, "find_spec", lambda name: None if name == missing else True)
    assert onnx_backend(path, EngineOptions()) == "onnxruntime"


def test_auto_leaves_a_file_to_onnxruntime_that_its_choice_refuses(exported: Exported, monkeypatch: pytest.MonkeyPatch):
    def refused(path: Path, options: EngineOptions) -> None:
        raise DynamicConfidenceError("not a graph that this engine knows.")

    monkeypatch.setattr(engine_module, "onnx_backend", lambda path, options: "events")
    monkeypatch.setattr(engine_module, "BACKENDS", BACKENDS | {"events": "refusing:Engine"})
    monkeypatch.setitem(sys.modules, "dynamic_confidence.runtime.engines.refusing", SimpleNamespace(Engine=refused))
    with open_engine(exported()) as engine:
        assert engine.backend.startswith("ONNX Runtime")
    with pytest.raises(DynamicConfidenceError, match="not a graph that this engine knows"):
        open_engine(exported(), backend="events")


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_input_follows_the_schedule_of_the_file(exported: Exported, pixels: np.ndarray, tmp_path: Path, backend):
    """Where an engine can; the answers are the same wherever it cannot."""
    pytest.importorskip(PACKAGES[backend], reason=f"{backend} is not installed")
    path = tmp_path / "net.onnx"
    path.write_bytes(several(exported).read_bytes())
    write_schedule(path, schedule_of((4, 1, 3)))
    sizes: list[int] = []
    with open_engine(path, backend=backend) as engine, open_engine(exported(), backend=backend) as single:
        step = engine.step

        def counted(new: np.ndarray | None = None, steps: int | None = None):
            output = step(new, steps)
            sizes.append(len(output.logits))
            return output

        engine.step = counted  # type: ignore[method-assign]
        policy = policy_from_manifest(engine.manifest, threshold=1.0)
        found, expected = (infer(one, pixels[:1], policy).rows[0] for one in (engine, single))
    np.testing.assert_array_equal(found.logits, expected.logits)
    assert found.steps == 12
    assert sizes == ([1] * 12 if backend == "openvino" else [4, 1, 3, 3, 3])
    with open_engine(path, batch=2, backend=backend) as engine:
        assert engine.manifest.call_sizes == (1,)
