"""Check a program before it runs: every number that the event-driven kernels will address lies within its array."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import DynamicConfidenceError
from .events_program import (
    CHANNEL_BIAS,
    FLOAT,
    GAIN,
    IMAGE,
    IMAGE_BIAS,
    INT8,
    LANES,
    LAYER,
    POOL,
    PRODUCT_GAIN,
    PRODUCTS,
    READOUT,
    SLACK,
    Program,
    Sizes,
)

SOURCES = {INT8: (LAYER, POOL), FLOAT: (LAYER,), PRODUCTS: (IMAGE, POOL), GAIN: (LAYER,), PRODUCT_GAIN: (POOL,)}
"""What a kind of synapse can read."""


def check_bounds(program: Program, sizes: Sizes) -> None:
    """The kernels check nothing, so one wrong number in a program would overwrite foreign memory.

    Raises: DynamicConfidenceError with the first thing that does not fit.
    """
    for index, node in enumerate(program.nodes):
        source = None
        if node["kind"] == POOL:
            if not 0 <= node["source"] < index:
                raise _misfit(f"part {index} reads part {node['source']}")
            source = program.nodes[node["source"]]
        for what, first, size, end in _blocks(program, sizes, node, source):
            if first < 0 or size < 0 or first + size > end:
                raise _misfit(f"part {index}, {what}: {first} + {size} of {end}")
        if node["kind"] in (LAYER, READOUT):
            if node["lanes"] not in LANES or node["channels"] % node["lanes"]:
                raise _misfit(f"part {index}, {node['channels']} channels in blocks of {node['lanes']}")
            for synapse in program.synapses[node["first_synapse"] : node["last_synapse"]]:
                if not 0 <= synapse["source"] < index:
                    raise _misfit(f"part {index} reads part {synapse['source']}")
                _check_synapse(program, index, node, program.nodes[synapse["source"]], synapse)
        elif source is not None:
            if source["kind"] not in (LAYER, POOL) or source["channels"] != node["channels"]:
                raise _misfit(f"part {index}, a pool of part {node['source']}")
            _check_window(index, node, source, node)


def _blocks(program: Program, sizes: Sizes, node: Any, source: Any) -> list[tuple[str, int, int, int]]:
    """What a node uses: name, first element, number of elements, size of the array."""
    kind, channels, height, width, lanes, line = (
        int(node[name]) for name in ("kind", "channels", "height", "width", "lanes", "line")
    )
    neurons, found = channels * height * width, []
    if kind in (LAYER, READOUT):
        first, end = (0, sizes.neurons) if kind == LAYER else (sizes.neurons, sizes.neurons + sizes.readout)
        found += [("neurons", int(node["neurons"]) - first, neurons, end - first)]
        of_channels = node["bias_kind"] == CHANNEL_BIAS
        found += [("bias", int(node["bias"]), channels if of_channels else neurons, len(program.floats))]
        found += [("no bias", 0, lanes, len(program.floats))]
        if node["bias_kind"] == IMAGE_BIAS:
            found += [("current", int(node["sums"]), neurons, sizes.current)]
    if kind in (LAYER, POOL):
        each = channels
        if source is not None:
            each = int(node["kernel_y"] * node["kernel_x"]) * (int(source["line"] - SLACK) // int(source["width"]))
        found += [("room of a line", 0, width * each + SLACK, line)]
        found += [("positions in a line", 0, width * channels, np.iinfo(np.int32).max)]
        found += [("events", int(node["events"]), height * line, sizes.events)]
        found += [("starts", int(node["starts"]), height * (width + 1), sizes.starts)]
    if kind == POOL:
        found += [("sums", int(node["sums"]), neurons, sizes.sums)]
    return found


def _check_synapse(program: Program, index: int, node: Any, source: Any, synapse: Any) -> None:
    kind, channels = int(synapse["kind"]), int(node["channels"])
    if source["kind"] not in SOURCES[kind]:
        raise _misfit(f"part {index}, a synapse of kind {kind} from a part of kind {source['kind']}")
    if source["kind"] == POOL and not source["summed" if kind in (PRODUCTS, PRODUCT_GAIN) else "listed"]:
        raise _misfit(f"part {index} reads a pool that does not hold what it wants")
    if kind in (GAIN, PRODUCT_GAIN):
        same = all(source[name] == node[name] for name in ("channels", "height", "width"))
        if not same or (kind == GAIN and source["lanes"] != node["lanes"]):
            raise _misfit(f"part {index}, a gain of another shape")
        return
    _check_window(index, node, source, synapse)
    size = channels * int(synapse["kernel_y"] * synapse["kernel_x"]) * int(source["channels"])
    array, per = (program.weights, 2) if kind == INT8 else (program.floats, 1)
    if not 0 <= synapse["weights"] <= len(array) - size // per:
        raise _misfit(f"part {index}, weights: {synapse['weights']} + {size // per} of {len(array)}")
    if kind == INT8 and not 0 <= synapse["unit"] <= len(program.floats) - channels:
        raise _misfit(f"part {index}, units: {synapse['unit']} + {channels} of {len(program.floats)}")


def _check_window(index: int, node: Any, source: Any, window: Any) -> None:
    for size, axis in (("height", "y"), ("width", "x")):
        kernel, stride, padding = (int(window[f"{name}_{axis}"]) for name in ("kernel", "stride", "padding"))
        fits = kernel >= 1 and stride >= 1 and 0 <= padding < kernel
        if not fits or (int(source[size]) + 2 * padding - kernel) // stride + 1 != node[size] or node[size] < 1:
            raise _misfit(f"part {index}, a window of {kernel}, stride {stride}, padding {padding} over {source[size]}")


def _misfit(what: str) -> DynamicConfidenceError:
    return DynamicConfidenceError(
        f"{what}: the event-driven engine cannot run this network. Use --backend onnxruntime."
    )
