"""Build a TensorRT or TensorRT-RTX plan from an exported network, in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import msgspec

from ..runtime.errors import BackendMissing, CheckFailed, DynamicConfidenceError
from ..runtime.manifest import Dim, Manifest
from ..runtime.onnx_file import read_onnx
from ..runtime.plan_file import EngineIdentity, Sidecar, plan_header
from .plan_backend import Backend, open_backend
from .plan_worker import Answer, Failure, Job, Progress, Report, Signature, one_line

LARGEST_BATCH = 2**31 - 1
STDERR_SHOWN = 300
SAME_BYTES = {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0"}
"""One heap for all that is allocated, so that addresses keep their order from build to build (glibc)."""
ERRORS = {kind.exit_code: kind for kind in (CheckFailed, DynamicConfidenceError, BackendMissing)}


class Plan(NamedTuple):
    content: bytes
    sidecar: Sidecar


def plan_from_onnx(
    path: Path,
    *,
    flavour: str = "auto",
    targets: tuple[str, ...] = (),
    batch: int = 1,
    report: Report = lambda phase, done, total: None,
) -> Plan:
    """Build a plan for `batch` inputs at most; TensorRT-RTX needs no GPU for that. Nothing is written.

    `flavour` is tensorrt, rtx or auto; `targets` are compute capabilities such as `sm89` (`plan_backend.open_backend`
    has the defaults). From the same network TensorRT-RTX builds the same bytes usually, not always
    (docs/adr/0005-plans.md).
    Raises: DynamicConfidenceError for a file that is no exported network or that TensorRT refuses, BackendMissing
    without the library or the GPU it needs, CheckFailed when the parsed network is not the one the manifest describes.
    """
    import onnx

    if not 1 <= batch <= LARGEST_BATCH:
        raise DynamicConfidenceError(f"batch {batch}: expected 1 to {LARGEST_BATCH}.")
    model, manifest = read_onnx(path)
    source_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    try:  # before the parser, which takes even an empty file for a network
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DynamicConfidenceError(
            f"{path}: not a valid ONNX graph ({one_line(str(error))}). Export it again with `dc-export model.pt`."
        ) from error
    backend = open_backend(flavour, targets)
    job = Job(
        flavour=backend.flavour,
        targets=backend.targets,
        source=str(path),
        name=_name(manifest),
        batch=batch,
        expected=signature_of(manifest),
    )
    content = _build_alone(backend, job, model.SerializeToString(deterministic=True), report)
    header = plan_header(content)
    if header is None or header.flavour != backend.flavour:
        raise CheckFailed(
            f"{path}: {backend} built something that begins with {content[:4]!r}, expected a plan. "
            "Nothing was written. Install another release of it."
        )
    engine = EngineIdentity(
        flavour=backend.flavour,
        version=header.version,
        targets=backend.targets,
        batch=batch,
        onnx=path.name,
        onnx_sha256=source_sha256,
        plan_sha256=hashlib.sha256(content).hexdigest(),
    )
    return Plan(content, Sidecar(manifest, engine))


def _build_alone(backend: Backend, job: Job, content: bytes, report: Report) -> bytes:
    """Build in a fresh process, `plan_worker`.

    TensorRT orders parts of a plan by address, so its bytes depend on all that the process did before (measured: the
    progress bar of a terminal changes them); and a fault in native code or Ctrl-C ends that process, not this one.
    """
    command = [sys.executable, "-m", f"{__package__}.plan_worker"]
    environment = {**os.environ, **SAME_BYTES, "PYTHONSAFEPATH": "1"}
    # Whatever lies in the user's folder must not be imported; before Python 3.11 the other folder sees to that.
    folder = Path(sys.executable).parent
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment, cwd=folder
        ) as process,
    ):
        try:
            plan = _converse(process, job, content, report)
        except BaseException:
            process.kill()
            raise
        process.wait()
        if plan is None:
            stderr.seek(0)
            said = one_line(stderr.read().decode(errors="replace"))[-STDERR_SHOWN:] or "it said nothing"
            raise CheckFailed(
                f"{job.source}: {backend} ended with code {process.returncode} in the middle of the build ({said}). "
                "Nothing was written. Try another release of it."
            )
    return plan


def _converse(process: subprocess.Popen[bytes], job: Job, content: bytes, report: Report) -> bytes | None:
    """Send the job, hand progress on, return the plan; None when the process ended without an answer.

    Raises: the worker's error, as what it was.
    """
    assert process.stdin is not None  # a pipe, as is stdout
    assert process.stdout is not None
    try:
        with process.stdin as stdin:
            stdin.write(msgspec.json.encode(job) + b"\n" + content)
    except BrokenPipeError:
        return None
    for line in process.stdout:
        answer = msgspec.json.decode(line, type=Answer)
        if isinstance(answer, Progress):
            report(answer.phase, answer.done, answer.total)
        elif isinstance(answer, Failure):
            raise ERRORS[answer.exit_code](answer.message)
        else:
            plan = process.stdout.read(answer.size)
            return plan if len(plan) == answer.size else None
    return None


def signature_of(manifest: Manifest) -> tuple[Signature, Signature]:
    """Inputs and outputs of the network that the manifest describes."""

    def entry(dtype: str, shape: tuple[Dim, ...]) -> tuple[str, tuple[int, ...]]:
        return dtype, tuple(dim if isinstance(dim, int) else -1 for dim in shape)

    image = {manifest.input.name: entry(manifest.input.dtype, manifest.input.shape)}
    before = {state.input: entry(state.dtype, state.shape) for state in manifest.states}
    after = {state.output: entry(state.dtype, state.shape) for state in manifest.states}
    answers = {output.name: entry(output.dtype, output.shape) for output in manifest.outputs}
    return {**image, manifest.scale_input: entry("float32", ()), **before}, {**after, **answers}


def _name(manifest: Manifest) -> str:
    """What stays readable inside the plan, which holds no metadata."""
    return json.dumps({"name": manifest.name[:64], "graph_sha256": manifest.provenance.graph_sha256[:16]})
