"""What the machine cannot beat with dense arithmetic: the rate of matrix products, and of copying memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ...runtime.engine import EngineOptions
from ...runtime.engines.onnxruntime_session import start_session
from ...runtime.onnx_file import IR_VERSION, OPSET
from .candidate import Precision

SIZE = 1024
"""Of the square matrices: 2 SIZE^3 operations."""
COPIED = 2**27
"""Bytes, several times what any cache holds; read once and written once."""
BYTES_PER_WEIGHT: dict[Precision, int] = {"fp32": 4, "int8": 1}
PRODUCTS = {"MatMul": ("FLOAT", "FLOAT"), "MatMulInteger": ("UINT8", "INT32")}
"""Operator -> ONNX's types of the first factor and of the product."""


class Probe(NamedTuple):
    """A call that runs at the machine's limit, and what it does: operations, or bytes moved."""

    kind: str
    amount: float
    call: Callable[[], object]


def probes(threads: int) -> dict[str, Probe]:
    """Matrix products in float32 (by two libraries: the faster counts) and in int8, and a large copy."""
    generator = np.random.default_rng(0)
    left, right = (torch.from_numpy(generator.standard_normal((SIZE, SIZE), np.float32)) for _ in range(2))
    product = torch.empty(SIZE, SIZE)
    source = np.ones(COPIED, np.uint8)
    target = np.empty_like(source)
    operations = 2.0 * SIZE**3
    return {
        "sgemm, PyTorch": Probe("fp32", operations, lambda: torch.mm(left, right, out=product)),
        "sgemm, ONNX Runtime": Probe("fp32", operations, _product("MatMul", left.numpy(), right.numpy(), threads)),
        "int8 GEMM, ONNX Runtime": Probe(
            "int8",
            operations,
            _product(
                "MatMulInteger",
                generator.integers(0, 2, (SIZE, SIZE), np.uint8),
                generator.integers(-127, 128, (SIZE, SIZE), np.int8),
                threads,
            ),
        ),
        "copy": Probe("copy", 2.0 * COPIED, lambda: np.copyto(target, source)),
    }


def rates(found: Mapping[str, tuple[str, float, float]]) -> dict[str, float]:
    """Operations and bytes per second by kind, the fastest of each, from `(kind, amount, ms)` by probe."""
    result: dict[str, float] = {}
    for kind, amount, ms in found.values():
        result[kind] = max(result.get(kind, 0.0), amount / (ms * 1e-3))
    return result


def floor_ms(size: Mapping[str, int], rate: Mapping[str, float], precision: Precision, steps_per_read: float) -> float:
    """Milliseconds that a dense time step cannot beat.

        max(2 MACs / rate, (bytes of the weights / steps per read + states read and written in float32) / bandwidth)

    A floor of dense arithmetic: what leaves out the products with zeros may beat it, and so may, where memory is the
    bound, what the caches hold.
    """
    moved = size["weights"] * BYTES_PER_WEIGHT[precision] / steps_per_read + 8 * size["states"]
    return 1e3 * max(2.0 * size["macs_per_step"] / rate[precision], moved / rate["copy"])


def _product(operator: str, left: np.ndarray, right: np.ndarray, threads: int) -> Callable[[], Any]:
    """A matrix product in ONNX Runtime whose second factor is a constant, as weights are."""
    from onnx import TensorProto, helper, numpy_helper

    before, after = PRODUCTS[operator]
    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["product"])],
        operator,
        [helper.make_tensor_value_info("left", TensorProto.DataType.Value(before), left.shape)],
        [helper.make_tensor_value_info("product", TensorProto.DataType.Value(after), (SIZE, SIZE))],
        initializer=[numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    session, _ = start_session(model.SerializeToString(), Path(operator), EngineOptions(threads=threads))
    binding = session.io_binding()
    binding.bind_cpu_input("left", left)
    binding.bind_output("product", "cpu")
    return lambda: session.run_with_iobinding(binding)
