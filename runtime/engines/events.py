"""The event-driven engine, for .onnx files on x86 and Arm CPUs: only the weights of neurons that spike are read."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from ..engine import (
    EngineOptions,
    StepOutput,
    check_input,
    check_open,
    check_refill,
    check_steps,
    interrupted,
    no_image,
)
from ..errors import DynamicConfidenceError
from ..interrupts import held_back
from ..manifest import Manifest
from ..onnx_file import check_form, check_signature, read_onnx
from ..signature import shape_at
from ..variants import chosen_call_sizes, manifest_at, variant
from .events_bounds import check_bounds
from .events_neurons import INITIAL_MEMBRANE
from .events_program import LAYER, program_from_network, scratch_of, state_of
from .events_reader import network_from_onnx
from .onnxruntime_session import check_options
from .packages import load_package

OTHER = "Use --backend onnxruntime"
OPEN = 2**62
"""So many arrivals open every barrier."""


def load_numba() -> Any:
    """Import numba. Raises: BackendMissing when it is not there, or not whole."""
    return load_package("numba", "numba", "events")


def load_kernels() -> ModuleType:
    """Import the kernels. Raises: DynamicConfidenceError when numba cannot keep what it compiles."""
    try:
        from . import events_kernels
    except RuntimeError as error:
        raise DynamicConfidenceError(
            f"numba cannot keep its compiled kernels ({error}). Set NUMBA_CACHE_DIR to a folder that can be written, "
            "or use --backend onnxruntime."
        ) from error
    return events_kernels


class EventsEngine:
    """Runs an exported .onnx on the CPU, spike by spike. See `runtime.engine.Engine`.

    It reads one step out of the graph, and so makes calls of every size that the file has. Each input of the batch has
    its own states, numpy arrays that the kernels change in place; inputs go one by one, threads share the work on each.
    One thread unless `options.threads` says otherwise: what more of them gain was not measured on idle cores.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        check_options(path, options)
        _check_own_options(options)
        model, whole = read_onnx(path)
        _check_numerics(path, whole)
        numba = load_numba()
        self.manifest = manifest = manifest_at(whole, chosen_call_sizes(whole, options, several=True))
        self.batch, self.backend = options.batch, f"events (numba {numba.__version__}), CPU"
        graph, described = variant(model, whole, whole.steps_per_call)
        check_signature(path, graph, described)
        network = network_from_onnx(graph, described)
        self._program, self._sizes = program_from_network(network)
        check_bounds(self._program, self._sizes)
        self._layers = np.flatnonzero(self._program.nodes["kind"] == LAYER)
        self.threads = options.threads or 1
        self._scratch = scratch_of(self._program, self._sizes, max(manifest.call_sizes), self.threads)
        self._states = [state_of(self._sizes) for _ in range(self.batch)]
        self._steps_done, self._arrivals = np.zeros(self.batch, np.int64), np.zeros(1, np.int64)
        self._pixels = np.zeros(shape_at(manifest.input.shape, self.batch), np.uint8)
        self._results = {size: _result(manifest_at(manifest, (size,)), self.batch) for size in manifest.call_sizes}
        with held_back():  # compiles, or loads what was compiled before
            self._kernels = load_kernels()
            # Alone, for an interrupted thread would keep the others waiting.
            nothing = np.ones(0, np.bool_)
            self._kernels.advance(self._program, self._states[0], self._scratch, nothing, 0, 1, self._arrivals)
            self._kernels.inject(self._program, self._states[0], np.zeros(network.input_shape, np.uint8))
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(max(self.threads - 1, 1))
        self.reset(manifest.calibration.scale)

    def __enter__(self) -> EventsEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = None
        self._states.clear()

    def reset(self, scale: float) -> None:
        self._whole = False  # until every state has its initial value
        self._scale, self._has_image = np.float32(scale), False
        for row in range(len(self._states)):
            self._start(row)
        self._whole = True

    def step(self, pixels: np.ndarray | None = None, steps: int | None = None) -> StepOutput:
        pool = self._ready_pool("step")
        check_steps(self, steps)
        result = self._results[steps or self.manifest.steps_per_call]
        if pixels is not None:
            check_input(pixels, self._pixels.shape)
        elif not self._has_image:
            raise no_image()
        self._whole = False  # until all of it has gone well
        if pixels is not None:
            np.copyto(self._pixels, pixels)
            self._has_image = True
            self._inject(range(self.batch))
        for row in range(self.batch):
            if self.manifest.input.frames:
                for step in range(len(result.label)):
                    self._kernels.inject(self._program, self._states[row], self._pixels[step, row])
                    self._advance(pool, row, 1)
                    self._write(result, slice(step, step + 1), row)
            else:
                self._advance(pool, row, len(result.label))
                self._write(result, slice(None), row)
        # axes: step, input, class
        scaled = result.logits / self._scale
        scaled -= scaled.max(axis=2, keepdims=True)
        np.divide(1.0, np.exp(scaled).sum(axis=2), out=result.confidence)
        result.logits.argmax(axis=2, out=result.label)
        self._whole = True
        return result

    def refill(self, rows: np.ndarray, pixels: np.ndarray) -> None:
        self._ready_pool("refill")
        check_refill(self, rows, pixels)
        if not self._has_image:
            raise no_image()
        self._whole = False
        self._pixels[..., rows, :, :, :] = pixels  # for all K steps of a call, where there are such
        for row in rows.tolist():
            self._start(row)
        self._inject(rows.tolist())
        self._whole = True

    def _start(self, row: int) -> None:
        """Put the states of one input to their initial values."""
        state, neurons = self._states[row], self._sizes.neurons
        state.v[:neurons], state.v[neurons:] = INITIAL_MEMBRANE, 0.0
        state.n.fill(0)
        self._steps_done[row] = 0

    def _inject(self, rows: Any) -> None:
        """Compute the currents of still images; of an image per step, every step does it."""
        if not self.manifest.input.frames:
            for row in rows:
                self._kernels.inject(self._program, self._states[row], self._pixels[row])

    def _advance(self, pool: ThreadPoolExecutor, row: int, steps: int) -> None:
        """Make `steps` time steps of one input; what they give is in the scratch memory."""
        open_until = self.manifest.method.injection_steps
        t = self._steps_done[row] + np.arange(steps)
        gates = np.ones(steps, np.bool_) if open_until is None else t < open_until
        self._steps_done[row] += steps
        self._arrivals[0] = 0

        def work(part: int) -> None:
            try:
                self._kernels.advance(
                    self._program, self._states[row], self._scratch, gates, part, self.threads, self._arrivals
                )
            except BaseException:
                self._arrivals[0] = OPEN  # the others wait for nobody
                raise

        others: list[Future[None]] = []
        try:
            for part in range(1, self.threads):
                others.append(pool.submit(work, part))
            work(0)
        except BaseException:
            self._arrivals[0] = OPEN  # interrupted between the two, or no thread to be had
            raise
        finally:
            if others:
                wait(others)
        for other in others:
            other.result()

    def _write(self, result: StepOutput, steps: slice, row: int) -> None:
        """Copy logits and numbers of spikes of one input from the scratch memory."""
        logits = result.logits[steps, row]
        logits[...] = self._scratch.logits[: len(logits), : logits.shape[1]]
        if result.spikes is not None:
            totals = self._scratch.totals[:, : 2 * len(logits)].sum(axis=0)[:, self._layers]
            result.spikes[steps, row] = totals[0::2] + totals[1::2]
            if result.net_spikes is not None:
                result.net_spikes[steps, row] = totals[0::2] - totals[1::2]

    def _ready_pool(self, method: str) -> ThreadPoolExecutor:
        pool = check_open(self._pool, method)
        if not self._whole:
            raise interrupted(method)
        return pool


def _result(manifest: Manifest, batch: int) -> StepOutput:
    return StepOutput(**{o.name: np.zeros(shape_at(o.shape, batch), o.dtype) for o in manifest.outputs})


def _check_own_options(wanted: EngineOptions) -> None:
    if wanted.provider != "cpu":
        raise DynamicConfidenceError(
            f"--provider {wanted.provider} is ONNX Runtime's, events run on the CPU. {OTHER}, or --provider."
        )
    if not wanted.optimize:
        raise DynamicConfidenceError("optimize=False: the events engine has one form only. Use backend='onnxruntime'.")


def _check_numerics(path: Path, manifest: Manifest) -> None:
    if manifest.numerics.precision == "fp16":
        raise DynamicConfidenceError(
            f"{path}: its precision is fp16, which the events engine would not round alike. {OTHER}."
        )
    check_form(path, manifest, "ONNX Runtime", OTHER)
