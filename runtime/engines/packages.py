"""Import the package that an engine runs on, or say what is missing and how to install it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import BackendMissing


def load_package(name: str, title: str, extra: str) -> Any:
    """Import a package that comes with an extra of ours. Raises: BackendMissing when it is not there, or not whole."""
    remedy = f"`pip install 'dynamic-confidence[{extra}]'`"
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise BackendMissing(f"{title} is installed without '{error.name}': {remedy}.") from error
        raise BackendMissing(f"{title} is not installed. Install it with {remedy}.") from error
    except ImportError as error:
        raise BackendMissing(f"{title} is installed but does not load ({error}): {remedy}.") from error
