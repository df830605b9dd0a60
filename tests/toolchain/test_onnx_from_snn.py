"""The exported graph: its names and shapes are the contract's, and it is made the same way twice."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from dynamic_confidence.models.checkpoint import Checkpoint
from dynamic_confidence.toolchain.onnx_from_snn import onnx_from_snn
from dynamic_confidence.toolchain.snap import snap
from dynamic_confidence.toolchain.snn import Snn
from dynamic_confidence.toolchain.snn_from_ann import snn_from_ann


def network(checkpoint: Checkpoint, method: str) -> Snn:
    return snap(snn_from_ann(checkpoint.network(), checkpoint.preprocessing, method), 12)[0]


def shapes(values: object) -> dict[str, list[object]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values  # type: ignore[attr-defined]
    }


def test_single_step_qcfs(checkpoint: Checkpoint) -> None:
    snn = network(checkpoint, "qcfs")
    graph = onnx_from_snn(snn)
    inputs, outputs = shapes(graph.model.graph.input), shapes(graph.model.graph.output)
    assert inputs["input"] == ["N", 1, 12, 12]
    assert inputs["alpha"] == []
    assert inputs["v_in.layer1.0.activation1"] == ["N", 4, 12, 12]
    assert inputs["acc_in"] == ["N", 4]
    assert outputs["logits"] == [1, "N", 4]
    assert outputs["confidence"] == outputs["label"] == [1, "N"]
    assert "spikes" not in outputs
    assert not any(name.startswith(("n_in", "t_in")) for name in inputs)
    assert {state.input: state.initial for state in graph.states} == {
        **{f"v_in.{layer.name}": 0.5 for layer in snn.layers},
        "acc_in": 0.0,
    }


@pytest.mark.parametrize("frames", [False, True])
def test_several_steps_qffs(checkpoint: Checkpoint, frames: bool) -> None:
    snn = network(checkpoint, "qffs")
    graph = onnx_from_snn(snn, steps_per_call=4, frames=frames)
    inputs, outputs = shapes(graph.model.graph.input), shapes(graph.model.graph.output)
    assert inputs["input"] == ([4, "N", 1, 12, 12] if frames else ["N", 1, 12, 12])
    assert inputs["t_in"] == ["N", 1, 1, 1]
    assert inputs["n_in.activation1"] == ["N", 4, 12, 12]
    assert outputs["logits"] == [4, "N", 4]
    assert outputs["spikes"] == [4, "N", len(snn.layers)]
    assert "net_spikes" not in outputs
    assert graph.input_shape == tuple(inputs["input"])


@pytest.mark.parametrize("method", ["qcfs", "qffs"])
def test_counted_spikes_are_net_as_well_where_there_are_negative_ones(checkpoint: Checkpoint, method: str) -> None:
    graph = onnx_from_snn(network(checkpoint, method), steps_per_call=4, count_spikes=True)
    outputs = shapes(graph.model.graph.output)
    assert ("net_spikes" in outputs) == (method == "qffs")
    assert outputs.get("net_spikes", outputs["spikes"]) == outputs["spikes"]


@pytest.mark.parametrize("method", ["qcfs", "qffs"])
def test_convolutions_are_written_once_whatever_the_number_of_steps(checkpoint: Checkpoint, method: str) -> None:
    snn = network(checkpoint, method)

    def convolutions(steps: int) -> int:
        return sum(node.op_type == "Conv" for node in onnx_from_snn(snn, steps_per_call=steps).model.graph.node)

    assert convolutions(1) == convolutions(8) > 0


def test_the_graph_is_one_deterministic_checked_file_of_standard_operators(checkpoint: Checkpoint) -> None:
    snn = network(checkpoint, "qffs")
    first, second = (onnx_from_snn(snn, steps_per_call=2).model for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    onnx.checker.check_model(first, full_check=True)
    assert {node.domain for node in first.graph.node} == {""}
    assert all(t.data_location != onnx.TensorProto.EXTERNAL for t in first.graph.initializer)
    names = [node.name for node in first.graph.node]
    assert len(names) == len(set(names))


def test_weights_reach_the_graph_unrounded(checkpoint: Checkpoint) -> None:
    snn = network(checkpoint, "qcfs")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx_from_snn(snn).model.graph.initializer}
    for layer in (*snn.layers, snn.readout):
        for index, synapse in enumerate(layer.synapses):
            if not synapse.is_identity:
                assert np.array_equal(stored[f"{layer.name}/i{index}/w"], synapse.weight)
