"""Read a TensorRT plan and its sidecar `<plan>.json`, check that they belong together, and rewrite its calibration."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from pathlib import Path, PurePath
from typing import Literal, NamedTuple

import msgspec

from .errors import DynamicConfidenceError, InvalidRecord
from .files import write_atomically
from .manifest import Calibration, Manifest
from .manifest_json import SIZE_LIMIT, decode_whole

Flavour = Literal["tensorrt", "rtx"]
LIBRARIES: dict[Flavour, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}
MAGIC: dict[bytes, Flavour] = {b"ftrt": "tensorrt", b"vtrt": "rtx"}
"""First four bytes of a plan. The bytes 24 to 27 are the version of the library that built it."""
_VERSION_AT = slice(24, 28)
CURRENT = "current"
"""The target that stands for the GPU of this machine."""
PORTABLE = "sm80+"
"""Target of a plan of TensorRT-RTX for compute capability 8.0 and later: what it builds when none is named."""


class EngineIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a plan was built from, with what, and for which GPUs; every key must stand in the file."""

    flavour: Flavour
    version: str
    """Of the library, as the plan's header has it: four numbers. A plan runs with this version only."""
    targets: tuple[str, ...]
    """Compute capabilities: `sm89`, or `sm80+` for 8.0 and later."""
    batch: int
    """Largest number of inputs N in one call."""
    onnx: str
    """Name of the ONNX file, without its folder."""
    onnx_sha256: str
    plan_sha256: str

    def __post_init__(self) -> None:
        if self.batch < 1 or not self.targets:
            raise InvalidRecord(f"batch {self.batch}, targets {list(self.targets)}: expected at least 1 of each")
        for target in self.targets:
            if not re.fullmatch(r"sm\d+\+?", target):
                raise InvalidRecord(f"target {target!r}: expected a compute capability such as sm89 or sm80+")
        if self.onnx in ("", "..") or PurePath(self.onnx).name != self.onnx:
            raise InvalidRecord(f"onnx {self.onnx!r}: expected the name of a file, without its folder")
        for name, value in (("onnx_sha256", self.onnx_sha256), ("plan_sha256", self.plan_sha256)):
            if not re.fullmatch(r"[0-9a-f]{64}", value):
                raise InvalidRecord(f"{name} {value!r}: expected 64 hexadecimal digits")


class Sidecar(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file beside a plan, because a plan cannot carry a manifest and must stay loadable by other tools."""

    manifest: Manifest
    engine: EngineIdentity


class PlanInfo(NamedTuple):
    manifest: Manifest
    engine: EngineIdentity
    content: bytes
    """The plan. It is executable code: deserialise these bytes, whose hash was checked, not the file once more."""


class PlanHeader(NamedTuple):
    flavour: Flavour
    version: str


def plan_header(content: bytes) -> PlanHeader | None:
    """Read which library built a plan, without that library or a GPU; None for what is no plan."""
    flavour, version = MAGIC.get(content[:4]), content[_VERSION_AT]
    return PlanHeader(flavour, ".".join(map(str, version))) if flavour and len(version) == 4 else None


def sidecar_path(path: Path) -> Path:
    """`net.plan` -> `net.plan.json`; a link's plan and sidecar lie together where it leads."""
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    return path.with_name(f"{path.name}.json")


def read_plan(path: Path) -> PlanInfo:
    """Read a plan and its sidecar, and check one against the other; needs neither a GPU nor TensorRT.

    Raises: DynamicConfidenceError when a file is missing or broken, or the sidecar is another plan's; it ends with the
    command that builds the plan again.
    """
    sidecar = sidecar_path(path)
    content = _read(path, rebuild_command(path, None))
    header = plan_header(content)
    if header is None and not sidecar.exists():
        raise _no_plan(path, content, None)
    manifest, engine = _decode(path, _sidecar_text(path))
    if header is None:
        raise _no_plan(path, content, engine)
    if header != (engine.flavour, engine.version):
        raise DynamicConfidenceError(
            f"{path}: was built by {LIBRARIES[header.flavour]} {header.version}, but {sidecar.name} describes a plan "
            f"of {LIBRARIES[engine.flavour]} {engine.version}. Build both again with `{rebuild_command(path, engine)}`."
        )
    if hashlib.sha256(content).hexdigest() != engine.plan_sha256:
        raise DynamicConfidenceError(
            f"{path}: its {len(content)} bytes are not the plan that {sidecar.name} describes (engine.plan_sha256 "
            f"differs). Copy both again, or build them again with `{rebuild_command(path, engine)}`."
        )
    return PlanInfo(manifest, engine, content)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest alone. Raises: as `read_plan`."""
    return read_plan(path).manifest


def largest_batch(path: Path) -> int:
    """Read from the sidecar alone how many inputs the plan was built for. Raises: as `read_plan` for a bad sidecar."""
    return _decode(path, _sidecar_text(path))[1].batch


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Replace the calibration in the sidecar, whole or not at all; the plan stays as it is. Raises: as `read_plan`."""
    manifest, engine, _ = read_plan(path)
    manifest = msgspec.structs.replace(manifest, calibration=calibration)
    write_atomically(sidecar_path(path), json_from_sidecar(Sidecar(manifest, engine)))


def json_from_sidecar(sidecar: Sidecar) -> bytes:
    """Serialise a sidecar; the same one always gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(sidecar), indent=2) + b"\n"


def _decode(path: Path, text: bytes) -> tuple[Manifest, EngineIdentity]:
    sidecar = sidecar_path(path)
    if len(text) > SIZE_LIMIT:
        raise DynamicConfidenceError(
            f"{sidecar}: more than {SIZE_LIMIT} bytes, no sidecar of a plan. "
            f"Build it again with `{rebuild_command(path, None)}`."
        )
    try:
        decoded = decode_whole(text, Sidecar)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DynamicConfidenceError(
            f"{sidecar}: not a sidecar this version understands: {error}. "
            f"Build it again with `{rebuild_command(path, None)}`."
        ) from error
    return decoded.manifest, decoded.engine


def _sidecar_text(path: Path) -> bytes:
    hint = " It belongs to the plan: move both together, or build them again with"
    return _read(sidecar_path(path), rebuild_command(path, None), hint)


def _read(path: Path, command: str, hint: str = " Build it with") -> bytes:
    try:
        if not path.is_file():
            raise DynamicConfidenceError(f"{path}: no such file.{hint} `{command}`.")
        with path.open("rb") as file:
            return file.read(SIZE_LIMIT + 1) if path.suffix == ".json" else file.read()
    except OSError as error:
        raise DynamicConfidenceError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from error


def _no_plan(path: Path, content: bytes, engine: EngineIdentity | None) -> DynamicConfidenceError:
    got = f"begins with {content[:4]!r}" if content else "is empty"
    if content[:4] in MAGIC:
        got += f" and ends after {len(content)} bytes"
    return DynamicConfidenceError(
        f"{path}: {got}, expected a plan of TensorRT (b'ftrt') or TensorRT-RTX (b'vtrt'). "
        f"Build it again with `{rebuild_command(path, engine)}`."
    )


def rebuild_command(path: Path, engine: EngineIdentity | None) -> str:
    """The command that makes this plan again, exact as far as its sidecar is known."""
    force = ["--force"] if path.exists() or sidecar_path(path).exists() else []
    if engine is None:
        return shlex.join(["dc-build", str(path.with_suffix(".onnx")), "-o", str(path), *force])
    targets = CURRENT if engine.flavour == "tensorrt" else ",".join(engine.targets)
    source = str(path.with_name(engine.onnx))
    wanted = ["--flavour", engine.flavour, "--target", targets, "--batch", str(engine.batch)]
    return shlex.join(["dc-build", source, "-o", str(path), *wanted, *force])
