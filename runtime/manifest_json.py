"""The manifest as JSON text: every key must stand, no other may, and the same record gives the same bytes."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from .errors import DynamicConfidenceError
from .manifest import Manifest

SIZE_LIMIT = 16 * 1024 * 1024
T = TypeVar("T")


def manifest_from_json(text: str | bytes, source: str) -> Manifest:
    """Parse and validate a manifest; `source` names the file in the error.

    Raises: DynamicConfidenceError that names the offending key.
    """
    if len(text) > SIZE_LIMIT:
        raise DynamicConfidenceError(f"{source}: the manifest has {len(text)} bytes, at most {SIZE_LIMIT} are read.")
    try:
        return decode_whole(text, Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DynamicConfidenceError(
            f"{source}: the manifest is not one this version understands: {error}. "
            "Export the network again with `dc-export model.pt`."
        ) from error


def json_from_manifest(manifest: Manifest) -> str:
    """Serialise a manifest; the same manifest always gives the same bytes."""
    return msgspec.json.encode(manifest).decode()


def decode_whole(text: str | bytes, kind: type[T]) -> T:
    """Decode a record of which every key stands in the text. Raises: msgspec.DecodeError that names the key."""
    record = msgspec.json.decode(text, type=kind)
    require_keys(msgspec.json.decode(text), msgspec.to_builtins(record))
    return record


def require_keys(found: Any, complete: Any, path: str = "$") -> None:
    """Refuse a key that only a default has filled in: another reader may know another default."""
    if isinstance(complete, dict):
        for key in complete:
            if key not in found:
                raise msgspec.ValidationError(f"Object missing required field `{key}` - at `{path}`")
            require_keys(found[key], complete[key], f"{path}.{key}")
    elif isinstance(complete, (list, tuple)):
        for index, (one, other) in enumerate(zip(found, complete, strict=True)):
            require_keys(one, other, f"{path}[{index}]")
