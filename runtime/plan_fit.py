"""Does a plan fit this machine and what is asked of it? Pure checks; each fault names the command that mends it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from .errors import DynamicConfidenceError
from .manifest import Manifest
from .plan_file import LIBRARIES, PORTABLE, EngineIdentity, rebuild_command

if TYPE_CHECKING:
    from .engine import EngineOptions


def check_options(path: Path, manifest: Manifest, built: EngineIdentity, options: EngineOptions) -> None:
    """Refuse what a plan cannot do. Raises: DynamicConfidenceError."""
    foreign = {
        f"provider {options.provider}": options.provider != "cpu",
        f"threads {options.threads}": options.threads is not None,
        "optimize False": not options.optimize,
        f"backend {options.backend}": options.backend != "auto",
    }
    for option, asked in foreign.items():
        if asked:
            raise DynamicConfidenceError(
                f"{path}: {option} is for .onnx files; a plan was optimised for a GPU when it was built. Leave it out."
            )
    if options.speculate and manifest.input.frames:
        raise DynamicConfidenceError(
            f"{path}: speculate starts the next call before its image is known, but this network takes new images in "
            "every call (dc-export --frames). Leave it out."
        )
    if options.batch > built.batch:
        larger = rebuild_command(path, msgspec.structs.replace(built, batch=options.batch))
        raise DynamicConfidenceError(
            f"{path}: batch {options.batch}, but it was built for {built.batch} at most. Build it again with "
            f"`{larger}`."
        )


def check_version(path: Path, built: EngineIdentity, installed: str) -> None:
    """Refuse a plan of another release. `installed` may have fewer numbers (10.3.0) or a suffix (10.3.0.26.post1).

    Raises: DynamicConfidenceError.
    """
    numbers, wanted = re.findall(r"\d+", installed)[:4], built.version.split(".")
    if numbers != wanted[: len(numbers)]:
        library = LIBRARIES[built.flavour]
        raise DynamicConfidenceError(
            f"{path}: was built by {library} {built.version}, installed is {installed}, and a plan runs with its own "
            f"release only. Build it again with `{rebuild_command(path, built)}`."
        )


def check_target(path: Path, built: EngineIdentity, gpu: str, device: str, known: Iterable[str]) -> None:
    """Refuse a plan for other GPUs. `gpu` is this one's `sm89`, `known` what the library builds for by name.

    Raises: DynamicConfidenceError.
    """
    if any(_covers(target, gpu) for target in built.targets):
        return
    again = (gpu,) if gpu in known else (PORTABLE,)
    command = rebuild_command(path, msgspec.structs.replace(built, targets=again))
    raise DynamicConfidenceError(
        f"{path}: was built for {', '.join(built.targets)}, this GPU is {gpu} ({device}). Build it again with "
        f"`{command}`."
    )


def _covers(target: str, gpu: str) -> bool:
    """`sm80+` covers `sm80`, `sm89` and `sm120`: the last digit is the minor number, so they are in order."""
    lowest = re.fullmatch(r"sm(\d+)\+", target)
    return target == gpu if lowest is None else int(gpu.removeprefix("sm")) >= int(lowest[1])
