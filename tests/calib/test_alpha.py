"""Alpha: the methods' own values, and what --alpha takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from dynamic_confidence.calib.alpha import alphas_from_text, default_alpha
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Manifest, Method
from dynamic_confidence.runtime.onnx_file import read_onnx


@pytest.fixture(params=["qcfs", "qffs"])
def manifest(request: pytest.FixtureRequest, exported: Callable[..., Path]) -> Manifest:
    return read_onnx(exported(method=request.param))[1]


def test_the_method_has_an_alpha():
    assert default_alpha(Method("qcfs", 3, None), 27) == 27.0
    assert default_alpha(Method("qffs", 3, 3), 27) == 3.0


def test_the_exporter_writes_that_alpha(manifest: Manifest):
    assert manifest.calibration.alpha == default_alpha(manifest.method, manifest.max_steps)


def test_texts(manifest: Manifest):
    own = 12.0 if manifest.method.name == "qcfs" else 3.0
    changed = msgspec.structs.replace(manifest, calibration=msgspec.structs.replace(manifest.calibration, alpha=7.0))
    assert alphas_from_text("keep", changed) == (7.0,)
    assert alphas_from_text("method", changed) == (own,)
    assert alphas_from_text("sweep", changed) == (own / 4, own / 2, own, 2 * own, 4 * own)
    assert alphas_from_text("2.5", changed) == (2.5,)
    assert alphas_from_text("4,8, 16", changed) == (4.0, 8.0, 16.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", r"--alpha best: expected keep, method, sweep, a number, or several to sweep: --alpha 4,8,16\."),
        ("4,", r"--alpha 4,: expected keep"),
        ("4,-1", "alpha -1: expected a positive number"),
        ("nan", "alpha nan: expected a positive number"),
        ("4,8,4.0", r"--alpha 4,8,4\.0: a number stands twice"),
    ],
)
def test_texts_that_make_no_sense(manifest: Manifest, text: str, message: str):
    with pytest.raises(DynamicConfidenceError, match=message):
        alphas_from_text(text, manifest)
