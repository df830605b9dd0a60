"""Can the whole stepping loop run on the GPU? Two steps captured as the body of a WHILE node, a tiny kernel deciding.

An experiment, not an engine: nobody has documented that TensorRT may be captured there. It needs CUDA 12.4 and
cuda-bindings 13.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.cuda import open_cuda
from ...runtime.engine import open_engine
from ...runtime.engines.device_buffers import initial_states, layout_from_manifest
from ...runtime.engines.tensorrt_plan import execution_contexts
from ...runtime.errors import BackendMissing, CheckFailed
from ...runtime.exit_policy import policy_from_manifest
from ...runtime.plan_file import read_plan
from ...runtime.stepping import infer, run_to_the_end
from ...runtime.tensorrt_library import load_library
from ...toolchain.export import ExportOptions, export
from ...toolchain.self_check import synthetic_pixels
from ..networks import random_checkpoint
from ..preprocessings import CIFAR
from .plans import build, installed

STEPS = 16
IMAGES = 20
THRESHOLD = 0.6
STEPS_PER_ROUND = 2
"""The body reads state set 0 and leaves the new states there: one step there, one back."""
DECIDE = b"""
// The driver supplies this function when the module is loaded.
extern "C" __device__ void cudaGraphSetConditional(unsigned long long handle, unsigned int value);

extern "C" __global__ void decide(
    unsigned long long loop, const float* confidence, float threshold, int* steps, int steps_per_round, int last)
{
    *steps += steps_per_round;
    cudaGraphSetConditional(loop, *steps < last && !(*confidence > threshold));
}
"""


def loop_on_the_gpu(save: Callable[[Any], None]) -> str:
    """Run images through the loop and through the engine: same exit step, same logits? And which one is faster?

    Raises: CheckFailed when CUDA or TensorRT refuses the capture, with its reason, or when the answers differ.
    """
    checkpoint = random_checkpoint("resnet20", CIFAR)
    pixels = synthetic_pixels(CIFAR.shape, IMAGES)
    flavour = "rtx" if installed("rtx") else "tensorrt"
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder) / "network.onnx"
        network.write_bytes(export(checkpoint, "0" * 64, ExportOptions(steps=STEPS)).content)
        plan = build(network, flavour)
        expected, stepping_ms = _stepped(plan, pixels)
        found, loop_ms = _looped(plan, pixels)
    results = {"stepping_ms": stepping_ms, "loop_ms": loop_ms, "exit_steps": [steps for steps, _ in found]}
    save(results)
    for index, ((steps, logits), (wanted, reference)) in enumerate(zip(found, expected, strict=True)):
        if steps != wanted or not np.array_equal(logits, reference):
            raise CheckFailed(
                f"image {index}: the loop stopped after {steps} steps, expected {wanted}, or its logits differ."
            )
    ratio = float(np.median(stepping_ms) / np.median(loop_ms))
    return f"{IMAGES} images equal; the loop on the GPU is {ratio:.2f} times as fast as stepping from the host"


def _stepped(plan: Path, pixels: np.ndarray) -> tuple[list[tuple[int, np.ndarray]], list[float]]:
    """Per image the step at which the loop must stop and the logits there; milliseconds per image with early exit."""
    from ...runtime.confidence import max_softmax

    expected, samples = [], []
    with open_engine(plan) as engine:
        policy = policy_from_manifest(engine.manifest, threshold=THRESHOLD)
        for image in pixels:
            logits = run_to_the_end(engine, image[None], policy.scale)[0][0]
            sure = max_softmax(logits, policy.scale) > THRESHOLD
            steps = next((t for t in range(STEPS_PER_ROUND, STEPS, STEPS_PER_ROUND) if sure[t - 1]), STEPS)
            expected.append((steps, logits[steps - 1]))
        for image in pixels:
            started = time.perf_counter()
            infer(engine, image[None], policy)
            samples.append((time.perf_counter() - started) * 1e3)
    return expected, samples


def _looped(plan: Path, pixels: np.ndarray) -> tuple[list[tuple[int, np.ndarray]], list[float]]:
    """Per image the steps done and the logits; milliseconds per image."""
    info = read_plan(plan)
    manifest, layout = info.manifest, layout_from_manifest(info.manifest, 1)
    trt = load_library(info.engine.flavour)
    found, samples = [], []
    with ExitStack() as stack:
        cuda = stack.enter_context(open_cuda("bindings"))
        stream = stack.enter_context(cuda.stream())
        address = stack.enter_context(cuda.device_memory(layout.size))
        counter = stack.enter_context(cuda.device_memory(4))
        contexts = stack.enter_context(
            execution_contexts(trt, plan, info, layout, address, cuda.handle(stream), cuda.device_memory)
        )
        states, image = cuda.pinned_memory(layout.state_bytes), cuda.pinned_memory(layout.pixels.nbytes)
        answer, steps = cuda.pinned_memory(layout.answer_bytes), cuda.pinned_memory(4)
        scale = cuda.pinned_memory(4)
        states[:] = initial_states(layout)
        scale.view(np.float32)[0] = manifest.calibration.scale
        cuda.copy_to_device(address + layout.initial, states, stream)
        cuda.copy_to_device(address + layout.scale.offset, scale, stream)
        for direction in range(2):
            contexts.enqueue(direction)  # compiles and allocates, which a capture must not
        cuda.synchronize(stream)

        def body() -> None:
            for direction in range(2):
                contexts.enqueue(direction)

        confidence = address + layout.tensors[1]["confidence"].offset
        graph = _while_graph(cuda.target, stream, body, confidence, counter, stack)
        logits = layout.answers["logits"]
        for pixels_of_one in pixels:
            started = time.perf_counter()
            image.view(np.uint8)[:] = pixels_of_one.reshape(-1)
            steps.view(np.int32)[0] = 0
            cuda.copy_to_device(address + layout.pixels.offset, image, stream)
            cuda.copy_to_device(counter, steps, stream)
            cuda.copy_on_device(address + layout.state_sets[0], address + layout.initial, layout.state_bytes, stream)
            cuda.launch(graph, stream)
            cuda.copy_to_host(answer, address + layout.answer_sets[1], stream)
            cuda.copy_to_host(steps, counter, stream)
            cuda.synchronize(stream)
            samples.append((time.perf_counter() - started) * 1e3)
            found.append((int(steps.view(np.int32)[0]), logits.view(answer)[0, 0].copy()))
    return found, samples


def _while_graph(
    target: str, stream: Any, body: Callable[[], None], confidence: int, counter: int, stack: ExitStack
) -> Any:
    """A graph whose only node repeats `body` and the decision; raises CheckFailed with the reason of CUDA's refusal."""
    driver, runtime = _bindings("driver"), _bindings("runtime")
    decide = _kernel(driver, target, stack)
    graph = _done(runtime.cudaGraphCreate(0))
    stack.callback(runtime.cudaGraphDestroy, graph)
    loop = _done(
        runtime.cudaGraphConditionalHandleCreate(
            graph, 1, runtime.cudaGraphConditionalHandleFlags.cudaGraphCondAssignDefault
        )
    )
    node = runtime.cudaGraphNodeParams()
    node.type = runtime.cudaGraphNodeType.cudaGraphNodeTypeConditional
    node.conditional.handle = loop
    node.conditional.type = runtime.cudaGraphConditionalNodeType.cudaGraphCondTypeWhile
    node.conditional.size = 1
    _done(runtime.cudaGraphAddNode(graph, None, None, 0, node))
    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    _done(runtime.cudaStreamBeginCaptureToGraph(stream, node.conditional.phGraph_out[0], None, None, 0, mode))
    try:
        body()
        values = (int(loop), confidence, THRESHOLD, counter, STEPS_PER_ROUND, STEPS)
        kinds = (ctypes.c_ulonglong, ctypes.c_void_p, ctypes.c_float, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
        _done(driver.cuLaunchKernel(decide, 1, 1, 1, 1, 1, 1, 0, int(stream), (values, kinds), 0))
    finally:
        ended = runtime.cudaStreamEndCapture(stream)
    _done(ended)
    executable = _done(runtime.cudaGraphInstantiate(graph, 0))
    stack.callback(runtime.cudaGraphExecDestroy, executable)
    return executable


def _bindings(module: str) -> Any:
    try:
        return import_module(f"cuda.bindings.{module}")
    except ImportError as error:
        raise BackendMissing("the loop needs cuda-bindings 13: `pip install 'cuda-bindings>=13'`.") from error


def _kernel(driver: Any, target: str, stack: ExitStack) -> Any:
    module = _done(driver.cuModuleLoadData(compiled_kernel(target)))
    stack.callback(driver.cuModuleUnload, module)
    return _done(driver.cuModuleGetFunction(module, b"decide"))


def compiled_kernel(target: str) -> bytes:
    """Compile the deciding kernel for a GPU such as `sm89`; needs none."""
    nvrtc = _bindings("nvrtc")
    program = _done(nvrtc.nvrtcCreateProgram(DECIDE, b"decide.cu", 0, [], []))
    _done(nvrtc.nvrtcCompileProgram(program, 1, [f"--gpu-architecture={target.replace('sm', 'sm_')}".encode()]))
    content = b" " * _done(nvrtc.nvrtcGetCUBINSize(program))
    _done(nvrtc.nvrtcGetCUBIN(program, content))
    return content


def _done(result: tuple[Any, ...]) -> Any:
    """What a call returned. Raises: CheckFailed with the name of its error."""
    code, *values = result
    if int(code) != 0:
        raise CheckFailed(f"refused: {code.name}")
    return values[0] if values else None
