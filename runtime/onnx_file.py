"""Read and rewrite the exported .onnx file: its bytes, its manifest, and nothing outside the file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DynamicConfidenceError
from .files import write_atomically
from .manifest import METADATA_KEY, Calibration, GraphForm, Manifest, Schedule
from .manifest_json import json_from_manifest, manifest_from_json

if TYPE_CHECKING:
    import onnx

OPSET = 17
IR_VERSION = 8
OPSETS: dict[GraphForm, list[tuple[str, int]]] = {
    "conv": [("", OPSET)],
    "matmul": [("", OPSET), ("com.microsoft", 1)],
}
ALLOWED_OPERATORS = frozenset(
    {
        "Add",
        "ArgMax",
        "AveragePool",
        "Cast",
        "Clip",
        "Concat",
        "Conv",
        "DequantizeLinear",
        "Div",
        "Flatten",
        "Floor",
        "Identity",
        "Mul",
        "Pad",
        "QuantizeLinear",
        "ReduceL1",
        "ReduceMax",
        "ReduceSum",
        "Reshape",
        "Slice",
        "Softmax",
        "Split",
        "Sub",
        "Transpose",
        "Unsqueeze",
        "com.microsoft.FusedMatMul",  # these two in the form matmul
        "com.microsoft.MatMulIntegerToFloat",
    }
)
"""All that an exported graph is made of. None of them holds a graph or a tensor, so nothing hides inside a node."""
_PLAIN_ATTRIBUTE = frozenset({"name", "type", "f", "i", "s", "floats", "ints", "strings"})


def graph_sha256(model: onnx.ModelProto) -> str:
    """Hash the graph alone, so that a new threshold in the metadata leaves the identity of the network as it is."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def read_onnx(path: Path) -> tuple[onnx.ModelProto, Manifest]:
    """Load an exported network and its manifest.

    Raises: DynamicConfidenceError when the file is missing, unreadable, truncated, not ONNX, has no manifest, holds
    what no exported network does, or when its graph is not the one the manifest describes.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if not path.is_file():
            raise DynamicConfidenceError(f"{path}: no such file. Make one with `dc-export model.pt -o {path.name}`.")
        content = path.read_bytes()
    except OSError as error:
        raise DynamicConfidenceError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from error
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as error:
        raise DynamicConfidenceError(
            f"{path}: not a complete ONNX file ({len(content)} bytes). "
            "Copy it again, or export it again with `dc-export model.pt`."
        ) from error
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if len(texts) != 1:
        raise DynamicConfidenceError(
            f"{path}: an ONNX file with {len(texts)} manifests where one is expected, so not a network of this "
            "toolchain. Export one with `dc-export model.pt`."
        )
    manifest = manifest_from_json(texts[0], str(path))
    foreign = _foreign_part(model, OPSETS[manifest.numerics.form])
    if foreign is not None:
        raise DynamicConfidenceError(
            f"{path}: holds {foreign}, which no network of this toolchain has. Export it with `dc-export model.pt`."
        )
    if manifest.provenance.graph_sha256 != graph_sha256(model):
        raise DynamicConfidenceError(
            f"{path}: the graph is not the one its manifest describes (provenance.graph_sha256 differs). "
            "Export the network again with `dc-export model.pt`."
        )
    return model, manifest


def check_signature(path: Path, model: onnx.ModelProto, manifest: Manifest) -> None:
    """Compare the inputs and outputs of a graph of one K with its manifest: names, and shapes with named dimensions.

    Raises: DynamicConfidenceError with the first that differs.
    """
    inputs = {manifest.input.name: manifest.input.shape, manifest.scale_input: ()}
    inputs |= {state.input: state.shape for state in manifest.states}
    outputs = {state.output: state.shape for state in manifest.states} | {o.name: o.shape for o in manifest.outputs}
    for what, ends, wanted in (("inputs", model.graph.input, inputs), ("outputs", model.graph.output, outputs)):
        found = {end.name: tuple(d.dim_param or d.dim_value for d in end.type.tensor_type.shape.dim) for end in ends}
        if odd := sorted(set(found.items()) ^ set(wanted.items()), key=str):
            name, shape = odd[0]
            raise DynamicConfidenceError(
                f"{path}: the graph's {what} are not those of its manifest: '{name}' {list(shape)} is on one side "
                "only. Export the network again with `dc-export model.pt`."
            )


def check_form(path: Path, manifest: Manifest, whose: str, remedy: str) -> None:
    """Raise a DynamicConfidenceError for another form than conv, which is only for `whose` engine."""
    numerics = manifest.numerics
    if numerics.form != "conv":
        raise DynamicConfidenceError(
            f"{path}: its form is {numerics.form}, for {whose}. {remedy}, or export it again: "
            f"`dc-export model.pt --precision {numerics.precision}`, without --form {numerics.form}."
        )


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def read_manifest(path: Path) -> Manifest:
    """Read the manifest alone. Raises: as `read_onnx`."""
    return read_onnx(path)[1]


def bytes_with_manifest(model: onnx.ModelProto, manifest: Manifest) -> bytes:
    """Serialise the model with this manifest as its only one."""
    others = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    for key, value in [*others, (METADATA_KEY, json_from_manifest(manifest))]:
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString(deterministic=True)


def largest_batch(path: Path) -> None:
    """An exported network takes any number of inputs at once."""


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Replace the calibration in an exported network; the file is exchanged in one move or not at all.

    A schedule was made for the exits of the calibration before, and goes with it.
    """
    import msgspec

    model, manifest = read_onnx(path)
    changed = msgspec.structs.replace(manifest, calibration=calibration, schedule=None)
    write_atomically(path, bytes_with_manifest(model, changed))


def write_schedule(path: Path, schedule: Schedule) -> None:
    """Replace the schedule in an exported network; the file is exchanged in one move or not at all."""
    import msgspec

    model, manifest = read_onnx(path)
    write_atomically(path, bytes_with_manifest(model, msgspec.structs.replace(manifest, schedule=schedule)))


def _foreign_part(model: onnx.ModelProto, expected: list[tuple[str, int]]) -> str | None:
    """Name the first thing that an exported file never holds (docs/contract.md, "The file")."""
    graph = model.graph
    opsets = [(opset.domain, opset.version) for opset in model.opset_import]
    if model.ir_version != IR_VERSION or opsets != expected:
        return f"IR version {model.ir_version} and operator sets {opsets} (expected {IR_VERSION} and {expected})"
    if model.functions or model.training_info or graph.sparse_initializer:
        return "local functions, training information or sparse weights"
    if any(tensor.data_location or tensor.external_data for tensor in graph.initializer):
        return "weights in other files"
    for node in graph.node:
        operator = f"{node.domain}{'.' * bool(node.domain)}{node.op_type}"
        if operator not in ALLOWED_OPERATORS:
            return f"the operator '{operator}' (node '{node.name}')"
        if any(field.name not in _PLAIN_ATTRIBUTE for a in node.attribute for field, _ in a.ListFields()):
            return f"a graph or a tensor inside a node ('{node.name}')"
    return None
