"""Plans for the GPU of this machine, for the items that run one."""

from __future__ import annotations

from pathlib import Path

from ...runtime.errors import BackendMissing
from ...runtime.plan_file import CURRENT, Flavour
from ...runtime.tensorrt_library import load_library
from ...toolchain.write_plan import write_plan


def build(network: Path, flavour: str, batch: int = 1) -> Path:
    """Write `<network>_<flavour>.plan` and its sidecar.

    TensorRT-RTX does not name every GPU (no SM90), so its plans are the portable ones, for 8.0 and later.
    Raises: as `write_plan`.
    """
    path = network.with_name(f"{network.stem}_{flavour}.plan")
    targets = () if flavour == "rtx" else (CURRENT,)
    write_plan(network, path, flavour=flavour, targets=targets, batch=batch)
    return path


def installed(flavour: Flavour) -> bool:
    """Whether the library of these plans can be loaded."""
    try:
        load_library(flavour)
    except BackendMissing:
        return False
    return True
