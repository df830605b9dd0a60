"""Build one plan in a process of its own: what `plan_from_onnx` starts, fed on stdin, answering on stdout."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec

from ..runtime.errors import CheckFailed, DynamicConfidenceError
from ..runtime.plan_file import PORTABLE, Flavour
from ..runtime.signature import TENSORRT_DTYPES, Signature, Tensor
from ..runtime.tensorrt_library import SHOWN_ERRORS, load_library, logged, logger, one_line
from .plan_backend import Backend

Report = Callable[[str, int, int], None]
"""Is told (phase, steps done, steps) while TensorRT builds."""


class Job(msgspec.Struct):
    """The first line on stdin; the ONNX file follows."""

    flavour: Flavour
    targets: tuple[str, ...]
    source: str
    name: str
    batch: int
    expected: Signature
    timings: bytes | None = None
    """Of kernels in earlier builds, perhaps none yet; None: this build keeps none."""


class Progress(msgspec.Struct, tag=True):
    phase: str
    done: int
    total: int


class Failure(msgspec.Struct, tag=True):
    message: str
    exit_code: int


class Success(msgspec.Struct, tag=True):
    """The last line on stdout; the plan, of this size, follows."""

    size: int
    layers: int
    timings: bytes | None
    note: str


Answer = Progress | Failure | Success


class Built(NamedTuple):
    plan: bytes
    layers: int
    """Of the network as it was parsed; the builder fuses many of them."""
    timings: bytes | None = None
    note: str = ""


def main() -> None:
    """Do the job on stdin. Ctrl-C is the parent's: it ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers

    def send(answer: Answer, content: bytes = b"") -> None:
        answers.write(msgspec.json.encode(answer) + b"\n" + content)
        answers.flush()

    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    try:
        built = build(
            Backend(job.flavour, load_library(job.flavour), job.targets),
            sys.stdin.buffer.read(),
            source=job.source,
            name=job.name,
            batch=job.batch,
            expected=job.expected,
            timings=job.timings,
            report=lambda *event: send(Progress(*event)),
        )
    except DynamicConfidenceError as error:
        send(Failure(str(error), error.exit_code))
    else:
        send(Success(len(built.plan), built.layers, built.timings, built.note), built.plan)


def build(
    backend: Backend,
    content: bytes,
    *,
    source: str,
    name: str,
    batch: int = 1,
    expected: Signature | None = None,
    timings: bytes | None = None,
    report: Report = lambda phase, done, total: None,
) -> Built:
    """Parse the bytes of an ONNX file and build the network: strongly typed, float32 without TF32.

    `expected` are the inputs and outputs that it must have, `timings` those of kernels in earlier builds (`b""`: none
    yet; None: none are kept).
    Raises: DynamicConfidenceError with the parser's or the builder's reasons, CheckFailed for another network.
    """
    trt, log = backend.module, logger(backend.module)
    log.errors.clear()
    builder = trt.Builder(log)
    # A flag of TensorRT 10; later it is the only way, and the flag may be gone.
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, log)  # owns the weights until the plan is built
    if not parser.parse(content) or parser.num_errors > 0:
        raise DynamicConfidenceError(
            f"{source}: {backend} refuses {_parser_errors(parser)}. "
            "Export the network with `dc-export`, whose operators it takes, or try another release of it."
        )
    if network.num_outputs == 0:
        raise DynamicConfidenceError(
            f"{source}: {backend} found no outputs in it, expected a network. Export one with `dc-export model.pt`."
        )
    if expected is not None:
        _check_signature(network, expected, source)
    network.name = name
    config = builder.create_builder_config()
    _configure(trt, config, backend.targets)
    _add_profile(builder, config, network, batch)
    cache, note = (None, "") if timings is None else _attach_timings(config, timings)
    config.progress_monitor = watcher = monitor(trt, report)  # must outlive the build
    plan = builder.build_serialized_network(network, config)
    if plan is None or watcher.cancelled:
        raise DynamicConfidenceError(
            f"{source}: {backend} cannot build it for {', '.join(backend.targets)} ({logged(trt)}). "
            "Choose another --target or a smaller --batch."
        )
    return Built(bytes(plan), network.num_layers, None if cache is None else bytes(cache.serialize()), note)


def _configure(trt: Any, config: Any, targets: tuple[str, ...]) -> None:
    tf32 = getattr(trt.BuilderFlag, "TF32", None)
    if tf32 is not None:  # on by default, and it would round the sums that are exact in float32
        config.clear_flag(tf32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.max_aux_streams = 0  # a step is one stream, which the runtime captures
    user_allocation = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if user_allocation is not None:  # TensorRT-RTX asks for it where calls are to be captured
        config.set_flag(user_allocation)
    if not hasattr(config, "num_compute_capabilities"):
        return  # TensorRT builds for the GPU of this machine
    capabilities = [getattr(trt.ComputeCapability, name.upper()) for name in targets if name != PORTABLE]
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            config.set_compute_capability(capability, index)


def _attach_timings(config: Any, timings: bytes) -> tuple[Any, str]:
    """Let the builder use and extend the timings; those of another GPU it refuses, then it starts with none."""
    cache = config.create_timing_cache(timings)
    if cache is not None and config.set_timing_cache(cache, False):
        return cache, ""
    cache = config.create_timing_cache(b"")
    if cache is not None and config.set_timing_cache(cache, False):
        return cache, "the timing cache is another GPU's or library's: this build starts a new one."
    return None, "TensorRT takes no timing cache: this build measures every kernel and keeps none."


def _add_profile(builder: Any, config: Any, network: Any, batch: int) -> None:
    """Let every dynamic dimension be 1 to `batch`; the plan is tuned for 1, what latency is about."""
    profile, dynamic = builder.create_optimization_profile(), False
    for tensor in map(network.get_input, range(network.num_inputs)):
        shape = tuple(tensor.shape)
        if -1 in shape:
            smallest, largest = ([size if dim == -1 else dim for dim in shape] for size in (1, batch))
            profile.set_shape(tensor.name, smallest, smallest, largest)
            dynamic = True
    if dynamic:
        config.add_optimization_profile(profile)


def _check_signature(network: Any, expected: Signature, source: str) -> None:
    """Compare the parsed network with the manifest; the runtime feeds and reads by the manifest alone."""

    def tensor(mode: Literal["input", "output"], parsed: Any) -> Tensor:
        dtype = parsed.dtype.name
        return Tensor(mode, str(TENSORRT_DTYPES.get(dtype, dtype)), tuple(parsed.shape))

    inputs = map(network.get_input, range(network.num_inputs))
    outputs = map(network.get_output, range(network.num_outputs))
    found = {t.name: tensor("input", t) for t in inputs} | {t.name: tensor("output", t) for t in outputs}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise CheckFailed(
                f"{source}: tensor '{name}' of the parsed network is {found.get(name, 'missing')}, its manifest says "
                f"{expected.get(name, 'missing')}. Nothing was written. Export it again with `dc-export model.pt`."
            )


def _parser_errors(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    shown = [f"node '{e.node_name()}' ({e.node_operator()}): {_reason(e.desc())}" for e in errors[:SHOWN_ERRORS]]
    more = len(errors) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "") or "it as no ONNX file it can read"


def _reason(description: str) -> str:
    """The parser describes an operator that it does not know as "false"."""
    text = one_line(description)
    return "not supported" if text == "false" else text


def monitor(trt: Any, report: Report) -> Any:
    """Hand progress on to `report`; once that fails, stop the build after the step under way."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.cancelled = False
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self.steps[phase_name])

        def _tell(self, phase: str, done: int) -> None:
            try:
                report(phase, done, self.steps[phase])
            except OSError:  # nobody listens any more, so nobody waits for the plan
                self.cancelled = True

    return Monitor()


if __name__ == "__main__":
    main()
