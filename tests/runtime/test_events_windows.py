"""Windows of convolutions and pools, as the event-driven engine reads them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from dynamic_confidence.runtime.engines.events_windows import made_size, pool_window

numbers = st.integers(-3, 9)


@given(numbers, numbers, numbers, numbers)
def test_a_window_lies_over_its_source(size: int, kernel: int, stride: int, padding: int):
    """As many places as a window has, each with a part of the source under it; else refused."""
    inside = size >= 1 and kernel >= 1 and stride >= 1 and 0 <= padding < kernel
    places = range(-padding, size + padding - kernel + 1, stride) if inside else []
    window = (size, 2), (kernel, 1), (stride, 1), (padding, 0)
    if not places:
        with pytest.raises(LookupError, match=f"a window of {kernel} with stride {stride} and padding {padding} over"):
            made_size(*window)
    else:
        assert made_size(*window) == (len(places), 2)
        assert all(place + kernel > 0 and place < size for place in places)


ONES = np.ones((3, 1, 2, 2), np.float32)


@pytest.mark.parametrize(
    ("operator", "factor", "settings", "message"),
    [
        ("Conv", ONES, {"group": 3}, None),
        ("Conv", ONES, {}, r"node 'pool' \(Conv\)"),
        ("Conv", np.ones((6, 1, 2, 2), np.float32), {"group": 3}, r"node 'pool' \(Conv\)"),
        ("Conv", 2 * ONES, {"group": 3}, r"node 'pool' \(Conv\)"),
        ("AveragePool", np.float32(4), {"kernel_shape": [2, 2]}, None),
        ("AveragePool", np.float32(2), {"kernel_shape": [2, 2]}, r"node 'pool' \(Mul\)"),
        ("AveragePool", np.float32(4), {"kernel_shape": [2, 2], "pads": [1, 0, 1, 0]}, r"node 'pool' \(Mul\)"),
        ("AveragePool", np.float32(4), {"kernel_shape": [2, 2], "ceil_mode": 1}, "'ceil_mode': 1"),
        ("AveragePool", np.float32(4), {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}, "SAME_UPPER"),
    ],
)
def test_pools(operator: str, factor: np.ndarray, settings: dict, message: str | None):
    inputs = ["source", "factor"] if operator == "Conv" else ["source"]
    read = helper.make_node(operator, inputs, ["windows"], name="pool", **settings)
    node = read if operator == "Conv" else helper.make_node("Mul", ["windows", "factor"], ["sums"], name="pool")
    constants = {"factor": np.asarray(factor)}
    if message is None:
        assert pool_window(node, read, (3, 4, 4), constants) == ((2, 2), (1, 1), (0, 0))
    else:
        with pytest.raises(LookupError, match=message):
            pool_window(node, read, (3, 4, 4), constants)
