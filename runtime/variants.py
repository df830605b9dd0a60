"""A graph that holds the calls of several K: one of them cut out, as an ordinary network of that K."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from .errors import DynamicConfidenceError
from .manifest import Manifest, name_at
from .onnx_file import graph_sha256

if TYPE_CHECKING:
    import onnx

    from .engine import EngineOptions


def variant(model: onnx.ModelProto, manifest: Manifest, steps: int) -> tuple[onnx.ModelProto, Manifest]:
    """Cut out the call of `steps` time steps: what its outputs depend on, under plain names.

    Raises: DynamicConfidenceError for a number of steps that the graph has no call of.
    """
    import onnx

    check_call_sizes(manifest, (steps,))
    if not manifest.more_steps_per_call:
        return model, manifest
    suffix = "" if steps == manifest.steps_per_call else name_at("", steps)
    makers = {tensor: node for node in model.graph.node for tensor in node.output}
    wanted = [end.name for end in model.graph.output if end.name in _made(manifest, suffix)]
    missing = _made(manifest, suffix) - makers.keys()
    if missing or len(wanted) < len(_made(manifest, suffix)):
        raise DynamicConfidenceError(
            f"{manifest.name}: its graph lacks outputs of the call of {steps} steps "
            f"({', '.join(sorted(missing)) or 'not listed'}). Export the network again with `dc-export model.pt`."
        )
    needed, open_ends = set(wanted), list(wanted)
    while open_ends:
        new = {tensor for tensor in makers[open_ends.pop()].input if tensor in makers} - needed
        needed |= new
        open_ends += new
    cut = onnx.GraphProto(name=model.graph.name)
    cut.input.extend(model.graph.input)
    for node in model.graph.node:
        if needed.intersection(node.output):
            kept = cut.node.add()
            kept.CopyFrom(node)
            kept.name = node.name.removesuffix(suffix)
            kept.input[:] = [name.removesuffix(suffix) if name in makers else name for name in node.input]
            kept.output[:] = [name.removesuffix(suffix) for name in node.output]
    read = {name for node in cut.node for name in node.input}
    cut.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in read)
    for end in model.graph.output:
        if end.name in wanted:
            cut.output.add().CopyFrom(end)
            cut.output[-1].name = end.name.removesuffix(suffix)
    alone = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name == "opset_import":
            alone.opset_import.extend(value)
        elif field.name not in ("graph", "metadata_props"):
            setattr(alone, field.name, value)
    alone.graph.CopyFrom(cut)
    provenance = msgspec.structs.replace(manifest.provenance, graph_sha256=graph_sha256(alone))
    return alone, msgspec.structs.replace(manifest_at(manifest, (steps,)), provenance=provenance)


def manifest_at(manifest: Manifest, sizes: Sequence[int]) -> Manifest:
    """The manifest of an engine that makes the calls of these sizes, the first by default, and no others."""
    first, *more = sizes
    outputs = (msgspec.structs.replace(o, shape=(first, *o.shape[1:])) for o in manifest.outputs)
    schedule = manifest.schedule
    if schedule is not None and (not more or not set(schedule.calls) <= set(sizes)):
        schedule = None
    return msgspec.structs.replace(
        manifest, steps_per_call=first, more_steps_per_call=tuple(more), outputs=tuple(outputs), schedule=schedule
    )


def chosen_call_sizes(manifest: Manifest, options: EngineOptions, *, several: bool) -> tuple[int, ...]:
    """Which calls an engine opens: those asked for, else the first and, for one input, those of the schedule.

    An engine that cannot hold `several` opens one: of a schedule whose calls are all equal, that one.
    Raises: DynamicConfidenceError for what the network does not have, or for several where there can be one.
    """
    asked = options.call_sizes
    if asked:
        check_call_sizes(manifest, asked)
        if len(asked) > 1 and not several:
            raise DynamicConfidenceError(
                f"{manifest.name}: calls of {_listed(asked)} steps in one engine: only ONNX Runtime on a CPU and "
                "the event-driven engine hold several. Ask for one."
            )
        return tuple(sorted(asked))
    first, schedule = manifest.steps_per_call, manifest.schedule if options.batch == 1 else None
    if schedule is None:
        return (first,)
    if several:
        return (first, *sorted({*schedule.calls} - {first}))
    return schedule.calls if len(schedule.calls) == 1 else (first,)


def check_call_sizes(manifest: Manifest, asked: Sequence[int]) -> None:
    """Raise a DynamicConfidenceError unless the graph has a call of each of these numbers of steps, each once."""
    known = manifest.call_sizes
    if not set(asked) <= set(known) or len(set(asked)) < len(asked):
        raise DynamicConfidenceError(
            f"{manifest.name}: calls of {_listed(asked)} time steps asked for, it has {_listed(known)}. Export others: "
            f"`dc-export model.pt -K {','.join(map(str, sorted({*known, *asked})))}`."
        )


def _made(manifest: Manifest, suffix: str) -> set[str]:
    made = [*(state.output for state in manifest.states), *(output.name for output in manifest.outputs)]
    return {name + suffix for name in made}


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))
