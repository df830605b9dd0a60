"""The manifest: the same record gives the same bytes, and whatever does not belong in it is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamic_confidence.runtime import manifest as module
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Calibration, Manifest, json_from_manifest, manifest_from_json
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
    colour = msgspec.structs.replace(manifest.input.preprocessing, color="RGB")
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


@pytest.mark.parametrize(
    ("path", "key"),
    [("", "class_names"), ("input.preprocessing", "mean"), ("states.0", "initial"), ("calibration", "alpha")],
)
def test_a_missing_key_is_named(plain: dict[str, Any], path: str, key: str):
    del part(plain, path)[key]
    with pytest.raises(DynamicConfidenceError, match=rf"missing required field `{key}`.*`dc-export model\.pt`"):
        manifest_from_json(json.dumps(plain), "net.onnx")


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
        ("calibration", "alpha", 0, "alpha 0 and temperature 1 must be positive"),
        ("calibration", "temperature", -2.5, r"alpha 3 and temperature -2\.5 must be positive"),
        ("calibration", "alpha", None, r"Expected `float`, got `null` - at `\$\.calibration\.alpha`"),
        ("calibration", "min_step", 0, "min_step 0 must be at least 1"),
        ("input", "shape", ["N", 1, 28, 28], r"input shape \('N', 1, 28, 28\), expected .*from its preprocessing"),
        ("calibration", "metric", "entropy", r"Invalid enum value 'entropy' - at `\$\.calibration\.metric`"),
        ("method", "name", "rate", r"Invalid enum value 'rate' - at `\$\.method\.name`"),
        ("input", "dtype", "float32", r"Invalid enum value 'float32' - at `\$\.input\.dtype`"),
        ("input.preprocessing", "height", "12", r"Expected `int`, got `str` - at `\$\.input\.preprocessing\.height`"),
    ],
)
def test_a_wrong_value_is_named(plain: dict[str, Any], path: str, key: str, value: object, message: str):
    part(plain, path)[key] = value
    with pytest.raises(DynamicConfidenceError, match=rf"net\.onnx: .*{message}.*`dc-export model\.pt`"):
        manifest_from_json(json.dumps(plain), "net.onnx")


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
