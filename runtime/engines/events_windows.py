"""The windows of convolutions and pools: read from a node's attributes, and checked, in this one place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..onnx_file import attributes_of
from .events_network import Pair, Shape

if TYPE_CHECKING:
    import onnx


def made_size(size: Sequence[int], kernel: Sequence[int], stride: Pair, padding: Pair) -> Pair:
    """(n + 2 * padding - kernel) // stride + 1, of y and x.

    Raises: LookupError for a window that the kernels do not run over.
    """
    found = []
    for n, k, s, p in zip(size, kernel, stride, padding, strict=True):
        made = (n + 2 * p - k) // s + 1 if s > 0 else 0
        if n < 1 or k < 1 or s < 1 or not 0 <= p < k or made < 1:
            raise LookupError(f"a window of {k} with stride {s} and padding {p} over {n}")
        found.append(made)
    y, x = found
    return y, x


def stride_and_padding(node: onnx.NodeProto, kernel: Sequence[int]) -> tuple[Pair, Pair]:
    """Those of a Conv or an AveragePool, with ONNX's defaults where none is given.

    Raises: LookupError for another kernel, or for settings that no exported graph has.
    """
    settings = {"strides": [1, 1], "pads": [0, 0, 0, 0], "kernel_shape": list(kernel)} | attributes_of(node)
    top, left, bottom, right = settings["pads"]
    plain = (
        settings["kernel_shape"] == list(kernel)
        and settings.get("dilations", [1, 1]) == [1, 1]
        and settings.get("auto_pad", b"NOTSET") == b"NOTSET"
        and not settings.get("ceil_mode", 0)
    )
    if (top, left) != (bottom, right) or not plain:
        shown = {name: value for name, value in settings.items() if name != "strides"}
        raise LookupError(f"node '{node.name}', a window with {shown}")
    y, x = settings["strides"]
    return (y, x), (top, left)


def pool_window(
    node: onnx.NodeProto, read: onnx.NodeProto, source: Shape, constants: Mapping[str, np.ndarray]
) -> tuple[Pair, Pair, Pair]:
    """Kernel, stride and padding of a sum over windows of a source.

    It is a sum over the plane, a mean (`read`) times its area, or a convolution with ones, one channel at a time.
    Raises: LookupError for another node.
    """
    settings, operand = attributes_of(read), constants.get(node.input[1]) if len(node.input) == 2 else None
    if operand is not None and node.op_type == "ReduceSum" and operand.tolist() == [2, 3]:
        if settings.get("keepdims", 1) == 1:
            return source[1:], (1, 1), (0, 0)
    elif operand is not None and node.op_type == "Mul" and read.op_type == "AveragePool":
        y, x = settings["kernel_shape"]
        stride, padding = stride_and_padding(read, (y, x))
        whole = padding == (0, 0) or settings.get("count_include_pad")
        if whole and operand.size == 1 and float(operand.reshape(())) == math.prod((y, x)):
            return (y, x), stride, padding
    elif operand is not None and node.op_type == "Conv" and settings.get("group", 1) == source[0]:
        y, x = operand.shape[2:]
        if operand.shape == (source[0], 1, y, x) and bool((operand == 1.0).all()):
            return (y, x), *stride_and_padding(node, (y, x))
    raise LookupError(f"node '{node.name}' ({node.op_type})")
