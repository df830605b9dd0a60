"""The TensorRT engine: steps a plan of either flavour on the GPU, state and image staying there."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np

from ..cuda import open_cuda
from ..engine import EngineOptions, StepOutput, check_open, check_refill, check_steps
from ..plan_file import LIBRARIES, read_plan
from ..plan_fit import check_options, check_target, check_version
from ..tensorrt_library import load_library
from ..variants import check_call_sizes
from .device_buffers import layout_from_manifest
from .device_loop import DeviceLoop
from .tensorrt_plan import execution_contexts


class TensorRTEngine:
    """Runs a plan with the TensorRT or TensorRT-RTX that built it. See `runtime.engine.Engine`.

    Its `reset` returns before the GPU has done it; `step` returns when the answer is there.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        plan = read_plan(path)  # checks the hash: a plan is executable code
        self.manifest, built, self.batch = plan.manifest, plan.engine, options.batch
        check_options(path, self.manifest, built, options)
        check_call_sizes(self.manifest, options.call_sizes)
        layout = layout_from_manifest(self.manifest, self.batch)
        calls = -(-self.manifest.max_steps // self.manifest.steps_per_call)
        with ExitStack() as stack:
            # Before anything of TensorRT, which may end the process where there is no driver.
            cuda = stack.enter_context(open_cuda(options.cuda))
            trt = load_library(built.flavour)
            check_version(path, built, trt.__version__)
            known = [name.lower() for name in dir(getattr(trt, "ComputeCapability", None))]
            check_target(path, built, cuda.target, cuda.device, known)
            loop = DeviceLoop(cuda, layout, calls if options.speculate else 0, stack)
            contexts = stack.enter_context(
                execution_contexts(trt, path, plan, layout, loop.address, cuda.handle(loop.stream), cuda.device_memory)
            )
            graphs = loop.start(contexts.enqueue, options.cuda_graphs, contexts.require_capturable, stack)
            loop.reset(self.manifest.calibration.scale)
            # Whatever fails up to here is released here, in the opposite order; from here on by __exit__.
            self._loop: DeviceLoop | None = loop
            self._contexts = contexts
            self._stack = stack.pop_all()
        self.backend = f"{LIBRARIES[built.flavour]} {built.version} on {cuda.device} ({cuda.package}, {graphs})"

    def __enter__(self) -> TensorRTEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop = None
        self._stack.__exit__(kind, error, trace)

    def layers(self) -> str:
        """What TensorRT says about the plan, as JSON: its layers, and the kernels that compute them."""
        check_open(self._loop, "layers")
        return self._contexts.layers()

    def reset(self, scale: float) -> None:
        check_open(self._loop, "reset").reset(scale)

    def step(self, pixels: np.ndarray | None = None, steps: int | None = None) -> StepOutput:
        loop = check_open(self._loop, "step")
        check_steps(self, steps)
        return loop.step(pixels)

    def refill(self, rows: np.ndarray, pixels: np.ndarray) -> None:
        loop = check_open(self._loop, "refill")
        check_refill(self, rows, pixels)
        loop.refill(rows, pixels)
