"""`refill` on every engine of .onnx files, networks of both methods: the rows start anew, the others go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from inspect import signature
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from dynamic_confidence.runtime.continuous_batching import answer_stream
from dynamic_confidence.runtime.engine import BACKENDS, ENGINES, PACKAGES, Backend, Engine, open_engine
from dynamic_confidence.runtime.engines.onnxruntime import _Buffer
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.exit_policy import policy_from_manifest
from dynamic_confidence.runtime.manifest import Metric
from dynamic_confidence.runtime.stepping import call_input, infer

METHODS = ("qcfs", "qffs")
FORMS = [{"steps_per_call": 1}, {"steps_per_call": 4}, {"steps_per_call": 4, "frames": True}]
CALLS = 3
Exported = Callable[..., Path]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    pytest.importorskip(PACKAGES[request.param], reason=f"{request.param} is not installed")
    return request.param


def trace(engine: Engine, images: np.ndarray | None, calls: int = CALLS) -> list[list[np.ndarray]]:
    """Logits and labels of so many calls, the first of them with these images."""
    found = []
    for call in range(calls):
        new = None if call or images is None else call_input(images, 0, engine)
        output = engine.step(new)
        found.append([output.logits.copy(), output.label.copy()])
    return found


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize(("method", "form"), list(product(METHODS, FORMS)))
def test_the_rows_start_anew_and_the_others_go_on(
    exported: Exported, pixels: np.ndarray, backend: Backend, method: str, form: dict[str, object], before: int
):
    """After any number of calls: the states that the next one reads lie here or there."""
    images, rows = pixels[:5], np.array([3, 1])
    with open_engine(exported(method=method, **form), batch=5, backend=backend) as engine:
        engine.reset(2.0)
        undisturbed = trace(engine, images, before + CALLS)[before:]
        engine.reset(2.0)
        fresh = trace(engine, pixels[[0, 9, 0, 8, 0]])
        engine.reset(2.0)
        trace(engine, images, before)
        engine.refill(rows, pixels[[8, 9]])
        engine.refill(np.array([], np.int64), pixels[:0])
        for call, found in enumerate(trace(engine, None)):
            for value, alone, expected in zip(found, fresh[call], undisturbed[call], strict=True):
                np.testing.assert_array_equal(value[:, [3, 1]], alone[:, [3, 1]])
                np.testing.assert_array_equal(value[:, [0, 2, 4]], expected[:, [0, 2, 4]])
    assert (fresh[-1][0][:, [3, 1]] != undisturbed[-1][0][:, [3, 1]]).any()


@pytest.mark.parametrize(("method", "form"), list(product(METHODS, FORMS)))
@pytest.mark.parametrize("metric", ["max-softmax", "patience"])
def test_a_stream_answers_as_single_images(
    exported: Exported, pixels: np.ndarray, backend: Backend, method: str, form: dict[str, object], metric: Metric
):
    path = exported(method=method, **form)
    with open_engine(path, backend=backend) as one, open_engine(path, batch=7, backend=backend) as engine:
        policy = replace(policy_from_manifest(engine.manifest, threshold=0.6), metric=metric)
        found = dict(answer_stream(engine, pixels, policy))
        expected = [infer(one, image[None], policy).rows[0] for image in pixels]
    assert sorted(found) == list(range(len(pixels)))
    for number, answer in enumerate(expected):
        np.testing.assert_array_equal(found[number].logits, answer.logits)
        assert found[number]._replace(ms=0, logits=answer.logits) == answer._replace(ms=0)
    assert len({answer.steps for answer in expected}) > 2


def test_a_reset_forgets_a_refill(exported: Exported, pixels: np.ndarray, backend: Backend):
    with open_engine(exported(), batch=2, backend=backend) as engine:
        expected = trace(engine, pixels[:2])
        engine.refill(np.array([1]), pixels[5:6])
        engine.reset(engine.manifest.calibration.scale)
        for found, wanted in zip(trace(engine, pixels[:2]), expected, strict=True):
            np.testing.assert_array_equal(found[0], wanted[0])


def test_what_the_last_call_returned_stays(exported: Exported, pixels: np.ndarray, backend: Backend):
    with open_engine(exported(), batch=2, backend=backend) as engine:
        output = engine.step(pixels[:2])
        kept = output.logits.copy()
        engine.refill(np.array([0, 1]), pixels[2:4])
        np.testing.assert_array_equal(output.logits, kept)


@pytest.mark.parametrize(
    ("rows", "shape", "dtype", "message"),
    [
        ([0, 2], (2, 1, 12, 12), np.uint8, r"rows \[0, 2\]: expected whole numbers from 0 to 1, since the batch is 2"),
        ([-1], (1, 1, 12, 12), np.uint8, r"rows \[-1\]: expected whole numbers from 0 to 1"),
        ([0.0], (1, 1, 12, 12), np.uint8, r"rows \[0\.0\]: expected whole numbers"),
        ([True, False], (1, 1, 12, 12), np.uint8, r"rows \[True, False\]: expected whole numbers"),
        ([[0]], (1, 1, 12, 12), np.uint8, r"rows \[\[0\]\]: expected whole numbers"),
        ([1, 1], (2, 1, 12, 12), np.uint8, r"rows \[1, 1\]: expected each place of the batch once"),
        ([1], (2, 1, 12, 12), np.uint8, r"uint8 of shape \[2, 1, 12, 12\] for 1 rows: expected uint8 pixels \[1, 1, 1"),
        ([1], (1, 1, 12, 12), np.float32, r"input float32 of shape \[1, 1, 12, 12\] for 1 rows: expected uint8"),
    ],
)
def test_what_does_not_fit_changes_nothing(
    exported: Exported,
    pixels: np.ndarray,
    backend: Backend,
    rows: list,
    shape: tuple[int, ...],
    dtype: type,
    message: str,
):
    with open_engine(exported(), batch=2, backend=backend) as engine:
        expected = trace(engine, pixels[:2], 2)[1]
        engine.reset(engine.manifest.calibration.scale)
        trace(engine, pixels[:2], 1)
        with pytest.raises(DynamicConfidenceError, match=message):
            engine.refill(np.array(rows), np.zeros(shape, dtype))
        np.testing.assert_array_equal(trace(engine, None, 1)[0][0], expected[0])


def test_there_must_be_an_image_and_an_open_engine(exported: Exported, pixels: np.ndarray, backend: Backend):
    with open_engine(exported(), batch=2, backend=backend) as engine:
        with pytest.raises(DynamicConfidenceError, match=r"no image since the reset: give step\(\) the pixels"):
            engine.refill(np.array([0]), pixels[:1])
        engine.step(pixels[:2])
    with pytest.raises(DynamicConfidenceError, match=r"this engine is closed: call refill\(\) inside its `with` block"):
        engine.refill(np.array([0]), pixels[:1])


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_buffer_is_written_in_part(elsewhere: bool):
    """Straight into what the session reads; from another device by way of the host."""
    buffer = _Buffer(np.zeros((4, 3), np.float32), "cpu")
    if elsewhere:
        buffer._host = None
    buffer.put(np.array([3, 1]), 0.5)
    found = buffer._memory.numpy()
    np.testing.assert_array_equal(found[:, 0], [0, 0.5, 0, 0.5])
    assert elsewhere or buffer._memory.data_ptr() == buffer._host.ctypes.data  # type: ignore[union-attr]


def test_every_engine_has_it():
    entries = {*ENGINES.values(), *BACKENDS.values()}
    assert len(entries) >= 2
    for entry in entries:
        module, name = entry.split(":")
        engine = getattr(import_module(f"dynamic_confidence.runtime.engines.{module}"), name)
        assert list(signature(engine.refill).parameters) == ["self", "rows", "pixels"], entry
