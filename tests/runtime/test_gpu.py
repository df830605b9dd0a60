"""What the driver is asked, and what a machine without one or without a GPU answers."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from dynamic_confidence.runtime import gpu

MAJOR, MINOR = 75, 76


def answers(**codes: int) -> Any:
    """The four functions of a driver for a GPU of compute capability 8.9, with the error codes that they return."""

    def attribute(value: Any, number: int, device: Any) -> int:
        value._obj.value = {MAJOR: 8, MINOR: 9}[number]
        return codes.get("attribute", 0)

    return SimpleNamespace(
        cuInit=lambda flags: codes.get("init", 0),
        cuDeviceGet=lambda device, index: codes.get("device", 0),
        cuDeviceGetAttribute=lambda value, number, device: attribute(value, number, device),
    )


def test_no_driver(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        assert name == "libcuda.so.1"
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu.load_driver() is None
    assert gpu.device_target() is None


@pytest.mark.parametrize("fails", ["init", "device", "attribute"])
def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch, fails: str):
    monkeypatch.setattr(gpu, "load_driver", lambda: answers(**{fails: 100}))
    assert gpu.device_target() is None


def test_the_target(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "load_driver", answers)
    assert gpu.device_target() == "sm89"


@pytest.mark.gpu
def test_the_target_of_this_machine():
    from dynamic_confidence.runtime.cuda import open_cuda

    with open_cuda() as cuda:
        assert cuda.target == gpu.device_target()
