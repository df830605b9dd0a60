"""Several graphs of one network, each with the steps of another K, as one graph that stores the weights once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx

from ..runtime.manifest import name_at
from .onnx_from_snn import StepGraph


def joined(graphs: Mapping[int, StepGraph]) -> StepGraph:
    """Put the graphs of K = first, others one behind the other; inputs and constants are the first's.

    Every tensor that a node of another K makes, and every node, bears that K: `logits@4`. `runtime.variants.variant`
    is the inverse.
    Raises: ValueError when a constant of one name has two values: the graphs are not of one network.
    """
    (_, first), *others = graphs.items()
    if not others:
        return first
    model = onnx.ModelProto()
    model.CopyFrom(first.model)
    graph, stored = model.graph, {tensor.name: tensor for tensor in first.model.graph.initializer}
    for steps, other in others:
        source = other.model.graph
        made = {tensor for node in source.node for tensor in node.output}
        for node in source.node:
            added = graph.node.add()
            added.CopyFrom(node)
            added.name = name_at(node.name, steps)
            added.input[:] = [name_at(name, steps) if name in made else name for name in node.input]
            added.output[:] = [name_at(name, steps) for name in node.output]
        for end in source.output:
            graph.output.add().CopyFrom(end)
            graph.output[-1].name = name_at(end.name, steps)
        for tensor in source.initializer:
            if tensor.name not in stored:
                graph.initializer.append(tensor)
                stored[tensor.name] = tensor
            elif tensor != stored[tensor.name]:
                raise ValueError(f"the constant {tensor.name} of K = {steps} differs from that of another K")
    onnx.checker.check_model(model, full_check=True)
    return replace(first, model=model)
