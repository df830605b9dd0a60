"""Build a TensorRT or TensorRT-RTX plan from an exported network, in a process of its own."""

from __future__ import annotations

import contextlib
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
from ..runtime.manifest import Manifest, Precision
from ..runtime.onnx_file import read_onnx
from ..runtime.plan_file import EngineIdentity, Sidecar, plan_header
from ..runtime.signature import signature_of_manifest
from ..runtime.tensorrt_library import one_line
from ..runtime.variants import variant
from .plan_backend import Backend, open_backend
from .plan_worker import Answer, Built, Failure, Job, Progress, Report
from .timing_cache import read_timings, timing_cache_path, write_timings

LARGEST_BATCH = 2**31 - 1
STDERR_SHOWN = 300
SAME_BYTES = {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0"}
"""One heap for all that is allocated, so that addresses keep their order from build to build (glibc)."""
ERRORS = {kind.exit_code: kind for kind in (CheckFailed, DynamicConfidenceError, BackendMissing)}


class Plan(NamedTuple):
    content: bytes
    sidecar: Sidecar
    layers: int
    """Of the network as TensorRT's parser made it from the graph."""
    notes: tuple[str, ...]
    """What went otherwise than it should and changes nothing in the plan: sentences about the timing cache."""


def plan_from_onnx(
    path: Path,
    *,
    flavour: str = "auto",
    targets: tuple[str, ...] = (),
    batch: int = 1,
    precision: Precision | None = None,
    steps_per_call: int | None = None,
    timing_cache: bool = True,
    report: Report = lambda phase, done, total: None,
) -> Plan:
    """Build a plan for `batch` inputs at most; TensorRT-RTX needs no GPU for that. The plan is not written.

    `flavour` is tensorrt, rtx or auto; `targets` are compute capabilities such as `sm89` (`plan_backend.open_backend`
    has the defaults). A plan has the precision of its graph; `precision` says which that must be. It has one K;
    `steps_per_call` chooses of a network that has several (None: the first). `timing_cache` keeps TensorRT's timings of
    kernels in the user's cache folder; TensorRT-RTX measures none. From the same network it builds the same bytes
    usually, not always (docs/adr/0005-plans.md).
    Raises: DynamicConfidenceError for a file that is no exported network or that TensorRT refuses, BackendMissing
    without the library or the GPU it needs, CheckFailed when the parsed network is not the one the manifest describes.
    """
    import onnx

    if not 1 <= batch <= LARGEST_BATCH:
        raise DynamicConfidenceError(f"batch {batch}: expected 1 to {LARGEST_BATCH}.")
    whole, manifest = read_onnx(path)
    model, manifest = variant(whole, manifest, manifest.steps_per_call if steps_per_call is None else steps_per_call)
    if precision not in (None, manifest.numerics.precision):
        raise DynamicConfidenceError(
            f"{path}: was exported in {manifest.numerics.precision}, expected {precision}. A plan has the precision of "
            f"its graph: export it again with `dc-export model.pt --precision {precision}`, or leave --precision out."
        )
    if manifest.numerics.form != "conv":
        raise DynamicConfidenceError(
            f"{path}: its form is {manifest.numerics.form}, which only ONNX Runtime runs, on a CPU. Export it again "
            f"for a plan: `dc-export model.pt --precision {manifest.numerics.precision}`."
        )
    try:  # before the parser, which takes even an empty file for a network
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DynamicConfidenceError(
            f"{path}: not a valid ONNX graph ({one_line(str(error))}). Export it again with `dc-export model.pt`."
        ) from error
    backend = open_backend(flavour, targets)
    cache = None
    if timing_cache and backend.flavour == "tensorrt":
        cache = timing_cache_path(backend.module.__version__, *backend.targets)
    timings, said = (None, "") if cache is None else read_timings(cache)
    job = Job(
        flavour=backend.flavour,
        targets=backend.targets,
        source=str(path),
        name=_name(manifest),
        batch=batch,
        expected=signature_of_manifest(manifest),
        timings=timings,
    )
    source = model.SerializeToString(deterministic=True)
    built = _build_alone(backend, job, source, report)
    content = built.plan
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
        onnx_sha256=hashlib.sha256(whole.SerializeToString(deterministic=True)).hexdigest(),  # as `dc-export` wrote it
        plan_sha256=hashlib.sha256(content).hexdigest(),
    )
    notes = [said, built.note]
    if cache is not None and built.timings is not None:
        notes.append(write_timings(cache, built.timings))
    return Plan(content, Sidecar(manifest, engine), built.layers, tuple(filter(None, notes)))


def _build_alone(backend: Backend, job: Job, content: bytes, report: Report) -> Built:
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
            built = _converse(process, job, content, report)
        except BaseException:
            process.kill()
            raise
        process.wait()
        if built is None:
            stderr.seek(0)
            said = one_line(stderr.read().decode(errors="replace"))[-STDERR_SHOWN:] or "it said nothing"
            raise CheckFailed(
                f"{job.source}: {backend} ended with code {process.returncode} in the middle of the build ({said}). "
                "Nothing was written. Try another release of it."
            )
    return built


def _converse(process: subprocess.Popen[bytes], job: Job, content: bytes, report: Report) -> Built | None:
    """Send the job, hand progress on, return what was built; None when the process ended without an answer.

    Raises: the worker's error, as what it was.
    """
    assert process.stdin is not None  # a pipe, as is stdout
    assert process.stdout is not None
    # A worker that fails at once does not read to the end; what it has to say is on its way all the same.
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(msgspec.json.encode(job) + b"\n" + content)
    for line in process.stdout:
        answer = msgspec.json.decode(line, type=Answer)
        if isinstance(answer, Progress):
            report(answer.phase, answer.done, answer.total)
        elif isinstance(answer, Failure):
            raise ERRORS[answer.exit_code](answer.message)
        else:
            plan = process.stdout.read(answer.size)
            built = Built(plan, answer.layers, answer.timings, answer.note)
            return built if len(plan) == answer.size else None
    return None


def _name(manifest: Manifest) -> str:
    """What stays readable inside the plan, which holds no metadata."""
    return json.dumps({"name": manifest.name[:64], "graph_sha256": manifest.provenance.graph_sha256[:16]})
