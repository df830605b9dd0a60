"""The event-driven engine: the bits of the others; what it cannot do; when it is chosen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import GREY, random_checkpoint
from torch import nn

from dynamic_confidence.models import registry
from dynamic_confidence.models.activations import activation_factory
from dynamic_confidence.runtime import engine as engine_module
from dynamic_confidence.runtime.engine import Backend, EngineOptions, holds_several, onnx_backend, open_engine
from dynamic_confidence.runtime.engines import events as module
from dynamic_confidence.runtime.engines.events_network import Pool
from dynamic_confidence.runtime.engines.events_reader import network_from_onnx
from dynamic_confidence.runtime.errors import BackendMissing, DynamicConfidenceError
from dynamic_confidence.runtime.exit_policy import policy_from_manifest
from dynamic_confidence.runtime.manifest import Preprocessing
from dynamic_confidence.runtime.onnx_file import read_onnx
from dynamic_confidence.runtime.stepping import infer, run_to_the_end
from dynamic_confidence.toolchain.export import ExportOptions, export

pytest.importorskip("numba", reason="numba is not installed")
METHODS = ("qcfs", "qffs")
Exported = Callable[..., Path]


def everything(path: Path, pixels: np.ndarray, backend: Backend, **options: Any) -> tuple[np.ndarray, ...]:
    """Logits, confidences and spikes of every step, labels and exit steps."""
    with open_engine(path, batch=len(pixels), backend=backend, **options) as engine:
        policy = policy_from_manifest(engine.manifest, threshold=0.6)
        full, answers = run_to_the_end(engine, pixels, policy.scale), infer(engine, pixels, policy)
    counts = [np.zeros(0) if found is None else found for found in (full.spikes, full.net_spikes)]
    return answers.confidence, full.logits, *counts, answers.label, answers.steps


def assert_equal(path: Path, pixels: np.ndarray, **options: Any) -> None:
    found = everything(path, pixels, "events", **options)
    expected = everything(path, pixels, "onnxruntime")
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for one, other in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(one, other)
    logits, spikes = expected[1:3]  # axes: input, step, class or layer
    assert len(np.unique(logits[:, -1], axis=0)) == len(pixels), "a network that does not tell these images apart"
    assert spikes[:, :, -1].any(), "a network whose last layer is silent"


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (3, 2)])
@pytest.mark.parametrize(
    ("method", "precision", "k"), list(product(METHODS, ("int8", "fp32"), (1, 4))), ids=lambda value: str(value)
)
def test_equals_onnxruntime(
    exported: Exported, pixels: np.ndarray, method: str, precision: str, k: int, batch: int, threads: int
):
    path = exported(method=method, steps_per_call=k, precision=precision, count_spikes=True)
    assert_equal(path, pixels[:batch], threads=threads)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("resnet8", {"width": 20}),
        ("resnet18", {"width": 8, "form": "imagenet"}),
        ("resnet50", {"width": 8, "form": "imagenet"}),
        ("vgg16", {"width": 8, "hidden": 16}),
    ],
)
def test_every_architecture(architecture: str, arguments: dict[str, Any], method: str, tmp_path: Path):
    """Strides, bottlenecks, shortcuts, pools that overlap or sum a plane, a hidden layer; the image in colour."""
    checkpoint = random_checkpoint(architecture, Preprocessing("RGB", 32, 32, 3 * (0.4,), 3 * (0.3,)), **arguments)
    path = tmp_path / "net.onnx"
    options = ExportOptions(method, 6, precision="int8", count_spikes=True)
    path.write_bytes(export(checkpoint, "0" * 64, options).content)
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32)).astype(np.uint8)
    assert_equal(path, images)


class Skip(nn.Module):
    """The image into a later layer and into the read-out; a pool of a pool."""

    def __init__(self, *, classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        activation = activation_factory("lsq", None, None)
        self.a, self.spikes_a = nn.Conv2d(in_channels, width, 3, 1, 1), activation()
        self.b, self.c, self.spikes_b = nn.Conv2d(width, width, 1), nn.Conv2d(in_channels, width, 3, 1, 1), activation()
        self.pools = nn.Sequential(nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2, 1))
        self.d, self.spikes_d = nn.Conv2d(width, width, 5), activation()
        self.readout, self.skip = nn.Linear(width, classes), nn.Conv2d(in_channels, classes, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b = self.spikes_b(self.b(self.spikes_a(self.a(x))) + self.c(x))
        d = self.spikes_d(self.d(self.pools(b)))
        return self.readout(torch.flatten(d, 1)) + torch.flatten(self.skip(x), 1)


@pytest.mark.parametrize(("method", "precision", "k"), list(product(METHODS, ("int8", "fp32"), (1, 4))))
def test_an_image_that_enters_late(
    pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, precision: str, k: int
):
    monkeypatch.setitem(registry.ARCHITECTURES, "skip", Skip)
    path = tmp_path / "net.onnx"
    options = ExportOptions(method, 6, k, precision=precision, count_spikes=True)
    path.write_bytes(export(random_checkpoint("skip", GREY, width=16), "0" * 64, options).content)
    assert_equal(path, pixels[:3])


def test_one_thread_unless_told_otherwise(exported: Exported):
    with open_engine(exported(), backend="events") as engine:
        assert isinstance(engine, module.EventsEngine)
        assert engine.threads == 1


@pytest.mark.parametrize(("method", "k"), list(product(METHODS, (1, 4))))
def test_an_image_for_every_step(exported: Exported, pixels: np.ndarray, method: str, k: int):
    path = exported(method=method, steps_per_call=k, frames=True, precision="int8")
    frames = pixels[:15].reshape(3, 5, 1, 12, 12)
    found = []
    for backend in ("events", "onnxruntime"):
        with open_engine(path, batch=5, backend=backend) as engine:
            found.append(run_to_the_end(engine, frames, 1.0).logits)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("method", METHODS)
def test_calls_of_every_size_in_any_order(exported: Exported, pixels: np.ndarray, method: str):
    path = exported(method=method, steps_per_call=1, more_steps_per_call=(2, 4), precision="int8")
    assert holds_several(path, EngineOptions(backend="events"))
    with open_engine(path, batch=3, backend="onnxruntime", call_sizes=(1,)) as engine:
        expected = run_to_the_end(engine, pixels[:3], 1.0).logits[:, :7]
    with open_engine(path, batch=3, backend="events", call_sizes=(1, 2, 4)) as engine:
        found = [engine.step(pixels[:3] if i == 0 else None, k).logits.copy() for i, k in enumerate((2, 4, 1))]
    np.testing.assert_array_equal(np.concatenate(found).swapaxes(0, 1), expected)


def test_it_reads_the_same_network_from_a_call_of_any_size(exported: Exported):
    one, four = (
        network_from_onnx(*read_onnx(exported(precision="int8", steps_per_call=k, method="qffs"))) for k in (1, 4)
    )
    assert [node.name for node in one.nodes] == [node.name for node in four.nodes]
    assert sum(isinstance(node, Pool) for node in one.nodes) == 1
    for a, b in zip((*one.nodes, one.readout), (*four.nodes, four.readout), strict=True):
        assert a.shape == b.shape
        assert isinstance(a, Pool) or len(a.synapses) == len(b.synapses)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ({"precision": "fp16"}, {}, r"\.onnx: its precision is fp16, which the events engine would not round alike"),
        (
            {"precision": "int8", "form": "matmul"},
            {},
            r"its form is matmul, for ONNX Runtime. Use --backend onnxruntime, or export it again: `dc-export "
            r"model\.pt --precision int8`, without --form matmul\.",
        ),
        ({}, {"provider": "cuda"}, "--provider cuda is ONNX Runtime's, events run on the CPU. Use --backend onnxr"),
        ({}, {"optimize": False}, "optimize=False: the events engine has one form only. Use backend='onnxruntime'"),
        ({}, {"speculate": True}, r"--speculate is for \.plan files"),
        ({}, {"call_sizes": (1, 3)}, r"calls of 1, 3 time steps asked for, it has 1"),
    ],
)
def test_what_it_cannot_do(exported: Exported, form: dict[str, Any], options: dict[str, Any], message: str):
    with pytest.raises(DynamicConfidenceError, match=message) as caught:
        open_engine(exported(**form), backend="events", **options)
    assert caught.value.exit_code == 2


def test_without_numba(exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(BackendMissing, match=r"numba is not installed.*`pip install 'dynamic-confidence\[events\]'"):
        open_engine(exported(), backend="events")
    monkeypatch.delitem(sys.modules, "numba")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "numba.py").write_text("raise ImportError('libLLVM.so: cannot open shared object file')\n")
    with pytest.raises(BackendMissing, match=r"is installed but does not load \(libLLVM\.so: cannot open"):
        module.load_numba()
    (tmp_path / "numba.py").write_text("import no_such_module\n")
    with pytest.raises(BackendMissing, match="numba is installed without 'no_such_module'"):
        module.load_numba()


UNWRITABLE = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
from dynamic_confidence.runtime.engines.events import load_kernels
load_kernels()
"""


def test_nowhere_to_keep_what_was_compiled():
    done = subprocess.run([sys.executable, "-c", UNWRITABLE], capture_output=True, text=True, timeout=120)
    assert "DynamicConfidenceError: numba cannot keep its compiled kernels (" in done.stderr
    assert "Set NUMBA_CACHE_DIR to a folder that can be written" in done.stderr


def test_auto_takes_events_for_wide_networks_on_one_thread(exported: Exported, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_module.platform, "machine", lambda: "x86_64")
    path, one = exported(precision="int8"), EngineOptions(threads=1)
    assert onnx_backend(path, one) != "events"
    monkeypatch.setattr(engine_module, "EVENTS_CHANNELS", {"fp32": 5, "int8": 4})
    assert onnx_backend(path, one) == "events"
    assert onnx_backend(path, EngineOptions(threads=1, batch=8, call_sizes=(1,))) == "events"
    assert onnx_backend(path, EngineOptions()) != "events"
    assert onnx_backend(path, EngineOptions(threads=2)) != "events"
    assert onnx_backend(exported(), one) != "events"
    with open_engine(path, threads=1) as engine:
        assert engine.backend.startswith("events (numba ")
        assert engine.backend.endswith("), CPU")
    monkeypatch.setattr(engine_module.platform, "machine", lambda: "aarch64")
    assert onnx_backend(path, one) == "onnxruntime"
    monkeypatch.setattr(engine_module.platform, "machine", lambda: "x86_64")
    monkeypatch.setitem(sys.modules, "numba", None)
    assert onnx_backend(path, one) != "events"
