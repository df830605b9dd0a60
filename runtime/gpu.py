"""Ask the NVIDIA driver about the GPU of this machine; needs no CUDA library."""

from __future__ import annotations

import ctypes

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in cuda.h


def load_driver() -> ctypes.CDLL | None:
    """Load the user's half of the NVIDIA driver; None where there is none."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def cuda_version(driver: ctypes.CDLL) -> str | None:
    """The newest CUDA that the driver serves, as `12.6`; None when it does not tell."""
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def device_target() -> str | None:
    """Ask the driver for the compute capability of the first GPU, as `sm89`; None without a driver or a GPU."""
    cuda = load_driver()
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda is None or cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for value, attribute in ((major, _MAJOR), (minor, _MINOR)):
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
    return f"sm{major.value}{minor.value}"
