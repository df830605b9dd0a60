"""Import TensorRT or TensorRT-RTX, or say what is missing; and hear what it logs."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from .errors import BackendMissing
from .plan_file import LIBRARIES, Flavour

MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
EXTRAS: dict[Flavour, str] = {"tensorrt": "trt", "rtx": "rtx"}
OLDEST_TENSORRT = 10
SHOWN_ERRORS = 3


def load_library(flavour: Flavour) -> Any:
    """Import the bindings; tell "not installed" from "installed without its libraries" and from "too old"."""
    name, library = MODULES[flavour], LIBRARIES[flavour]
    command = f"`pip install 'dynamic-confidence[{EXTRAS[flavour]}]'`"
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise BackendMissing(f"{library} is installed without its part '{error.name}': {command}.") from error
        jetson = " (on a Jetson it comes with JetPack)" if flavour == "tensorrt" else ""
        raise BackendMissing(f"{library} is not installed: {command}{jetson}.") from error
    except (ImportError, OSError) as error:
        raise BackendMissing(
            f"{library} has its Python bindings but not the libraries they load ({error}): {command}."
        ) from error
    if not hasattr(module, "Builder"):
        raise BackendMissing(f"the module {name} found is not {library} (no Builder in it): {command}.")
    if flavour == "tensorrt" and int(module.__version__.split(".")[0]) < OLDEST_TENSORRT:
        raise BackendMissing(
            f"TensorRT {module.__version__} is installed, expected {OLDEST_TENSORRT}.0 or later: {command}."
        )
    return module


@cache
def logger(trt: Any) -> Any:
    """The one logger of this process: TensorRT keeps the first it is given and ignores all others.

    Its `errors` are what was logged as an error since the list was cleared.
    """

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(one_line(message))

    return Logger()


def logged(trt: Any) -> str:
    """The first errors that were logged since the list was cleared, for a message."""
    return "; ".join(logger(trt).errors[:SHOWN_ERRORS]) or "it gave no reason"


def one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
