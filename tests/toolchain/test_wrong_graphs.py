"""Graphs that are wrong in one place: no self-check, exact or approximate, lets one of them through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dynamic_confidence.models.checkpoint import Checkpoint
from dynamic_confidence.runtime.errors import CheckFailed
from dynamic_confidence.toolchain import export as export_module
from dynamic_confidence.toolchain.export import ExportOptions, export
from dynamic_confidence.toolchain.onnx_from_snn import StepGraph


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(one for one in model.graph.node if one.name == name)


def scaled_input(model: onnx.ModelProto, target: onnx.NodeProto, factor: float) -> None:
    """Multiply the first input of a node."""
    constant, product = f"wrong/{target.name}/factor", f"wrong/{target.name}"
    model.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), constant))
    position = [one.name for one in model.graph.node].index(target.name)
    model.graph.node.insert(position, helper.make_node("Mul", [target.input[0], constant], [product], name=product))
    node(model, target.name).input[0] = product


def scaled(name: str, factor: float) -> Callable[[onnx.ModelProto], None]:
    return lambda model: scaled_input(model, node(model, name), factor)


def every_threshold(factor: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for one in [one for one in model.graph.node if one.op_type == "Floor"]:
            scaled_input(model, one, factor)

    return change


def more_levels(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(50, np.float32), "wrong/levels"))
    clips = [one for one in model.graph.node if one.op_type == "Clip" and one.output[0].startswith("n_out")]
    assert clips
    for one in clips:
        one.input[2] = "wrong/levels"


def swapped_rows(model: onnx.ModelProto) -> None:
    rows = node(model, "logits").input
    rows[0], rows[1] = rows[1], rows[0]


def gross_for_net(model: onnx.ModelProto) -> None:
    node(model, "net_spikes").input[0] = node(model, "spikes").input[0]


QFFS, K4 = {"method": "qffs"}, {"steps_per_call": 4}
COUNTED = {"method": "qffs", "count_spikes": True}
WRONG: dict[str, tuple[Callable[[onnx.ModelProto], None], dict[str, Any]]] = {
    "threshold 2": (every_threshold(0.5), {}),
    "threshold 2, qffs": (every_threshold(0.5), QFFS),
    "threshold 2, K = 4": (every_threshold(0.5), K4),
    "no neuron fires": (every_threshold(0.0), {}),
    "label is the argmin": (scaled("label", -1.0), {}),
    "confidence of other logits": (scaled("confidence/scaled", 7.0), {}),
    "confidence 0": (scaled("confidence", 0.0), {}),
    "always silent": (scaled("spikes", 0.0), QFFS),
    "gross spikes for net ones": (gross_for_net, COUNTED),
    "net spikes doubled": (scaled("net_spikes", 2.0), COUNTED),
    "50 levels": (more_levels, QFFS),
    "steps in another order": (swapped_rows, K4),
    "steps are not counted": (scaled("t_out", -1.0), QFFS),
}


@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
@pytest.mark.parametrize("wrong", WRONG)
def test_nothing_wrong_is_written(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, precision, wrong: str):
    change, form = WRONG[wrong]
    options = ExportOptions(steps=12, precision=precision, **form)
    assert export(checkpoint, "0" * 64, options).check.spikes > 0  # the right one is
    build = export_module.onnx_from_snn

    def changed(*arguments: Any, **options: Any) -> StepGraph:
        graph = build(*arguments, **options)
        change(graph.model)
        return graph

    monkeypatch.setattr(export_module, "onnx_from_snn", changed)
    with pytest.raises(CheckFailed, match=r"^self-check: "):
        export(checkpoint, "0" * 64, options)
