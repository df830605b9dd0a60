"""The quantised network itself in ONNX Runtime, one pass without time steps: what an honest engineer compares with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from ...runtime.engine import EngineOptions
from ...runtime.engines.onnxruntime_session import start_session
from ...runtime.manifest import GraphForm
from ...toolchain.onnx_conv_form import ConvForm
from ...toolchain.onnx_graph import GraphBuilder
from ...toolchain.onnx_matmul_form import MatmulForm
from ...toolchain.snap import snap
from ...toolchain.snn import INPUT, Layer, Pool, Snn
from ...toolchain.snn_from_ann import snn_from_ann
from .candidate import Candidate, Precision
from .setting import Setting

NAME = "quantised network, ONNX Runtime"


class _Levels(ConvForm):
    """Convolutions in float32, and activations of whole numbers: n = floor(clip(I + 1/2, 0, levels))."""

    def neurons(self, layer: Layer, currents: list[str]) -> None:
        self.trains[layer.name] = self.graph.add(
            "Floor", f"{layer.name}/n", _clipped(self.graph, self.snn, layer, currents)
        )


class _ByteLevels(MatmulForm):
    """Integer matrix products, and activations that are bytes."""

    def neurons(self, layer: Layer, currents: list[str]) -> None:
        clipped = _clipped(self.graph, self.snn, layer, currents)
        byte = self.graph.add("Cast", f"{layer.name}/byte", clipped, to=onnx.TensorProto.UINT8)
        number = self.graph.add("Cast", f"{layer.name}/n", byte, to=onnx.TensorProto.FLOAT)
        self._emitted[layer.name], self._bytes[layer.name] = [number], [byte]

    def _largest_byte(self, source: str) -> int:
        return self.snn.method.levels * super()._largest_byte(source)


FORMS: dict[GraphForm, Callable[[GraphBuilder, Snn], _Levels | _ByteLevels]] = {"conv": _Levels, "matmul": _ByteLevels}
FASTEST: dict[Precision, GraphForm] = {"fp32": "conv", "int8": "matmul"}
"""In ONNX Runtime."""


def quantised_graph(snn: Snn, precision: Precision, form_name: GraphForm | None = None) -> onnx.ModelProto:
    """Write what a spiking network was converted from: pixels `[N, channel, y, x]` -> logits `[N, class]`.

        n = floor(clip(levels (W x + b) + 1/2, 0, levels)), logits = (W n + levels b) / levels

    The units are those of the spiking network, in which an activation of n levels is n.
    `snn` is of the method qcfs, whose sources are not negative, and snapped for `precision`; `form_name`: of the
    graph, None: the fastest in ONNX Runtime.
    """
    graph, levels = GraphBuilder(), snn.method.levels
    graph.input(INPUT, "uint8", ("N", *snn.input_shape))
    form = FORMS[form_name or FASTEST[precision]](graph, snn)
    form.trains[INPUT] = graph.add("Cast", "pixels", INPUT, to=onnx.TensorProto.FLOAT)
    for node in snn.nodes:
        if isinstance(node, Pool):
            form.pool(node)
            continue
        injected = (s.times(np.array(float(levels))) if s.source == INPUT else s for s in node.synapses)
        layer = replace(node, synapses=tuple(injected), bias=levels * node.bias + 0.5)
        form.neurons(layer, [_current(graph, form, layer)])
    summed = _current(graph, form, replace(snn.readout, bias=levels * snn.readout.bias))
    graph.add("Flatten", "logits", graph.add("Div", "divided", summed, graph.scalar(levels)), axis=1)
    graph.debug_output("logits", "float32", ("N", snn.readout.shape[0]))
    return graph.model("quantised network")


def quantised(setting: Setting) -> Iterator[Candidate]:
    """See the first line of this file: in float32, and with int8 weights."""
    converted = snn_from_ann(setting.network, setting.checkpoint.preprocessing, "qcfs")
    for precision in FASTEST:
        snn, _ = snap(converted, setting.snn.method.levels, None, precision)
        content = quantised_graph(snn, precision).SerializeToString()
        options = EngineOptions(threads=setting.threads)
        session, backend = start_session(content, Path(f"{NAME} {precision}"), options)

        def run(pixels: np.ndarray, steps: int, session: object = session) -> np.ndarray:
            return session.run(None, {INPUT: pixels})[0]  # type: ignore[attr-defined]

        yield Candidate(f"{NAME} {precision}", run, run, precision, steps_per_call=None, one_pass=True, backend=backend)


def _current(graph: GraphBuilder, form: _Levels | _ByteLevels, layer: Layer) -> str:
    """Add the synapses of a layer; a bias that is one number per channel rides in the first convolution."""
    first = next((i for i, s in enumerate(layer.synapses) if not s.is_identity), None)
    rides = first if layer.bias.shape[1:] == (1, 1) else None
    total = None
    for index, synapse in enumerate(layer.synapses):
        part = form.current(f"{layer.name}/i{index}", synapse, layer.bias if index == rides else None)
        total = part if total is None else graph.add("Add", f"{layer.name}/sum.{index}", total, part)
    assert total is not None, "every layer has a synapse"
    if rides is not None:
        return total
    bias = graph.constant(f"{layer.name}/bias", form.bias(layer).astype(np.float32))
    return graph.add("Add", f"{layer.name}/biased", total, bias)


def _clipped(graph: GraphBuilder, snn: Snn, layer: Layer, currents: list[str]) -> str:
    zero, levels = graph.scalar(0), graph.scalar(snn.method.levels)
    return graph.add("Clip", f"{layer.name}/clipped", currents[0], zero, levels)
