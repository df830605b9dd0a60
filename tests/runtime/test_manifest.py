"""The manifest: the same record gives the same bytes, and whatever does not belong in it is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamic_confidence.runtime import manifest_json as module
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Calibration, Grid, Manifest, Method, Preprocessing, State
from dynamic_confidence.runtime.manifest_json import json_from_manifest, manifest_from_json
from dynamic_confidence.runtime.onnx_file import read_onnx


@pytest.fixture(scope="module")
def manifest(exported: Callable[..., Path]) -> Manifest:
    return read_onnx(exported(method="qffs", steps_per_call=4))[1]


@pytest.fixture
def plain(manifest: Manifest) -> dict[str, Any]:
    return json.loads(json_from_manifest(manifest))


def test_round_trip_gives_the_same_record_and_the_same_bytes(manifest: Manifest):
    text = json_from_manifest(manifest)
    assert manifest_from_json(text, "net.onnx") == manifest
    assert manifest_from_json(text.encode(), "net.onnx") == manifest
    assert json_from_manifest(manifest_from_json(text, "net.onnx")) == text
    assert manifest.input.preprocessing.shape == (1, 12, 12)
    assert manifest.has_output("spikes")


def test_colour_images_have_three_channels(manifest: Manifest):
    colour = msgspec.structs.replace(manifest.input.preprocessing, color="RGB", mean=(0.5,) * 3, std=(1.0,) * 3)
    assert colour.shape == (3, 12, 12)


def test_scale_is_alpha_times_temperature():
    assert Calibration(alpha=3.0, temperature=0.5).scale == 1.5


def part(plain: dict[str, Any], path: str) -> Any:
    for key in filter(None, path.split(".")):
        plain = plain[int(key) if key.isdigit() else key]  # type: ignore[index]
    return plain


PARTS = ("", "input", "input.preprocessing", "states.0", "outputs.1", "method", "calibration", "numerics", "provenance")


@pytest.mark.parametrize("path", [*PARTS, "numerics.grids.0"])
def test_an_unknown_key_is_named(plain: dict[str, Any], path: str):
    part(plain, path)["colour"] = 1
    with pytest.raises(DynamicConfidenceError, match=r"net\.onnx: the manifest .* `colour`.*`dc-export model\.pt`"):
        manifest_from_json(json.dumps(plain), "net.onnx")


@pytest.mark.parametrize("path", [*PARTS, "numerics.grids.0"])
def test_every_key_must_stand(plain: dict[str, Any], path: str):
    """Also one with a default in code: another reader may know another default."""
    for key in list(part(plain, path)):
        shorter = json.loads(json.dumps(plain))
        del part(shorter, path)[key]
        where = rf"missing required field `{key}`( - at `\$.*{path.split('.')[0]}.*`)?"
        with pytest.raises(DynamicConfidenceError, match=rf"net\.onnx: .*{where}.*`dc-export model\.pt`"):
            manifest_from_json(json.dumps(shorter), "net.onnx")


def test_a_part_that_a_file_may_leave_out_can_be_added():
    """How a later version of this package adds a key: files of today stay valid."""

    class Later(Calibration, frozen=True):
        engine: str | msgspec.UnsetType = msgspec.UNSET

    text = msgspec.json.encode(Later(alpha=3.0))
    assert b"engine" not in text
    later = msgspec.json.decode(text, type=Later)
    module.require_keys(json.loads(text), msgspec.to_builtins(later))
    assert b'"engine":"a"' in msgspec.json.encode(Later(alpha=3.0, engine="a"))


@pytest.mark.parametrize(
    ("path", "key", "value", "message"),
    [
        ("", "version", 2, "version 2, this release reads version 1"),
        ("", "steps_per_call", 0, "steps_per_call 0 and max_steps 12 must be at least 1"),
        ("", "max_steps", -1, "steps_per_call 4 and max_steps -1 must be at least 1"),
        ("", "steps_per_call", 2, r"outputs .*\(4, 'N', 4\).*, expected .*\(2, 'N', 4\)"),
        ("", "class_names", ["a", "b"], r"outputs .*\(4, 'N', 4\).*, expected .*\(4, 'N', 2\)"),
        ("", "outputs", [], r"outputs \{\}, expected \{'logits'"),
        ("calibration", "threshold", 1.5, r"threshold 1\.5 is outside \[0, 1\]"),
        ("calibration", "threshold", -0.1, r"threshold -0\.1 is outside \[0, 1\]"),
        ("calibration", "alpha", 0, r"alpha 0 and temperature 1 must be positive and finite.*`\$\.calibration`"),
        ("calibration", "temperature", -2.5, r"alpha 3 and temperature -2\.5 must be positive"),
        ("calibration", "alpha", None, r"Expected `float`, got `null` - at `\$\.calibration\.alpha`"),
        (
            "calibration",
            "alpha",
            1e-44,
            "alpha 1e-44 and temperature 1: their product must lie in the range of float32",
        ),
        ("calibration", "temperature", 1e300, r"temperature 1e\+300: their product must lie in the range of float32"),
        ("calibration", "min_step", 0, "min_step 0 must be at least 1"),
        ("calibration", "min_step", 13, r"calibration\.min_step 13: expected at most max_steps 12"),
        ("states.0", "shape", [1, 1, 1, 1], r"state t_in: shape \[1, 1, 1, 1\], expected 'N' and positive.*states\[0"),
        ("states.0", "shape", ["N", 0, 1, 1], r"shape \['N', 0, 1, 1\], expected 'N' and positive sizes"),
        ("states.0", "shape", ["N", "M", 1, 1], r"shape \['N', 'M', 1, 1\], expected 'N' and positive sizes"),
        ("states.0", "shape", [], r"shape \[\], expected 'N' and positive sizes"),
        ("states.0", "input", "acc_in", r"inputs, states and outputs .*'acc_in', 'acc_in'.*: a name stands twice"),
        ("states.0", "output", "logits", "a name stands twice"),
        ("", "scale_input", "input", "a name stands twice"),
        ("outputs.2", "dtype", "float32", "output label: dtype float32, expected int64"),
        ("outputs.0", "dtype", "int64", "output logits: dtype int64, expected float32"),
        ("outputs.3", "shape", [4, "N", 0], r"output spikes \(4, 'N', 0\), expected \(4, 'N', 'layers'\)"),
        ("outputs.3", "shape", ["N", 7], r"output spikes \('N', 7\), expected"),
        ("outputs.3", "name", "logits", "a name stands twice"),
        ("", "class_names", [], "outputs .* from steps_per_call and class_names"),
        ("input.preprocessing", "color", "RGB", r"mean \[0\.3\]: expected 3 finite numbers for color RGB"),
        ("input.preprocessing", "std", [0.1, 0.1], r"std \[0\.1, 0\.1\]: expected 1 finite numbers for color L"),
        ("input.preprocessing", "std", [0], r"std \[0(\.0)?\] must be positive"),
        ("input.preprocessing", "height", 0, "height 0 and width 12 must be at least 1"),
        ("input.preprocessing", "resize_shorter_side", 11, "resize_shorter_side 11: expected at least 12, .* or null"),
        ("method", "levels", 0, "levels 0 must be at least 1"),
        ("method", "injection_steps", None, "injection_steps None: expected at least 1 with qffs"),
        ("method", "injection_steps", 0, "injection_steps 0: expected at least 1 with qffs"),
        ("method", "name", "qcfs", "injection_steps 3: expected null with qcfs"),
        ("numerics.grids.0", "exponent", 0, "exponent 0, expected 1 to 40"),
        ("numerics.grids.0", "exponent", 41, "exponent 41, expected 1 to 40"),
        ("numerics.grids.0", "head_room", 3.0, r"head_room 3\.0, expected \d+"),
        ("numerics.grids.0", "bound", 1e9, r"bound 1000000000\.0, expected 0 to head_room"),
        ("numerics.grids.0", "bound", -1, r"bound -1(\.0)?, expected 0 to head_room"),
        ("input", "shape", ["N", 1, 28, 28], r"input shape \('N', 1, 28, 28\), expected .*from its preprocessing"),
        ("calibration", "metric", "energy", r"Invalid enum value 'energy' - at `\$\.calibration\.metric`"),
        ("method", "name", "rate", r"Invalid enum value 'rate' - at `\$\.method\.name`"),
        ("input", "dtype", "float32", r"Invalid enum value 'float32' - at `\$\.input\.dtype`"),
        ("input.preprocessing", "height", "12", r"Expected `int`, got `str` - at `\$\.input\.preprocessing\.height`"),
    ],
)
def test_a_wrong_value_is_named(plain: dict[str, Any], path: str, key: str, value: object, message: str):
    part(plain, path)[key] = value
    with pytest.raises(DynamicConfidenceError, match=rf"net\.onnx: .*{message}.*`dc-export model\.pt`"):
        manifest_from_json(json.dumps(plain), "net.onnx")


SCHEDULE = {
    "calls": [8, 4],
    "cost_ms": [[4, 1.5], [8, 2.5]],
    "engine": "ONNX Runtime",
    "threads": None,
    "expected_ms": 3.0,
    "measured_ms": 3.5,
}


@pytest.fixture
def tuned(plain: dict[str, Any]) -> dict[str, Any]:
    """With calls of four and of eight steps, and a schedule of both."""
    return plain | {"more_steps_per_call": [8], "schedule": json.loads(json.dumps(SCHEDULE))}


def test_a_tuned_network(tuned: dict[str, Any]):
    manifest = manifest_from_json(json.dumps(tuned), "net.onnx")
    assert manifest.call_sizes == (4, 8)
    assert manifest.schedule is not None
    assert manifest.schedule.calls == (8, 4)
    assert dict(manifest.schedule.cost_ms) == {4: 1.5, 8: 2.5}
    assert json.loads(json_from_manifest(manifest)) == tuned


@pytest.mark.parametrize(
    ("path", "key", "value", "message"),
    [
        ("", "more_steps_per_call", [], r"schedule\.calls \[8, 4\]: expected some of \[4\]"),
        ("", "more_steps_per_call", [8, 8], r"a name stands twice"),
        ("", "more_steps_per_call", [16, 8], r"more_steps_per_call \[16, 8\]: expected ascending numbers above .*, 4"),
        (
            "",
            "more_steps_per_call",
            [2],
            r"more_steps_per_call \[2\]: expected ascending numbers above steps_per_call, 4",
        ),
        ("", "more_steps_per_call", [8, 9], r"schedule\.cost_ms \[4, 8\]: expected all of \[4, 8, 9\]"),
        ("states.0", "input", "label@8", "a name stands twice"),
        ("schedule", "calls", [], r"schedule\.calls \[\]: expected at least one, each with its cost_ms, \[4, 8\]"),
        ("schedule", "calls", [3], r"schedule\.calls \[3\]: expected at least one, each with its cost_ms, \[4, 8\]"),
        ("schedule", "cost_ms", [[4, 1.0], [4, 2.0]], r"schedule\.cost_ms \[4, 4\]: a number of steps stands twice"),
        ("schedule", "cost_ms", [[4, 1.0], [8, 0.0]], r"schedule: \[.*\] ms must be positive and finite"),
        ("schedule", "expected_ms", -1.0, r"schedule: \[-1\.0, .*\] ms must be positive and finite"),
        ("schedule", "colour", 1, "`colour`"),
    ],
)
def test_calls_and_schedules_that_cannot_be(tuned: dict[str, Any], path: str, key: str, value: object, message: str):
    part(tuned, path)[key] = value
    with pytest.raises(DynamicConfidenceError, match=rf"net\.onnx: .*{message}.*`dc-export model\.pt`"):
        manifest_from_json(json.dumps(tuned), "net.onnx")


@pytest.mark.parametrize("key", list(SCHEDULE))
def test_every_key_of_a_schedule_must_stand(tuned: dict[str, Any], key: str):
    del tuned["schedule"][key]
    with pytest.raises(DynamicConfidenceError, match=rf"missing required field `{key}`"):
        manifest_from_json(json.dumps(tuned), "net.onnx")


def test_frames_have_one_k(exported: Callable[..., Path]):
    frames = json.loads(json_from_manifest(read_onnx(exported(steps_per_call=4, frames=True))[1]))
    with pytest.raises(DynamicConfidenceError, match=r"more_steps_per_call \[8\] with frames: expected none"):
        manifest_from_json(json.dumps(frames | {"more_steps_per_call": [8]}), "net.onnx")


def test_qffs_needs_the_spikes(plain: dict[str, Any]):
    plain["outputs"] = plain["outputs"][:3]
    with pytest.raises(DynamicConfidenceError, match="a qffs network has the output spikes, expected it"):
        manifest_from_json(json.dumps(plain), "net.onnx")


@pytest.mark.parametrize(("shape", "method"), [([4, "N", 6], "qffs"), ([4, "N", 7], "qcfs")])
def test_net_spikes_stand_beside_the_spikes_of_qffs(plain: dict[str, Any], shape: list[object], method: str):
    plain["outputs"].append({"name": "net_spikes", "shape": [4, "N", 7], "dtype": "float32"})
    assert manifest_from_json(json.dumps(plain), "net.onnx").has_output("net_spikes")
    plain["outputs"][-1]["shape"] = shape
    plain["method"] |= {"name": method, "injection_steps": 3 if method == "qffs" else None}
    with pytest.raises(
        DynamicConfidenceError, match=r"output net_spikes .*: expected with qffs only, and of the shape"
    ):
        manifest_from_json(json.dumps(plain), "net.onnx")


@pytest.mark.parametrize("alpha", [float("inf"), float("nan"), -1.0])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: Calibration(alpha=x), "must be positive and finite"),
        (lambda x: msgspec.structs.replace(Calibration(alpha=3.0), temperature=x), "must be positive and finite"),
        (lambda x: Preprocessing(color="L", height=1, width=1, mean=(0.0,), std=(x,)), "std"),
        (lambda x: Grid(layer="a", exponent=10, head_room=2.0**14, bound=x, source="measured"), "layer a: bound"),
    ],
)
def test_no_such_record_can_be_made(make: Callable[[float], object], message: str, alpha: float):
    """In code it is one of our errors, so a command shows one line and needs no check of its own."""
    with pytest.raises(DynamicConfidenceError, match=message):
        make(alpha)


def test_records_made_in_code():
    assert Method(name="qcfs", levels=1, injection_steps=None).injection_steps is None
    assert Grid(layer="a", exponent=40, head_room=2.0**-16, bound=0.0, source="worst case").bound == 0
    with pytest.raises(DynamicConfidenceError, match="initial inf must be finite"):
        State(input="a", output="b", shape=("N",), dtype="float32", initial=float("inf"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"what", "invalid|malformed"),
        (b"[]", "Expected `object`, got `array`"),
        (b"\xff\xfe{", "invalid|malformed"),
        (b'{"version": 1, "name": "\xff"}', "[Ii]nvalid"),
        (b"[" * 100_000, "truncated|Expected `object`"),
    ],
)
def test_what_is_not_json_is_refused(text: bytes, message: str):
    with pytest.raises(DynamicConfidenceError, match=rf"net\.onnx: the manifest is not one .*({message})"):
        manifest_from_json(text, "net.onnx")


def test_an_oversized_manifest_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SIZE_LIMIT", 10)
    with pytest.raises(DynamicConfidenceError, match=r"net\.onnx: the manifest has 11 bytes, at most 10 are read"):
        manifest_from_json("{" + 10 * " ", "net.onnx")
