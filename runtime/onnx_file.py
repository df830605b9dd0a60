"""Read and rewrite the exported .onnx file: its bytes, its manifest, and nothing outside the file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DynamicConfidenceError
from .files import write_atomically
from .manifest import METADATA_KEY, Calibration, Manifest, json_from_manifest, manifest_from_json

if TYPE_CHECKING:
    import onnx


def graph_sha256(model: onnx.ModelProto) -> str:
    """Hash the graph alone, so that a new threshold in the metadata leaves the identity of the network as it is."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def read_onnx(path: Path) -> tuple[onnx.ModelProto, Manifest]:
    """Load an exported network and its manifest.

    Raises: DynamicConfidenceError when the file is missing, truncated, not ONNX, refers to external data, has no
    manifest, or when its graph is not the one the manifest describes.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise DynamicConfidenceError(f"{path}: no such file. Make one with `dc-export model.pt -o {path.name}`.")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise DynamicConfidenceError(
            f"{path}: not a complete ONNX file ({path.stat().st_size} bytes). "
            "Copy it again, or export it again with `dc-export model.pt`."
        ) from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise DynamicConfidenceError(
            f"{path}: keeps weights in other files; a network of this toolchain is one file. "
            "Export it with `dc-export model.pt`."
        )
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if len(texts) != 1:
        raise DynamicConfidenceError(
            f"{path}: an ONNX file with {len(texts)} manifests where one is expected, so not a network of this "
            "toolchain. Export one with `dc-export model.pt`."
        )
    manifest = manifest_from_json(texts[0], str(path))
    if manifest.provenance.graph_sha256 != graph_sha256(model):
        raise DynamicConfidenceError(
            f"{path}: the graph is not the one its manifest describes (provenance.graph_sha256 differs). "
            "Export the network again with `dc-export model.pt`."
        )
    return model, manifest


def bytes_with_manifest(model: onnx.ModelProto, manifest: Manifest) -> bytes:
    """Serialise the model with this manifest as its only one."""
    others = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    for key, value in [*others, (METADATA_KEY, json_from_manifest(manifest))]:
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString(deterministic=True)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Replace the calibration in an exported network; the file is exchanged in one move or not at all."""
    import msgspec

    model, manifest = read_onnx(path)
    write_atomically(path, bytes_with_manifest(model, msgspec.structs.replace(manifest, calibration=calibration)))
