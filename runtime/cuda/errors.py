"""What goes wrong with CUDA, each as one sentence: no driver, an old driver, no GPU, a call that failed."""

from __future__ import annotations

from ..errors import BackendMissing
from ..gpu import load_driver


class CudaError(BackendMissing):
    """A call that CUDA or the GPU refused; nothing about the input is wrong (exit code 3)."""

    def __init__(self, reason: str) -> None:
        """`reason`: the call, and why in the words of CUDA."""
        self.reason = reason
        super().__init__(f"{reason}. {_advice(reason)}")


def _advice(reason: str) -> str:
    if "out of memory" in reason:
        return "Use a smaller batch, or close what else uses the GPU."
    return "Open the engine again; if that fails too, look at the GPU with `nvidia-smi`."


def unusable_driver(package: str) -> BackendMissing:
    """CUDA reports an old driver and none at all by the same number; tell them apart."""
    if load_driver() is None:
        return BackendMissing(
            "found no NVIDIA driver (no libcuda.so.1), which a plan needs: install it, or run the .onnx on the CPU."
        )
    return BackendMissing(
        f"the NVIDIA driver is too old for the CUDA of {package}: install a newer driver, or an older package that "
        "fits it (`pip install 'cuda-bindings==12.*'` for a driver of CUDA 12)."
    )


def no_device(reason: str) -> BackendMissing:
    return BackendMissing(
        f"found no NVIDIA GPU ({reason}), which a plan needs: is one hidden by CUDA_VISIBLE_DEVICES? Without one, run "
        "the .onnx file on the CPU."
    )


def broken_package(package: str, error: ImportError) -> BackendMissing:
    return BackendMissing(
        f"{package} is installed but does not load ({error}): `pip install --force-reinstall {package}`."
    )
