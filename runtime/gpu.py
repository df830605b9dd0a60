"""Ask the NVIDIA driver about the GPU of this machine; needs no CUDA library."""

from __future__ import annotations

import ctypes


def device_target() -> str | None:
    """Ask the driver for the compute capability of the first GPU, as `sm89`; None without a driver or a GPU."""
    major_attribute, minor_attribute = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in cuda.h
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for value, attribute in ((major, major_attribute), (minor, minor_attribute)):
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
    return f"sm{major.value}{minor.value}"
