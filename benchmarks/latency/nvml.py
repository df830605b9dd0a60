"""What NVIDIA's management library tells of the GPU that engines run on; the driver brings the library along."""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

from ...runtime.gpu import load_driver

LIBRARY = "libnvidia-ml.so.1"
_SM_CLOCK = 1  # NVML_CLOCK_SM in nvml.h
_TEXT = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class MemoryInfo(NamedTuple):
    """Bytes."""

    total: int
    used: int


class Nvml:
    """The first GPU that CUDA shows; what a device does not tell is None."""

    def __init__(self, library: ctypes.CDLL, device: ctypes.c_void_p) -> None:
        self._library, self._device = library, device

    def name(self) -> str | None:
        text = ctypes.create_string_buffer(_TEXT)
        failed = self._library.nvmlDeviceGetName(self._device, text, _TEXT)
        return None if failed else text.value.decode()

    def driver(self) -> str | None:
        text = ctypes.create_string_buffer(_TEXT)
        return None if self._library.nvmlSystemGetDriverVersion(text, _TEXT) else text.value.decode()

    def memory(self) -> MemoryInfo | None:
        found = _Memory()
        failed = self._library.nvmlDeviceGetMemoryInfo(self._device, ctypes.byref(found))
        return None if failed else MemoryInfo(found.total, found.used)

    def clock_mhz(self) -> float | None:
        found = ctypes.c_uint()
        failed = self._library.nvmlDeviceGetClockInfo(self._device, _SM_CLOCK, ctypes.byref(found))
        return None if failed else float(found.value)

    def joules(self) -> float | None:
        """Since the driver was loaded; from Volta on."""
        found = ctypes.c_ulonglong()
        failed = self._library.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(found))
        return None if failed else found.value / 1e3


@functools.cache
def open_nvml() -> Nvml | None:
    """None without the library, a driver or a GPU; opened once for the process."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    address, device = _pci_address(), ctypes.c_void_p()
    if address is None or library.nvmlInit_v2():
        return None
    if library.nvmlDeviceGetHandleByPciBusId_v2(address, ctypes.byref(device)):
        return None
    return Nvml(library, device)


def _pci_address() -> bytes | None:
    """Of CUDA's first device: CUDA_VISIBLE_DEVICES and CUDA's own order do not hold for the management library."""
    driver, device, text = load_driver(), ctypes.c_int(), ctypes.create_string_buffer(64)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    return None if driver.cuDeviceGetPCIBusId(text, len(text), device) else text.value
