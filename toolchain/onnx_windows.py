"""Windows over `[batch, y, x, channel]`, of views that are shifted against each other."""

from __future__ import annotations

from .onnx_graph import GraphBuilder

Y, X, CHANNEL = 1, 2, 3
"""Axes."""


def padded(graph: GraphBuilder, name: str, source: str, padding: tuple[int, int], zero: str) -> str:
    """Add a border of `padding` (y, x) on every side; none: the source itself."""
    py, px = padding
    if not (py or px):
        return source
    return graph.once("Pad", name, source, graph.integers(0, py, px, 0, 0, py, px, 0), zero)


def shifted(graph: GraphBuilder, name: str, source: str, axis: int, kernel: int, stride: int, size: int) -> list[str]:
    """Add the `kernel` views, shifted by one, that windows of this stride have of an axis; each of `size`."""
    if kernel == stride == 1:
        return [source]
    along, every = graph.integers(axis), graph.integers(stride)
    return [
        graph.add(
            "Slice",
            f"{name}.{first}",
            source,
            graph.integers(first),
            graph.integers(first + (size - 1) * stride + 1),
            along,
            every,
        )
        for first in range(kernel)
    ]
