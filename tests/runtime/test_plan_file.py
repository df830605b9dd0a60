"""A plan and its sidecar, read without a GPU or TensorRT: each fault is a sentence with the command that mends it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from dynamic_confidence.runtime import network_file
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Calibration
from dynamic_confidence.runtime.manifest_json import SIZE_LIMIT
from dynamic_confidence.runtime.onnx_file import read_onnx
from dynamic_confidence.runtime.plan_file import (
    EngineIdentity,
    PlanHeader,
    Sidecar,
    json_from_sidecar,
    largest_batch,
    plan_header,
    read_manifest,
    read_plan,
    sidecar_path,
    write_calibration,
)

PLAN = b"vtrt" + bytes(20) + bytes([1, 7, 1, 116]) + b"the engine"
KNOWN = "dc-build {folder}/source.onnx -o {folder}/net.plan --flavour rtx --target sm86,sm89 --batch 4 --force"
GUESS = "dc-build {folder}/net.onnx -o {folder}/net.plan --force"


@pytest.fixture
def plan(exported: Callable[..., Path], tmp_path: Path) -> Path:
    """The header and sidecar of a plan; nothing here executes the rest."""
    engine = EngineIdentity(
        flavour="rtx",
        version="1.7.1.116",
        targets=("sm86", "sm89"),
        batch=4,
        onnx="source.onnx",
        onnx_sha256="0" * 64,
        plan_sha256=hashlib.sha256(PLAN).hexdigest(),
    )
    path = tmp_path / "net.plan"
    path.write_bytes(PLAN)
    sidecar_path(path).write_bytes(json_from_sidecar(Sidecar(read_onnx(exported())[1], engine)))
    return path


def refused(path: Path, message: str, command: str) -> None:
    with pytest.raises(DynamicConfidenceError) as caught:
        read_plan(path)
    text = str(caught.value)
    assert message in text
    assert f"`{command.format(folder=path.parent)}`" in text
    assert "\n" not in text


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(sidecar_path(path).read_text())
    change(content)
    sidecar_path(path).write_text(json.dumps(content))


def test_a_plan_and_its_sidecar(plan: Path, exported: Callable[..., Path]):
    info = read_plan(plan)
    assert info.content == PLAN
    assert info.manifest == read_onnx(exported())[1] == read_manifest(plan)
    assert info.engine.targets == ("sm86", "sm89")


@pytest.mark.parametrize(
    ("content", "header"),
    [
        (PLAN, PlanHeader("rtx", "1.7.1.116")),
        (b"ftrt" + bytes(20) + bytes([10, 3, 0, 26]), PlanHeader("tensorrt", "10.3.0.26")),
        (b"", None),
        (bytes(64), None),
        (b"vtrt" + bytes(23), None),
        (b"a text of more than 28 bytes, no plan", None),
    ],
    ids=["rtx", "tensorrt", "empty", "zeros", "short", "junk"],
)
def test_the_header(content: bytes, header: PlanHeader | None):
    assert plan_header(content) == header


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "net.plan: is empty, expected a plan of TensorRT (b'ftrt') or TensorRT-RTX (b'vtrt')"),
        (bytes(100), r"net.plan: begins with b'\x00\x00\x00\x00', expected a plan"),
        (b"a text of more than 28 bytes, no plan", "net.plan: begins with b'a te', expected a plan"),
        (PLAN[:20], "net.plan: begins with b'vtrt' and ends after 20 bytes, expected a plan"),
    ],
    ids=["empty", "zeros", "junk", "header cut"],
)
@pytest.mark.parametrize("has_sidecar", [True, False])
def test_no_plan(plan: Path, content: bytes, message: str, has_sidecar: bool):
    plan.write_bytes(content)
    if not has_sidecar:
        sidecar_path(plan).unlink()
    refused(plan, message, KNOWN if has_sidecar else GUESS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PLAN[:-1], "its 37 bytes are not the plan that net.plan.json describes (engine.plan_sha256 differs)"),
        (PLAN[:-1] + b"!", "(engine.plan_sha256 differs)"),
        (b"ftrt" + PLAN[4:], "was built by TensorRT 1.7.1.116, but net.plan.json describes a plan of TensorRT-RTX 1.7"),
        (PLAN[:24] + bytes([1, 8, 0, 1]) + PLAN[28:], "was built by TensorRT-RTX 1.8.0.1, but net.plan.json describes"),
    ],
    ids=["truncated", "one byte", "flavour", "version"],
)
def test_another_plan_than_the_sidecars(plan: Path, content: bytes, message: str):
    plan.write_bytes(content)
    refused(plan, message, KNOWN)


def test_a_missing_plan(plan: Path):
    plan.unlink()
    refused(plan, "net.plan: no such file. Build it with", GUESS)  # its sidecar is still there
    sidecar_path(plan).unlink()
    refused(plan, "net.plan: no such file. Build it with", GUESS.removesuffix(" --force"))


def test_a_missing_sidecar(plan: Path):
    sidecar_path(plan).unlink()
    refused(plan, "net.plan.json: no such file. It belongs to the plan: move both together, or build them again", GUESS)


def test_a_link_to_a_plan(plan: Path, tmp_path: Path):
    link = tmp_path / "elsewhere" / "link.plan"
    link.parent.mkdir()
    link.symlink_to(plan)
    assert read_plan(link) == read_plan(plan)


def test_a_folder_with_a_space(plan: Path):
    folder = plan.parent / "my plans"
    folder.mkdir()
    (folder / "net.plan").write_bytes(PLAN)
    with pytest.raises(DynamicConfidenceError, match=r"`dc-build '.*/my plans/net\.onnx' -o '.*/my plans/net\.plan'"):
        read_plan(folder / "net.plan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("engine"), "Object missing required field `engine`"),
        (lambda s: s.pop("manifest"), "Object missing required field `manifest`"),
        (lambda s: s["engine"].pop("version"), "Object missing required field `version` - at `$.engine`"),
        (lambda s: s["manifest"]["calibration"].pop("rule"), "field `rule` - at `$.manifest.calibration`"),
        (lambda s: s.update(extra=1), "Object contains unknown field `extra`"),
        (lambda s: s["engine"].update(extra=1), "Object contains unknown field `extra` - at `$.engine`"),
        (lambda s: s["engine"].update(flavour="trt"), "Invalid enum value 'trt' - at `$.engine.flavour`"),
        (lambda s: s["engine"].update(batch=0), "batch 0, targets ['sm86', 'sm89']: expected at least 1 of each"),
        (lambda s: s["engine"].update(targets=[]), "batch 4, targets []: expected at least 1 of each"),
        (
            lambda s: s["engine"].update(targets=["sm80+\x1b[2J"]),
            r"target 'sm80+\x1b[2J': expected a compute capability",
        ),
        (lambda s: s["engine"].update(onnx="a/b.onnx"), "onnx 'a/b.onnx': expected the name of a file, without its"),
        (lambda s: s["engine"].update(onnx=""), "onnx '': expected the name of a file"),
        (lambda s: s["engine"].update(onnx=".."), "onnx '..': expected the name of a file"),
        (lambda s: s["engine"].update(onnx_sha256="ab"), "onnx_sha256 'ab': expected 64 hexadecimal digits"),
        (lambda s: s["engine"].update(plan_sha256="F" * 64), "FFF': expected 64 hexadecimal digits"),
        (lambda s: s["manifest"].update(version=2), "version 2, this release reads version 1"),
    ],
)
def test_a_sidecar_of_another_kind(plan: Path, change: Callable[[dict], object], message: str):
    edit(plan, change)
    refused(plan, message, GUESS)


@pytest.mark.parametrize("text", [b"", b"\0" * 40, b"no JSON", b"[]", b"\xff\xfe", b'{"manifest": {'])
def test_a_sidecar_that_is_none(plan: Path, text: bytes):
    sidecar_path(plan).write_bytes(text)
    refused(plan, "net.plan.json: not a sidecar this version understands", GUESS)


def test_a_sidecar_that_is_too_large(plan: Path):
    with sidecar_path(plan).open("wb") as file:
        file.truncate(SIZE_LIMIT + 1)
    refused(plan, f"net.plan.json: more than {SIZE_LIMIT} bytes", GUESS)


def test_a_new_calibration_changes_the_sidecar_only(plan: Path):
    before = read_plan(plan)
    write_calibration(plan, Calibration(alpha=2.0, threshold=0.75))
    after = read_plan(plan)
    assert after.manifest.calibration == Calibration(alpha=2.0, threshold=0.75)
    assert after == before._replace(
        manifest=msgspec.structs.replace(before.manifest, calibration=Calibration(2.0, 1.0, 0.75))
    )
    assert {entry.name for entry in plan.parent.iterdir()} == {"net.plan", "net.plan.json"}


def test_the_largest_batch_is_read_from_the_sidecar_alone(plan: Path, exported: Callable[..., Path]):
    assert network_file.largest_batch(exported()) is None
    plan.write_bytes(b"")
    assert network_file.largest_batch(plan) == largest_batch(plan) == 4
    sidecar_path(plan).unlink()
    with pytest.raises(DynamicConfidenceError, match=r"net\.plan\.json: no such file\. It belongs to the plan"):
        largest_batch(plan)


def test_no_calibration_for_a_broken_plan(plan: Path):
    text = sidecar_path(plan).read_bytes()
    plan.write_bytes(PLAN + b"!")
    with pytest.raises(DynamicConfidenceError, match="plan_sha256 differs"):
        write_calibration(plan, Calibration(alpha=2.0))
    assert sidecar_path(plan).read_bytes() == text


def test_the_same_sidecar_gives_the_same_bytes(plan: Path):
    info = read_plan(plan)
    text = sidecar_path(plan).read_bytes()
    assert json_from_sidecar(Sidecar(info.manifest, info.engine)) == text
    assert list(json.loads(text)) == ["manifest", "engine"]
