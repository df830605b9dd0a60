"""Plans that do not fit the options, the library or the GPU: each is a sentence with the exact command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from memory_network import manifest_of

from dynamic_confidence.runtime.engine import EngineOptions
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.plan_file import EngineIdentity
from dynamic_confidence.runtime.plan_fit import check_options, check_target, check_version

PATH = Path("net.plan")
BUILT = EngineIdentity("rtx", "1.7.1.116", ("sm86", "sm89"), 4, "net.onnx", "0" * 64, "0" * 64)
ON_DEVICE = msgspec.structs.replace(BUILT, flavour="tensorrt", version="10.3.0.26", targets=("sm87",))
KNOWN = ["sm75", "sm80", "sm86", "sm89", "sm120", "name"]


def refused(check: Callable[[], None]) -> str:
    with pytest.raises(DynamicConfidenceError) as caught:
        check()
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"provider": "cuda"},
            "provider cuda is for .onnx files; a plan was optimised for a GPU when it was built. Leave",
        ),
        ({"threads": 2}, "threads 2 is for .onnx files; a plan was optimised"),
        ({"optimize": False}, "optimize False is for .onnx files"),
        ({"backend": "openvino"}, "backend openvino is for .onnx files"),
        (
            {"batch": 5},
            "batch 5, but it was built for 4 at most. Build it again with `dc-build net.onnx -o net.plan --flavour rtx "
            "--target sm86,sm89 --batch 5`.",
        ),
    ],
)
def test_options_that_a_plan_has_not(options: dict, message: str):
    text = refused(lambda: check_options(PATH, manifest_of([([1], 0.0)]), BUILT, EngineOptions(**options)))
    assert text.startswith(f"net.plan: {message}")


def test_no_step_ahead_of_frames():
    frames = manifest_of([([1], 0.0)], frames=True)
    text = refused(lambda: check_options(PATH, frames, BUILT, EngineOptions(speculate=True)))
    assert text.startswith("net.plan: speculate starts the next call before its image is known, but this network takes")


def test_options_that_fit():
    still, frames = manifest_of([([1], 0.0)]), manifest_of([([1], 0.0)], frames=True)
    check_options(PATH, still, BUILT, EngineOptions(batch=4, speculate=True, cuda="pycuda", cuda_graphs=False))
    check_options(PATH, frames, BUILT, EngineOptions())


@pytest.mark.parametrize(
    ("built", "installed"),
    [
        (BUILT, "1.7.1.116"),
        (ON_DEVICE, "10.3.0"),
        (ON_DEVICE, "10.3.0.26"),
        (ON_DEVICE, "10.3.0.26.post1"),
    ],
)
def test_the_same_release(built: EngineIdentity, installed: str):
    check_version(PATH, built, installed)


@pytest.mark.parametrize(
    ("built", "installed", "message"),
    [
        (
            BUILT,
            "1.8.0.1",
            "net.plan: was built by TensorRT-RTX 1.7.1.116, installed is 1.8.0.1, and a plan runs with its own release "
            "only. Build it again with `dc-build net.onnx -o net.plan --flavour rtx --target sm86,sm89 --batch 4`.",
        ),
        (BUILT, "1.7.1.117", "net.plan: was built by TensorRT-RTX 1.7.1.116, installed is 1.7.1.117"),
        (
            ON_DEVICE,
            "10.7.0",
            "net.plan: was built by TensorRT 10.3.0.26, installed is 10.7.0, and a plan runs with its own release "
            "only. Build it again with `dc-build net.onnx -o net.plan --flavour tensorrt --target current --batch 4`.",
        ),
    ],
)
def test_another_release(built: EngineIdentity, installed: str, message: str):
    assert refused(lambda: check_version(PATH, built, installed)).startswith(message)


@pytest.mark.parametrize(
    ("targets", "gpu"),
    [
        (("sm86", "sm89"), "sm89"),
        (("sm80+",), "sm80"),
        (("sm80+",), "sm89"),
        (("sm80+",), "sm90"),
        (("sm80+",), "sm120"),
    ],
)
def test_a_gpu_among_the_targets(targets: tuple[str, ...], gpu: str):
    check_target(PATH, msgspec.structs.replace(BUILT, targets=targets), gpu, "a GPU", KNOWN)


@pytest.mark.parametrize(
    ("built", "targets", "gpu", "message"),
    [
        (BUILT, ("sm86", "sm89"), "sm120", "was built for sm86, sm89, this GPU is sm120 (a GPU). Build|--target sm120"),
        (
            BUILT,
            ("sm86", "sm89"),
            "sm90",
            "was built for sm86, sm89, this GPU is sm90 (a GPU)|--target sm80+ --batch 4`.",
        ),
        (
            BUILT,
            ("sm80+",),
            "sm75",
            "was built for sm80+, this GPU is sm75 (a GPU)|--flavour rtx --target sm75 --batch",
        ),
        (ON_DEVICE, ("sm87",), "sm89", "was built for sm87, this GPU is sm89|--flavour tensorrt --target current "),
    ],
)
def test_a_gpu_that_is_no_target(built: EngineIdentity, targets: tuple[str, ...], gpu: str, message: str):
    built = msgspec.structs.replace(built, targets=targets)
    text = refused(lambda: check_target(PATH, built, gpu, "a GPU", KNOWN))
    for part in message.split("|"):
        assert part in text
