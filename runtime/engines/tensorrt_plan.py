"""Load a plan into TensorRT or TensorRT-RTX: two execution contexts, whose shapes and addresses are set once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..cuda.errors import CudaError
from ..errors import BackendMissing, DynamicConfidenceError
from ..plan_file import LIBRARIES, EngineIdentity, PlanInfo, rebuild_command
from ..signature import TENSORRT_DTYPES, Signature, Tensor, signature_of_manifest
from ..tensorrt_library import logged, logger
from .device_buffers import Layout, Place


class Contexts:
    """Two execution contexts of one plan, for the directions of `Layout`; empty once they are released."""

    def __init__(self, trt: Any, stream: int) -> None:
        self._trt, self._stream = trt, stream
        self.both: list[Any] = []

    def enqueue(self, direction: int) -> None:
        """Give the stream one call of the network. Raises: CudaError with what TensorRT logged."""
        if not self.both[direction].execute_async_v3(self._stream):
            raise CudaError(f"execute_async_v3 failed: {logged(self._trt)}")

    def layers(self) -> str:
        """What TensorRT says about the layers of the plan, as JSON: which kernel computes which."""
        inspector = self.both[0].engine.create_engine_inspector()
        inspector.execution_context = self.both[0]
        return inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)

    def require_capturable(self) -> None:
        """Raises: CudaError when TensorRT knows that its calls cannot be captured; not every release can say."""
        for context in self.both:
            if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(self._stream):
                raise CudaError("TensorRT says that this plan cannot be captured")


@contextmanager
def execution_contexts(
    trt: Any,
    path: Path,
    plan: PlanInfo,
    layout: Layout,
    address: int,
    stream: int,
    device_memory: Callable[[int], AbstractContextManager[int]],
) -> Iterator[Contexts]:
    """Deserialise the plan, check that it is the network of the manifest, and bind both directions to the block.

    `address` is that of the block which `layout` describes; `device_memory` allocates what TensorRT computes in, which
    both contexts share, since the stream runs one call at a time. At the end the contexts go first, then the engine,
    then the runtime, then that memory.
    Raises: DynamicConfidenceError when TensorRT refuses the plan, with what it logged, BackendMissing when it cannot
    start.
    """
    built, log = plan.engine, logger(trt)
    log.errors.clear()
    try:
        runtime = trt.Runtime(log)
    except TypeError as error:  # how the bindings tell that the library returned nothing
        raise BackendMissing(
            f"{path}: {LIBRARIES[built.flavour]} {built.version} cannot start ({logged(trt)}). Install a driver that "
            "serves this release."
        ) from error
    runtime.engine_host_code_allowed = False
    engine = config = cache = None
    contexts = Contexts(trt, stream)

    def need(answer: Any, what: str) -> Any:
        return require(answer, trt, path, built, what)

    with ExitStack() as scratch:
        try:
            engine = need(runtime.deserialize_cuda_engine(plan.content), "load it")
            wanted = signature_of_manifest(plan.manifest)
            check_signature(path, built, signature_of_engine(trt, engine), wanted)
            strategy, memory = trt.ExecutionContextAllocationStrategy.STATIC, None
            if hasattr(engine, "device_memory_size_v2"):  # 10.0 allocates by itself
                strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
                size = engine.device_memory_size_v2
                memory = scratch.enter_context(device_memory(max(size, 1))), size
            config, cache = _runtime_config(trt, engine, strategy)
            for table in layout.tensors:
                # No other name for a context, or it would outlive the list.
                contexts.both.append(need(engine.create_execution_context(config or strategy), "make a context"))
                _bind(contexts.both[-1], table, wanted, address, memory, stream, need)
            yield contexts
        finally:
            contexts.both.clear()
            del config, cache, engine, runtime


def _bind(
    context: Any,
    table: dict[str, Place],
    signature: Signature,
    address: int,
    memory: tuple[int, int] | None,
    stream: int,
    need: Callable[[Any, str], Any],
) -> None:
    """Set every shape and address of one direction; `memory`: address and size of what TensorRT computes in."""
    if memory is not None:
        context.set_device_memory(*memory)
    # Only an engine's first context has a profile from the start; since TensorRT 10 contexts may share one.
    if context.active_optimization_profile != 0:
        need(context.set_optimization_profile_async(0, stream), "take its optimisation profile")
    for name, place in table.items():
        if signature[name].mode == "input" and -1 in signature[name].shape:
            need(context.set_input_shape(name, place.shape), f"take the shape {list(place.shape)} for '{name}'")
    for name, place in table.items():
        same = tuple(context.get_tensor_shape(name)) == place.shape
        need(same, f"keep to the shape {list(place.shape)} for '{name}'")
        need(context.set_tensor_address(name, address + place.offset), f"take an address for '{name}'")


def _runtime_config(trt: Any, engine: Any, strategy: Any) -> tuple[Any, Any]:
    """How TensorRT-RTX compiles its kernels on the device, and the cache that both contexts share; else (None, None).

    All kernels of the one shape that is used are compiled at the first call, so that none is while the time counts or
    a graph is captured. The graphs are ours, since a call is one with the copy of its answers.
    """
    if not hasattr(engine, "create_runtime_config"):
        return None, None
    config, cache = engine.create_runtime_config(), None
    config.set_execution_context_allocation_strategy(strategy)
    if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    if hasattr(config, "cuda_graph_strategy"):
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
    if hasattr(config, "create_runtime_cache"):
        cache = config.create_runtime_cache()
        config.set_runtime_cache(cache)  # where it is refused, each context compiles for itself
    return config, cache


def require(result: Any, trt: Any, path: Path, built: EngineIdentity, what: str) -> Any:
    """Return what TensorRT answered, unless that is None or False: then say what it logged."""
    if result is None or result is False:
        raise DynamicConfidenceError(
            f"{path}: {LIBRARIES[built.flavour]} {built.version} cannot {what} ({logged(trt)}). Build it again with "
            f"`{rebuild_command(path, built)}`."
        )
    return result


def signature_of_engine(trt: Any, engine: Any) -> Signature:
    """Inputs and outputs of a deserialised plan; one that must lie on the host has a dtype that no manifest has."""
    found: Signature = {}
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        mode = "input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"
        dtype: str = engine.get_tensor_dtype(name).name
        on_host = "" if engine.get_tensor_location(name) == trt.TensorLocation.DEVICE else "host "
        found[name] = Tensor(mode, on_host + TENSORRT_DTYPES.get(dtype, dtype), tuple(engine.get_tensor_shape(name)))
    return found


def check_signature(path: Path, built: EngineIdentity, found: Signature, wanted: Signature) -> None:
    """Raise a DynamicConfidenceError when the plan's tensors are not those that the memory was laid out for."""
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found or name not in wanted or not _fits(found[name], wanted[name]):
            raise DynamicConfidenceError(
                f"{path}: tensor '{name}' of the plan is {found.get(name, 'missing')}, its manifest says "
                f"{wanted.get(name, 'missing')}. Build it again with `{rebuild_command(path, built)}`."
            )


def _fits(found: Tensor, wanted: Tensor) -> bool:
    """A plan for one batch size only may have that size where the network has a dynamic dimension."""
    same = found.mode == wanted.mode and found.dtype == wanted.dtype and len(found.shape) == len(wanted.shape)
    return same and all(one == other or other == -1 for one, other in zip(found.shape, wanted.shape, strict=True))
