"""The OpenVINO engine: what it rewrites stays exact and runs on integers; what it cannot do; when it is chosen."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import random_checkpoint

from dynamic_confidence.runtime import engine as engine_module
from dynamic_confidence.runtime.engine import X86, Backend, EngineOptions, onnx_backend, open_engine
from dynamic_confidence.runtime.engines import openvino as module
from dynamic_confidence.runtime.engines.openvino_model import model_from_onnx
from dynamic_confidence.runtime.errors import BackendMissing, DynamicConfidenceError
from dynamic_confidence.runtime.exit_policy import policy_from_manifest
from dynamic_confidence.runtime.manifest import Manifest, Preprocessing
from dynamic_confidence.runtime.onnx_file import bytes_with_manifest, graph_sha256, read_onnx
from dynamic_confidence.runtime.stepping import infer, run_to_the_end
from dynamic_confidence.toolchain.export import ExportOptions, export

try:
    openvino = module.load_openvino()
except BackendMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)
METHODS = ("qcfs", "qffs")
Exported = Callable[..., Path]


def everything(path: Path, pixels: np.ndarray, backend: Backend, **options: Any) -> tuple[np.ndarray, ...]:
    """Logits and spikes of every step, labels and exit steps."""
    with open_engine(path, batch=len(pixels), backend=backend, **options) as engine:
        policy = policy_from_manifest(engine.manifest, threshold=0.6)
        full, answers = run_to_the_end(engine, pixels, policy.scale), infer(engine, pixels, policy)
    spikes = np.zeros(0) if full.spikes is None else full.spikes
    return full.logits, spikes, answers.label, answers.steps


def assert_equal(path: Path, pixels: np.ndarray, **options: Any) -> tuple[np.ndarray, ...]:
    found, expected = everything(path, pixels, "openvino", **options), everything(path, pixels, "onnxruntime")
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    return found


def convolutions(path: Path) -> list[tuple[str, str]]:
    """Kernel and precision of the result, of every convolution of a network that has a weight in the file."""
    network, manifest = read_onnx(path)
    model = model_from_onnx(network, manifest, 1)
    compiled = openvino.Core().compile_model(model, "CPU", module.SETTINGS)
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    found = [{key: info[key].astype(str) for key in info} for info in infos]
    return [
        (info["primitiveType"], info["outputPrecisions"])
        for info in found
        if info["layerType"] == "Convolution" and "/i" in info["originalLayersNames"]
    ]


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (7, 2)])
@pytest.mark.parametrize(("method", "k"), list(product(METHODS, (1, 2, 4, 8))))
def test_int8_equals_onnxruntime(exported: Exported, pixels: np.ndarray, method: str, k: int, batch: int, threads: int):
    path = exported(method=method, steps_per_call=k, precision="int8", count_spikes=True)
    logits, spikes, *_ = assert_equal(path, pixels[:batch], threads=threads)
    assert spikes.sum() > 0
    assert len(np.unique(logits)) > 10


@pytest.mark.parametrize(("method", "precision"), list(product(METHODS, ("fp32", "int8"))))
def test_an_image_for_every_step(exported: Exported, pixels: np.ndarray, method: str, precision: str):
    path = exported(method=method, steps_per_call=4, frames=True, precision=precision)
    frames = pixels[:15].reshape(3, 5, 1, 12, 12)
    found = []
    for backend in ("openvino", "onnxruntime"):
        with open_engine(path, batch=5, backend=backend) as engine:
            found.append(run_to_the_end(engine, frames, 1.0).logits)
    np.testing.assert_array_equal(*found)


@pytest.fixture(scope="module")
def pooling(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """A VGG whose int8 convolutions also see sums of four spikes, and a hidden layer that sees a sum of a plane."""
    folder, images = tmp_path_factory.mktemp("pooling"), Preprocessing("L", 32, 32, (0.3,), (0.4,))
    checkpoint = random_checkpoint("vgg16", images, hidden=8)

    def make(method: str, k: int) -> Path:
        path = folder / f"{method}{k}.onnx"
        if not path.exists():
            options = ExportOptions(method, 6, k, precision="int8")
            path.write_bytes(export(checkpoint, "0" * 64, options).content)
        return path

    return make


@pytest.mark.parametrize(("method", "k"), list(product(METHODS, (1, 2))))
def test_sums_of_spikes_are_exact_too(pooling: Callable[[str, int], Path], method: str, k: int):
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 32, 32)).astype(np.uint8)
    logits, *_ = assert_equal(pooling(method, k), images)
    assert len(np.unique(logits)) > 10


@pytest.mark.skipif(platform.machine() not in X86, reason="looks for the names of x86 kernels")
@pytest.mark.parametrize(("method", "k"), list(product(METHODS, (1, 2))))
def test_int8_runs_on_integers_and_keeps_all_bits_of_a_current(
    exported: Exported, pooling: Callable[[str, int], Path], method: str, k: int
):
    for path in (exported(method=method, steps_per_call=k, precision="int8"), pooling(method, k)):
        weights = [tensor for tensor in read_onnx(path)[0].graph.initializer if tensor.name.endswith("/w.int8")]
        found = convolutions(path)
        assert len(weights) >= 7
        assert sum("I8" in kernel for kernel, _ in found) == len(weights)
        assert {precision for _, precision in found} == {"f32"}
    assert not any("I8" in kernel for kernel, _ in convolutions(exported(method=method, steps_per_call=k)))


SUMS = """
import sys
import numpy as np, onnx
from dynamic_confidence.runtime.engines.openvino import load_openvino
openvino = load_openvino()
from dynamic_confidence.runtime.engines.openvino_model import translate
from dynamic_confidence.runtime.engines.openvino_operators import Value, plain
network = onnx.load_model_from_string(sys.stdin.buffer.read())
x = openvino.opset13.parameter([1, 32, 16, 16], np.float32)
values = {"x": Value(x.output(0))}
translate(network, values, signed=sys.argv[1] == "signed")
model = openvino.Model([plain(values["y"])], [x], "sums")
compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
layers = [{k: v.astype(str) for k, v in n.get_rt_info().items()} for n in compiled.get_runtime_model().get_ops()]
kernels = [info["primitiveType"] for info in layers if info["layerType"] == "Convolution"]
print(any("I8" in kernel for kernel in kernels), end=" ")
for z in (1, -1)[: 1 + (sys.argv[1] == "signed")]:
    found = next(iter(compiled([np.full((1, 32, 16, 16), z, np.float32)]).values()))
    print(found[0, 0, 0, 0], end=" ")
"""


def sums(size: int) -> onnx.ModelProto:
    """32 channels of spikes z - 0, summed over size x size, then an int8 convolution with weights of 127 / 1024."""
    constants = {
        "nothing": np.float32(0),
        "area": np.float32(size * size),
        "one": np.float32(1),
        "zero": np.int8(0),
        "w": np.full((16, 32, 1, 1), 127, np.int8),
        "unit": np.full(16, 2.0**-10, np.float32),
    }
    nodes = [
        helper.make_node("Sub", ["x", "nothing"], ["z"]),
        helper.make_node("AveragePool", ["z"], ["mean"], kernel_shape=[size, size], strides=[size, size]),
        helper.make_node("Mul", ["mean", "area"], ["sum"]),
        helper.make_node("QuantizeLinear", ["sum", "one", "zero"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "one", "zero"], ["spikes"]),
        helper.make_node("DequantizeLinear", ["w", "unit"], ["weight"], axis=0),
        helper.make_node("Conv", ["spikes", "weight"], ["y"], kernel_shape=[1, 1]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 32, 16, 16]), ("y", None))
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "sums", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.skipif(platform.machine() not in X86, reason="processors without VNNI are x86")
@pytest.mark.parametrize("processor", ["AVX2", "AVX512_CORE", "ALL"])
@pytest.mark.parametrize(
    ("sign", "size", "integers"),
    [("unsigned", 8, True), ("signed", 2, True), ("signed", 8, True), ("signed", 16, False)],
)
def test_sums_do_not_overflow_without_vnni(processor: str, sign: str, size: int, integers: bool):
    """Two products are added in int16 there. 256 spikes of either sign do not fit, and stay in float32."""
    done = subprocess.run(
        [sys.executable, "-c", SUMS, sign],
        input=sums(size).SerializeToString(),
        capture_output=True,
        env={"ONEDNN_MAX_CPU_ISA": processor, "PATH": ""},
        timeout=60,
    )
    total = 32 * size * size * 127 / 1024
    expected = [str(integers), *(str(sign * total) for sign in ((1, -1) if sign == "signed" else (1,)))]
    assert done.stdout.decode().split() == expected, done.stderr.decode()


def test_equal_logits_give_the_lowest_class(exported: Exported, pixels: np.ndarray, tmp_path: Path):
    network, manifest = read_onnx(exported(steps_per_call=4))
    for tensor in network.graph.initializer:
        if tensor.name in ("readout/i0/w", "readout/i0/b"):
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))
    path = tmp_path / "equal.onnx"
    path.write_bytes(with_this_graph(network, manifest))
    with open_engine(path, batch=3, backend="openvino") as engine:
        output = engine.step(pixels[:3])
    assert not output.logits.any()
    assert (output.label == 0).all()
    np.testing.assert_allclose(output.confidence, 0.25)


def with_this_graph(network: onnx.ModelProto, manifest: Manifest) -> bytes:
    provenance = msgspec.structs.replace(manifest.provenance, graph_sha256=graph_sha256(network))
    return bytes_with_manifest(network, msgspec.structs.replace(manifest, provenance=provenance))


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        (
            {"precision": "fp16"},
            {},
            r"\.onnx: its precision is fp16, OpenVINO's engine takes fp32 and int8. Leave out --b",
        ),
        (
            {"precision": "int8", "form": "matmul"},
            {},
            r"its form is matmul, for ONNX Runtime. Leave out --backend openvino, or export it again: `dc-export "
            r"model\.pt --precision int8`, without --form matmul\.",
        ),
        (
            {},
            {"provider": "cuda"},
            "--provider cuda is ONNX Runtime's, OpenVINO runs on the CPU. Leave out --backend op",
        ),
        ({}, {"optimize": False}, "optimize=False: OpenVINO always optimises. Use backend='onnxruntime'"),
        ({}, {"speculate": True}, r"--speculate is for \.plan files"),
    ],
)
def test_what_it_cannot_do(exported: Exported, form: dict[str, Any], options: dict[str, Any], message: str):
    with pytest.raises(DynamicConfidenceError, match=message) as caught:
        open_engine(exported(**form), backend="openvino", **options)
    assert caught.value.exit_code == 2


def test_a_graph_that_differs_from_its_manifest(exported: Exported, tmp_path: Path):
    network, manifest = read_onnx(exported())
    path = tmp_path / "net.onnx"
    path.write_bytes(bytes_with_manifest(network, msgspec.structs.replace(manifest, states=manifest.states[1:])))
    with pytest.raises(DynamicConfidenceError, match=r"the graph's inputs are not those of its manifest: 'v_in\."):
        open_engine(path, backend="openvino")


@pytest.mark.parametrize("kind", ["QuantizeLinear", "DequantizeLinear"])
def test_spikes_in_other_units_are_refused(exported: Exported, tmp_path: Path, kind: str):
    """It reads bytes as the numbers that they are; a graph that says otherwise is not ours."""
    network, manifest = read_onnx(exported(precision="int8"))
    stored = {tensor.name for tensor in network.graph.initializer}
    node = next(node for node in network.graph.node if node.op_type == kind and node.input[0] not in stored)
    network.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    node.input[1] = "half"
    path = tmp_path / "net.onnx"
    path.write_bytes(with_this_graph(network, manifest))
    with pytest.raises(DynamicConfidenceError, match=r"has scale 0\.5, zero point 0 \(int8\); expected 1, 0 \(int8\)"):
        open_engine(path, backend="openvino")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda node: node.input.__setitem__(0, "missing"), "node 'pixels' reads 'missing', which nothing makes"),
        (lambda node: setattr(node, "op_type", "Transpose"), "node 'pixels' is a Transpose, expected Add, ArgMax, "),
    ],
)
def test_a_graph_that_it_cannot_read(exported: Exported, tmp_path: Path, damage: Callable[..., None], why: str):
    network, manifest = read_onnx(exported())
    damage(network.graph.node[0])
    path = tmp_path / "net.onnx"
    path.write_bytes(with_this_graph(network, manifest))
    message = rf"OpenVINO \d+\S+ cannot load it: {why}.*Leave out --backend openvino, or export .*`dc-export model\.pt`"
    with pytest.raises(DynamicConfidenceError, match=message):
        open_engine(path, backend="openvino")


def test_a_kernel_that_is_not_exact_is_refused(exported: Exported, monkeypatch: pytest.MonkeyPatch):
    def node(kernel: str) -> SimpleNamespace:
        info = {"primitiveType": SimpleNamespace(astype=lambda _: kernel)}
        return SimpleNamespace(get_rt_info=lambda: info, get_friendly_name=lambda: "layer1/i0")

    nodes = [node("jit_gemm_f32"), node("winograd_acl_f32")]
    compiled = SimpleNamespace(get_runtime_model=lambda: SimpleNamespace(get_ops=lambda: nodes))
    message = r"on this processor OpenVINO computes 'layer1/i0' with the kernel winograd_acl_f32, which is not exact"
    monkeypatch.setattr(openvino.Core, "compile_model", lambda *_: compiled)
    with pytest.raises(DynamicConfidenceError, match=message):
        open_engine(exported(), backend="openvino")
    nodes.pop()
    module._check_kernels(Path("net.onnx"), compiled)  # type: ignore[arg-type]


def test_without_openvino(exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        BackendMissing, match=r"OpenVINO is not installed.*`pip install 'dynamic-confidence\[openvino\]'"
    ):
        open_engine(exported(), backend="openvino")
    monkeypatch.delitem(sys.modules, "openvino")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "openvino.py").write_text("raise ImportError('libopenvino.so: cannot open shared object file')\n")
    with pytest.raises(BackendMissing, match=r"is installed but does not load \(libopenvino\.so: cannot open"):
        module.load_openvino()
    (tmp_path / "openvino.py").write_text("import no_such_module\n")
    with pytest.raises(BackendMissing, match="OpenVINO is installed without 'no_such_module'"):
        module.load_openvino()


TOLD = """
import sys
told = []
sys.addaudithook(lambda event, _: told.append(event))
from dynamic_confidence.runtime.engines.openvino import load_openvino
openvino = load_openvino()
openvino.Core()
print(sorted({event for event in told if event.startswith(("socket.", "os.fork", "subprocess."))}))
print([name for name in sys.modules if name.startswith("openvino_telemetry")])
"""


def test_nobody_is_told_that_openvino_is_used(tmp_path: Path):
    """By itself it forks a process for that when it is imported, and leaves an identity in the home folder."""
    environment = {"HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", TOLD], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == "[]\n[]\n", done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before", [None, "a module"])
def test_the_telemetry_of_others_stays_as_it_was(monkeypatch: pytest.MonkeyPatch, before: Any):
    monkeypatch.setitem(sys.modules, "openvino_telemetry", before)
    module.load_openvino()
    assert sys.modules["openvino_telemetry"] is before
    monkeypatch.delitem(sys.modules, "openvino_telemetry")
    module.load_openvino()
    assert "openvino_telemetry" not in sys.modules


def test_auto_takes_what_is_faster(exported: Exported, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_module.platform, "machine", lambda: "x86_64")
    neurons = 2592
    monkeypatch.setattr(engine_module, "OPENVINO_NEURONS", {"fp32": 4 * neurons, "int8": 2 * neurons})
    for method, (precision, k, wanted) in product(
        METHODS,
        (
            ("fp32", 1, "onnxruntime"),
            ("fp32", 2, "onnxruntime"),
            ("fp32", 4, "openvino"),
            ("int8", 1, "onnxruntime"),
            ("int8", 2, "openvino"),
        ),
    ):
        path = exported(method=method, steps_per_call=k, precision=precision)
        assert onnx_backend(path, EngineOptions()) == wanted
        assert onnx_backend(path, EngineOptions(batch=64, threads=2)) == wanted
        with open_engine(path) as engine:
            versions = {
                "onnxruntime": f"ONNX Runtime {onnxruntime.__version__}, CPU",
                "openvino": f"OpenVINO {openvino.__version__.split('-')[0]}, CPU",
            }
            assert engine.backend == versions[wanted]


def test_auto_takes_onnxruntime_for_what_is_its_own_or_not_measured(exported: Exported, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(engine_module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(engine_module, "OPENVINO_NEURONS", {"fp32": 1, "int8": 1})
    path = exported()
    assert onnx_backend(path, EngineOptions()) == "openvino"
    for options in (
        {"provider": "cuda"},
        {"optimize": False},
        {"cuda": "pycuda"},
        {"cuda_graphs": False},
        {"speculate": True},
        {"backend": "onnxruntime"},
    ):
        assert onnx_backend(path, EngineOptions(**options)) == "onnxruntime"  # type: ignore[arg-type]
    for form in ({"precision": "fp16"}, {"precision": "int8", "form": "matmul"}):
        assert onnx_backend(exported(**form), EngineOptions()) == "onnxruntime"
    network, manifest = read_onnx(path)
    numerics = msgspec.structs.replace(manifest.numerics, exact=False)
    (tmp_path / "net.onnx").write_bytes(
        bytes_with_manifest(network, msgspec.structs.replace(manifest, numerics=numerics))
    )
    assert onnx_backend(tmp_path / "net.onnx", EngineOptions()) == "onnxruntime"
    monkeypatch.setattr(engine_module.platform, "machine", lambda: "aarch64")
    assert onnx_backend(path, EngineOptions()) == "onnxruntime"


def test_auto_takes_what_is_installed(exported: Exported, monkeypatch: pytest.MonkeyPatch):
    path = exported()  # too small for OpenVINO where there is a choice
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert onnx_backend(path, EngineOptions()) == "openvino"
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(sys.modules, "numba", None)
    assert onnx_backend(path, EngineOptions()) == "onnxruntime"
