"""What runs .onnx files against a plain session, and under every setting that must not change a result."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from dynamic_confidence.runtime.engine import BACKENDS, ENGINES, PACKAGES, Backend, Engine, open_engine
from dynamic_confidence.runtime.errors import BackendMissing, DynamicConfidenceError
from dynamic_confidence.runtime.exit_policy import policy_from_manifest
from dynamic_confidence.runtime.network_file import FORMATS
from dynamic_confidence.runtime.onnx_file import read_onnx
from dynamic_confidence.runtime.stepping import infer, run_to_the_end

METHODS = ("qcfs", "qffs")
STEPS = 12
THRESHOLD = 0.6


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    if find_spec(PACKAGES[request.param]) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


def plain_loop(path: Path, pixels: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Every call of the network, the state carried in a feed."""
    manifest = read_onnx(path)[1]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    feed = {manifest.input.name: pixels, manifest.scale_input: np.array(manifest.calibration.scale, np.float32)}
    for state in manifest.states:
        feed[state.input] = np.full([len(pixels), *state.shape[1:]], state.initial, np.float32)
    calls = []
    for _ in range(0, STEPS, manifest.steps_per_call):
        calls.append(dict(zip(names, session.run(names, feed), strict=True)))
        feed |= {state.input: calls[-1][state.output] for state in manifest.states}
    return calls


def engine_loop(engine: Engine, pixels: np.ndarray) -> list[dict[str, np.ndarray]]:
    calls = []
    engine.reset(engine.manifest.calibration.scale)
    for first in range(0, STEPS, engine.manifest.steps_per_call):
        output = engine.step(pixels if first == 0 else None)
        calls.append({k: v.copy() for k, v in output._asdict().items() if v is not None})
    return calls


def assert_same(
    found: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]], backend: Backend = "onnxruntime"
) -> None:
    """To the bit, but for the confidence of another backend than the expected one's, whose exponential is another."""
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        for name, values in one.items():
            if name == "confidence" and backend != "onnxruntime":
                np.testing.assert_allclose(values, other[name], rtol=0, atol=5e-7)
            else:
                np.testing.assert_array_equal(values, other[name], err_msg=name)
            assert values.dtype == other[name].dtype


@pytest.mark.parametrize(("method", "k"), list(product(METHODS, (1, 4))))
def test_engine_equals_a_plain_session(
    exported: Callable[..., Path], pixels: np.ndarray, method: str, k: int, backend: Backend
):
    path = exported(method=method, steps_per_call=k)
    with open_engine(path, batch=5, backend=backend) as engine:
        found = engine_loop(engine, pixels[:5])
    assert_same(found, plain_loop(path, pixels[:5]), backend)
    assert set(found[0]) == {"logits", "confidence", "label"} | ({"spikes"} if method == "qffs" else set())
    assert found[0]["logits"].shape == (k, 5, 4)


@pytest.mark.parametrize("method", METHODS)
def test_spikes_come_back_when_asked_for(
    exported: Callable[..., Path], pixels: np.ndarray, method: str, backend: Backend
):
    path = exported(method=method, steps_per_call=4, count_spikes=True)
    with open_engine(path, batch=5, backend=backend) as engine:
        found = engine_loop(engine, pixels[:5])
    assert found[0]["spikes"].shape == (4, 5, 7)
    assert found[0]["spikes"].sum() > 0
    assert ("net_spikes" in found[0]) == (method == "qffs")
    if method == "qffs":  # some spikes were taken back
        assert sum(call["net_spikes"].sum() for call in found) < sum(call["spikes"].sum() for call in found)
    assert_same(found, plain_loop(path, pixels[:5]), backend)


@pytest.mark.parametrize("method", METHODS)
def test_reset_forgets_everything(exported: Callable[..., Path], pixels: np.ndarray, method: str, backend: Backend):
    with open_engine(exported(method=method), batch=5, backend=backend) as engine:
        first = engine_loop(engine, pixels[:5])
        other = engine_loop(engine, pixels[5:10])
        engine.step()  # an odd number of calls: the other set of states is the current one now
        assert_same(engine_loop(engine, pixels[:5]), first)
    assert (first[-1]["logits"] != other[-1]["logits"]).any()


def test_the_scale_holds_until_the_next_reset(exported: Callable[..., Path], pixels: np.ndarray, backend: Backend):
    with open_engine(exported(), batch=5, backend=backend) as engine:
        engine.reset(1.0)
        sharp = engine.step(pixels[:5]).confidence.copy()
        engine.reset(1000.0)
        np.testing.assert_allclose(engine.step(pixels[:5]).confidence, 0.25, atol=0.01)
        engine.reset(1.0)
        np.testing.assert_array_equal(engine.step(pixels[:5]).confidence, sharp)


@pytest.mark.parametrize("method", METHODS)
def test_a_states_input_and_output_never_share_a_buffer(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, method: str
):
    """Every binding is watched: address ranges of what is read and what is written in one call do not overlap."""
    bound: dict[int, tuple[list[range], list[range]]] = {}

    def watch(kind: int):
        original = getattr(onnxruntime.IOBinding, ("bind_input", "bind_output")[kind])

        def bind(self, name, device, number, dtype, shape, pointer):
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            bound.setdefault(id(self), ([], []))[kind].append(range(pointer, pointer + size))
            return original(self, name, device, number, dtype, shape, pointer)

        return bind

    monkeypatch.setattr(onnxruntime.IOBinding, "bind_output", watch(1))
    monkeypatch.setattr(onnxruntime.IOBinding, "bind_input", watch(0))
    with open_engine(exported(method=method), batch=3, backend="onnxruntime") as engine:
        states = len(engine.manifest.states)
        bindings = list(bound.values())
        assert len(bindings) == 3
        for inputs, outputs in bindings:
            assert len(inputs) == states + 2
            written = sorted(outputs, key=lambda r: r.start)
            assert all(a.stop <= b.start for a, b in pairwise(written))
            assert not any(a.start < b.stop and b.start < a.stop for a in inputs for b in outputs)
        # Set 0 -> 1, 1 -> 0, and what a reset reads, which no call writes, -> 0.
        reads, writes = ([inputs[2:] for inputs, _ in bindings], [outputs[:states] for _, outputs in bindings])
        assert reads[:2] == [writes[1], writes[0]]
        assert writes[2] == writes[1]
        assert not any(a.start < b.stop and b.start < a.stop for a in reads[2] for _, o in bindings for b in o)


@pytest.fixture(scope="module")
def reference(exported: Callable[..., Path], pixels: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per method the logits of every step and the exit steps: one step per call, batch 64, one thread."""
    found = {}
    for method in METHODS:
        with open_engine(exported(method=method), batch=64, threads=1, backend="onnxruntime") as engine:
            found[method] = everything(engine, pixels)
    return found


def everything(engine: Engine, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits, steps = [], []
    policy = policy_from_manifest(engine.manifest, threshold=THRESHOLD)
    for start in range(0, len(pixels), engine.batch):
        batch = pixels[start : start + engine.batch]
        logits.append(run_to_the_end(engine, batch, policy.scale)[0])
        steps.append(infer(engine, batch, policy).steps)
    return np.concatenate(logits), np.concatenate(steps)


@pytest.mark.parametrize(
    ("backend", "optimize"),
    [("onnxruntime", True), ("onnxruntime", False), ("openvino", True), ("events", True)],
    indirect=["backend"],
)
@pytest.mark.parametrize(("method", "k", "batch", "threads"), list(product(METHODS, (1, 2, 4, 8), (1, 7, 64), (1, 2))))
def test_no_setting_changes_a_bit(
    exported: Callable[..., Path],
    pixels: np.ndarray,
    reference: dict[str, tuple[np.ndarray, np.ndarray]],
    method: str,
    k: int,
    batch: int,
    threads: int,
    optimize: bool,
    backend: Backend,
):
    count = {1: 6, 7: 24, 64: 64}[batch]  # 24 is no multiple of 7: the last batch is filled up
    with open_engine(
        exported(method=method, steps_per_call=k), batch=batch, threads=threads, optimize=optimize, backend=backend
    ) as engine:
        logits, steps = everything(engine, pixels[:count])
    np.testing.assert_array_equal(logits, reference[method][0][:count])
    np.testing.assert_array_equal(steps, reference[method][1][:count])


def test_the_reference_is_worth_comparing_with(reference: dict[str, tuple[np.ndarray, np.ndarray]]):
    for logits, steps in reference.values():
        assert len(np.unique(logits[:, -1].argmax(axis=1))) > 1
        assert len(np.unique(steps)) > 2


def test_default_threads(exported: Callable[..., Path], pixels: np.ndarray, reference, backend: Backend):
    with open_engine(str(exported(method="qcfs")), batch=64, backend=backend) as engine:
        np.testing.assert_array_equal(everything(engine, pixels)[0], reference["qcfs"][0])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("net.h5", {}, r"net\.h5: no engine runs '\.h5' files, known: \.onnx.* Make one with `dc-export"),
        ("net", {}, r"net: no engine runs '' files, known: \.onnx"),
        ("net.onnx", {"batch": 0}, r"batch 0: expected at least 1"),
        ("net.onnx", {"threads": 0}, r"threads 0: expected at least 1"),
        ("net.onnx", {}, r"net\.onnx: no such file"),
    ],
)
def test_what_cannot_be_opened(tmp_path: Path, name: str, options: dict[str, int], message: str):
    with pytest.raises(DynamicConfidenceError, match=message) as caught:
        open_engine(tmp_path / name, **options)
    assert caught.value.exit_code == 2


def test_without_onnxruntime(exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    path = exported()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        BackendMissing, match=r"ONNX Runtime is not installed.*`pip install 'dynamic-confidence\[cpu\]'"
    ):
        open_engine(path, backend="onnxruntime")
    assert BackendMissing.exit_code == 3


def test_an_input_of_another_batch_is_refused_not_repeated(
    exported: Callable[..., Path], pixels: np.ndarray, backend: Backend
) -> None:
    with (
        open_engine(exported(), batch=7, backend=backend) as engine,
        pytest.raises(
            DynamicConfidenceError, match=r"uint8 of shape \[1, 1, 12, 12\]: .* for uint8 pixels \[7, 1, 12, 12\]"
        ),
    ):
        engine.step(pixels[:1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, bool])
def test_pixels_of_another_type_are_refused(
    exported: Callable[..., Path], pixels: np.ndarray, dtype: type, backend: Backend
):
    message = rf"input {np.dtype(dtype)} of shape \[5, 1, 12, 12\]: this engine was opened for uint8 pixels \[5, 1, 12"
    with (
        open_engine(exported(), batch=5, backend=backend) as engine,
        pytest.raises(DynamicConfidenceError, match=message),
    ):
        engine.step(pixels[:5].astype(dtype))


def test_the_first_call_needs_an_image(exported: Callable[..., Path], pixels: np.ndarray, backend: Backend):
    """Otherwise it would answer for the image of the input before."""
    with open_engine(exported(), batch=5, backend=backend) as engine:
        with pytest.raises(DynamicConfidenceError, match=r"no image since the reset: give step\(\) the pixels"):
            engine.step()
        engine.step(pixels[:5])
        engine.step()
        engine.reset(1.0)
        with pytest.raises(DynamicConfidenceError, match="no image since the reset"):
            engine.step()


def test_a_closed_engine_says_so_and_has_freed_its_session(
    exported: Callable[..., Path], pixels: np.ndarray, backend: Backend
):
    with open_engine(exported(), batch=5, backend=backend) as engine:
        held = {"onnxruntime": "_session", "openvino": "_request", "events": "_pool"}[backend]
        session = weakref.ref(getattr(engine, held))
        logits = engine.step(pixels[:5]).logits
        kept = logits.copy()
    assert session() is None
    with pytest.raises(DynamicConfidenceError, match=r"this engine is closed: call step\(\) inside its `with` block"):
        engine.step(pixels[:5])
    np.testing.assert_array_equal(logits, kept)


def test_the_registry_names_what_is_there(tmp_path: Path):
    assert {".onnx"} <= set(ENGINES) <= set(FORMATS)
    for module in FORMATS.values():
        kind = import_module(f"dynamic_confidence.runtime.{module}")
        assert hasattr(kind, "read_manifest")
        assert hasattr(kind, "write_calibration")
    for entry in (*ENGINES.values(), *BACKENDS.values()):
        module, name = entry.split(":")
        assert hasattr(import_module(f"dynamic_confidence.runtime.engines.{module}"), name)


def test_an_engine_is_one_line_in_the_registry(exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ENGINES, ".net", "onnxruntime:OnnxRuntimeEngine")
    path = exported().with_suffix(".h5")
    with pytest.raises(DynamicConfidenceError, match=r"no engine runs '\.h5' files, known: \.onnx.*, \.net\. Make one"):
        open_engine(path)


def test_onnx_runtime_keeps_no_log_of_its_use(exported: Callable[..., Path], tmp_path: Path):
    """In a process of its own: the variable counts when the package is imported."""
    program = f"from dynamic_confidence.runtime.engine import open_engine\nopen_engine({str(exported())!r})"
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment = {**kept, "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []
