"""Choose the TensorRT that builds a plan, and settle the GPUs that it builds for."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..runtime.errors import BackendMissing, DynamicConfidenceError
from ..runtime.gpu import device_target
from ..runtime.plan_file import CURRENT, LIBRARIES, PORTABLE, Flavour
from ..runtime.tensorrt_library import MODULES, load_library


class Backend(NamedTuple):
    flavour: Flavour
    module: Any
    targets: tuple[str, ...]
    """Compute capabilities, `current` replaced by what this machine has."""

    def __str__(self) -> str:
        return f"{LIBRARIES[self.flavour]} {self.module.__version__}"


def open_backend(flavour: str = "auto", targets: tuple[str, ...] = ()) -> Backend:
    """Import the library that builds for these targets.

    `auto` takes TensorRT where it is installed, there is a GPU and no other is named, else TensorRT-RTX. Without
    targets TensorRT builds for the GPU of this machine, TensorRT-RTX for compute capability 8.0 and later.

    Raises: BackendMissing when the library, its native part or a GPU that it needs is not there,
    DynamicConfidenceError for an unknown flavour or target.
    """
    if flavour not in ("auto", *MODULES):
        raise DynamicConfidenceError(f"flavour '{flavour}': expected one of auto, {', '.join(MODULES)}.")
    here = device_target()
    chosen: Flavour = _choose(here, targets) if flavour == "auto" else flavour  # type: ignore[assignment]
    module = load_library(chosen)
    if here is None and chosen == "tensorrt":
        raise BackendMissing(
            "TensorRT needs an NVIDIA GPU and its driver to build, found none. "
            "Build on the device that will run the plan, or use --flavour rtx, which needs none."
        )
    if here is None and CURRENT in targets:
        raise BackendMissing(
            f"target {CURRENT}: found no NVIDIA GPU or no driver. Name the GPU, one of {', '.join(_known(module))}."
        )
    if chosen == "tensorrt":
        if set(targets) - {CURRENT, here}:
            raise DynamicConfidenceError(
                f"target {','.join(targets)}: TensorRT builds for the GPU of this machine only ({here}). "
                "Build there, or use --flavour rtx."
            )
        return Backend(chosen, module, (str(here),))
    # In the order of the names and each once: the same GPUs always give the same plan.
    wanted = tuple(sorted({here if target == CURRENT else target for target in targets or (PORTABLE,)}, key=_order))
    unknown = [target for target in wanted if target not in (*_known(module), PORTABLE)]
    if unknown or (PORTABLE in wanted and len(wanted) > 1):
        raise DynamicConfidenceError(
            f"target {', '.join(map(str, unknown or wanted))}: {Backend(chosen, module, ())} builds for "
            f"{', '.join(_known(module))}, {CURRENT}, or {PORTABLE} alone. Choose among them with --target"
            f"{_jetson(unknown)}."
        )
    return Backend(chosen, module, tuple(map(str, wanted)))


def _jetson(targets: list[Any]) -> str:
    """A hint for who names a Jetson."""
    jetson = {"sm87", "sm110"} & set(targets)
    return f"; {' and '.join(sorted(jetson))}, a Jetson, builds its own (docs/jetson.md)" if jetson else ""


def _choose(here: str | None, targets: tuple[str, ...]) -> Flavour:
    if here is None or set(targets) - {CURRENT, here}:
        return "rtx"
    try:
        load_library("tensorrt")
    except BackendMissing:
        return "rtx"
    return "tensorrt"


def _known(module: Any) -> list[str]:
    names = [name.lower() for name in dir(module.ComputeCapability) if name.startswith("SM")]
    return sorted(names, key=_order)


def _order(target: str | None) -> tuple[int, str]:
    return len(target or ""), target or ""
