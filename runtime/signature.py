"""The inputs and outputs of a network: what its manifest says, for comparison with what a parser or a plan has."""

from __future__ import annotations

from typing import Literal, NamedTuple

from .manifest import Dim, Manifest

TENSORRT_DTYPES = {"FLOAT": "float32", "UINT8": "uint8", "INT64": "int64"}
"""TensorRT's names of what a manifest has."""


class Tensor(NamedTuple):
    """An input or output of a network."""

    mode: Literal["input", "output"]
    dtype: str
    shape: tuple[int, ...]
    """A dynamic dimension is -1."""

    def __str__(self) -> str:
        return f"{self.mode} {self.dtype} {list(self.shape)}"


Signature = dict[str, Tensor]


def shape_at(shape: tuple[Dim, ...], batch: int) -> tuple[int, ...]:
    """A shape of the manifest for so many inputs."""
    return tuple(batch if dim == "N" else int(dim) for dim in shape)


def signature_of_manifest(manifest: Manifest) -> Signature:
    """Inputs and outputs of the network that the manifest describes."""

    def shape(dims: tuple[Dim, ...]) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else -1 for dim in dims)

    found: Signature = {
        manifest.input.name: Tensor("input", manifest.input.dtype, shape(manifest.input.shape)),
        manifest.scale_input: Tensor("input", "float32", ()),
    }
    for state in manifest.states:
        found[state.input] = Tensor("input", state.dtype, shape(state.shape))
        found[state.output] = Tensor("output", state.dtype, shape(state.shape))
    return found | {o.name: Tensor("output", o.dtype, shape(o.shape)) for o in manifest.outputs}
