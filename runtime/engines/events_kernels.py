"""The event-driven step, compiled by numba: every layer adds up the weights of the spikes it sees, and of no others.

Channels come last. A source's spikes are a mask of one bit per neuron and a list of events: for each line y of its map
x * channels + channel of every spike, in this order, and where each pixel's events start. So the events that an output
pixel sees are one stretch of the list for every line of its window, and an event, less the window's left edge, is the
row of the weights to add. Negative spikes (QFFS) have a mask and a list of their own, in another plane.

Membranes are float32 and take up the current in place: all sums are exact in any order (contract.md, Exactness).
Layers go one by one, each through all steps of the call, so that its weights and membranes stay in the caches.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numba import njit

from .events_program import CHANNEL_BIAS, GAIN, IMAGE, IMAGE_BIAS, INT8, LAYER, POOL, PRODUCT_GAIN, PRODUCTS
from .events_vectors import (
    add_float_rows,
    add_int8_rows,
    add_products,
    add_where,
    arrive_and_wait,
    copy_shifted,
    fire,
    fire_signed,
    list_bits,
)

POSITIONS = np.array([([i for i in range(8) if byte >> i & 1] + 8 * [0])[:8] for byte in range(256)], np.uint8)
"""The places of the ones of every byte, for `list_bits`."""
SETTINGS = {"nogil": True, "error_model": "numpy", "boundscheck": False}


@njit(**SETTINGS)
def _advance(program, state, scratch, gates, part, parts, counter):
    """Advance one input by a time step for each of `gates`: whether its image and the biases are injected.

    part, parts: which of the threads this is that share the work; counter: int64 `[1]`, 0 when the first one begins.
    """
    signs, arrived = 1 + (program.levels > 0), 0
    for index in range(1, len(program.nodes)):
        node = program.nodes[index]
        if node.kind == POOL:
            _pool(program, scratch, node, len(gates), signs, part, parts)
        else:
            _integrate(program, state, scratch, node, gates, signs, part, parts)
            if node.kind == LAYER:
                arrived = _meet(counter, arrived, parts)
                _list(scratch, node, index, len(gates), signs, part, parts)
        arrived = _meet(counter, arrived, parts)


@njit(**SETTINGS)
def _inject(program, state, pixels):
    """Compute the currents of an image, uint8 `[channel, y, x]`, into the layers that see it."""
    image = np.ascontiguousarray(pixels.transpose(1, 2, 0)).astype(np.float32)
    for index in range(1, len(program.nodes)):
        node = program.nodes[index]
        if node.bias_kind == IMAGE_BIAS:
            line = node.width * node.lanes
            for item in range(node.channels // node.lanes * node.height):
                at, bias = node.sums + item * line, node.bias + item * line
                state.current[at : at + line] = program.floats[bias : bias + line]
                for s in range(node.first_synapse, node.last_synapse):
                    synapse = program.synapses[s]
                    if program.nodes[synapse.source].kind == IMAGE:
                        v = state.current.ctypes.data + 4 * at
                        _add_products(
                            program, node, synapse, image.ctypes.data, v, item // node.height, item % node.height
                        )


@njit(**SETTINGS)
def _meet(counter, arrived, parts):
    """Wait for the other threads; returns how many arrivals there have been."""
    if parts > 1:
        arrive_and_wait(counter.ctypes.data, arrived + parts)
    return arrived + parts


@njit(**SETTINGS)
def _share(count, part, parts):
    """The pieces of work, of `count`, that are this thread's."""
    return range(count * part // parts, count * (part + 1) // parts)


@njit(**SETTINGS)
def _integrate(program, state, scratch, node, gates, signs, part, parts):
    """v <- v + currents;  z, v <- fire(v + bias): block by block of the channels, line by line, step by step."""
    lanes, line = node.lanes, node.width * node.lanes
    for item in _share(node.channels // lanes * node.height, part, parts):
        block, y = item // node.height, item % node.height
        neuron = node.neurons + item * line
        v = state.v.ctypes.data + 4 * neuron
        for step in range(len(gates)):
            for s in range(node.first_synapse, node.last_synapse):
                synapse = program.synapses[s]
                source = program.nodes[synapse.source]
                sums = scratch.sums[step].ctypes.data + 4 * source.sums
                if source.kind == IMAGE:
                    continue
                elif synapse.kind == PRODUCTS:
                    _add_products(program, node, synapse, sums, v, block, y)
                elif synapse.kind == PRODUCT_GAIN:
                    values, target = (
                        scratch.sums[step, source.sums + y * node.width * node.channels :],
                        state.v[neuron:],
                    )
                    for x in range(node.width):
                        for i in range(lanes):
                            value = values[x * node.channels + block * lanes + i]
                            target[x * lanes + i] += np.float32(synapse.gain) * value
                else:
                    for sign in range(signs):
                        plane, factor = 2 * step + sign, np.float32(1 - 2 * sign)
                        if synapse.kind == GAIN:
                            mask = scratch.masks[plane].ctypes.data + (source.neurons + item * line) // 8
                            for x in range(node.width):
                                gain = np.float32(synapse.gain) * factor
                                add_where(lanes, v + 4 * lanes * x, mask + lanes // 8 * x, gain)
                        else:
                            _add_events(program, scratch, node, synapse, source, plane, factor, v, block, y)
            bias, per_pixel = program.floats.ctypes.data, 0
            if gates[step]:
                bias, per_pixel = _bias(program, state, node, item)
            if node.kind == LAYER:
                up = scratch.masks[2 * step].ctypes.data + neuron // 8
                down = scratch.masks[2 * step + 1].ctypes.data + neuron // 8
                n = state.n.ctypes.data + neuron
                for x in range(node.width):
                    at, mask = v + 4 * lanes * x, lanes // 8 * x
                    if signs == 1:
                        fire(lanes, at, bias + per_pixel * x, up + mask)
                    else:
                        fire_signed(
                            lanes, at, bias + per_pixel * x, n + lanes * x, program.levels, up + mask, down + mask
                        )
            else:
                for i in range(item * lanes, (item + 1) * lanes):  # a read-out is one pixel, so an item is a block
                    if gates[step] and node.bias_kind == IMAGE_BIAS:
                        state.v[node.neurons + i] += state.current[node.sums + i]
                    elif gates[step]:
                        state.v[node.neurons + i] += program.floats[node.bias + i]
                    scratch.logits[step, i] = state.v[node.neurons + i]


@njit(**SETTINGS)
def _bias(program, state, node, item):
    """Address of what enters a line of a block beside spikes, and how far it is from pixel to pixel."""
    lanes = node.lanes
    if node.bias_kind == CHANNEL_BIAS:
        return program.floats.ctypes.data + 4 * (node.bias + item // node.height * lanes), 0
    first = item * node.width * lanes
    if node.bias_kind == IMAGE_BIAS:
        return state.current.ctypes.data + 4 * (node.sums + first), 4 * lanes
    return program.floats.ctypes.data + 4 * (node.bias + first), 4 * lanes


@njit(**SETTINGS)
def _add_events(program, scratch, node, synapse, source, plane, factor, v, block, y):
    """Add the weights of the events in the windows of a line of outputs."""
    lanes = node.lanes
    size = lanes if synapse.kind == INT8 else 4 * lanes  # bytes of a row
    line = synapse.kernel_x * source.channels * size
    top = y * synapse.stride_y - synapse.padding_y
    first, last = max(0, -top), min(synapse.kernel_y, source.height - top)
    if first >= last:
        return
    starts_line = 8 * (source.width + 1)
    starts = scratch.starts[plane].ctypes.data + 8 * source.starts + (top + first) * starts_line
    events = scratch.events[plane].ctypes.data
    weights = (block * synapse.kernel_y + first) * line
    if synapse.kind == INT8:
        weights += program.weights.ctypes.data + 2 * synapse.weights
    else:
        weights += program.floats.ctypes.data + 4 * synapse.weights
    unit = program.floats.ctypes.data + 4 * (synapse.unit + block * lanes)
    for x in range(node.width):
        left = x * synapse.stride_x - synapse.padding_x
        begin, end = max(0, left), min(source.width, left + synapse.kernel_x)
        at, base = v + 4 * lanes * x, weights - left * source.channels * size
        if begin < end and synapse.kind == INT8:
            add_int8_rows(
                lanes, at, unit, factor, base, line, events, starts + 8 * begin, starts_line, end - begin, last - first
            )
        elif begin < end:
            add_float_rows(
                lanes, at, factor, base, line, events, starts + 8 * begin, starts_line, end - begin, last - first
            )


@njit(**SETTINGS)
def _add_products(program, node, synapse, values, v, block, y):
    """Add the products of weights and of what a source holds, float32 `[y, x, channel]`, for a line of outputs."""
    source, lanes = program.nodes[synapse.source], node.lanes
    weights = program.floats.ctypes.data + 4 * synapse.weights
    top = y * synapse.stride_y - synapse.padding_y
    for x in range(node.width):
        left = x * synapse.stride_x - synapse.padding_x
        begin, end = max(0, left), min(source.width, left + synapse.kernel_x)
        for k in range(max(0, -top), min(synapse.kernel_y, source.height - top)):
            row = ((block * synapse.kernel_y + k) * synapse.kernel_x + begin - left) * source.channels
            value = ((top + k) * source.width + begin) * source.channels
            count = (end - begin) * source.channels
            add_products(lanes, v + 4 * lanes * x, values + 4 * value, weights + 4 * lanes * row, count)


@njit(**SETTINGS)
def _list(scratch, node, index, steps, signs, part, parts):
    """Make the lists of events from the masks."""
    for plane in range(2 * steps):
        if plane % 2 >= signs:
            continue
        masks, events = scratch.masks[plane].ctypes.data, scratch.events[plane].ctypes.data
        starts, total = scratch.starts[plane], 0
        for y in _share(node.height, part, parts):
            end = node.events + y * node.line
            total -= end
            start = node.starts + y * (node.width + 1)
            for x in range(node.width):
                starts[start + x] = end
                first = x * node.channels
                for block in range(node.channels // node.lanes):
                    pixel = (block * node.height + y) * node.width + x
                    mask = masks + (node.neurons + pixel * node.lanes) // 8
                    for i in range(node.lanes // 8):
                        end = list_bits(mask + i, POSITIONS.ctypes.data, first + 8 * i, events, end)
                    first += node.lanes
            starts[start + node.width] = end
            total += end
        scratch.totals[part, plane, index] = total


@njit(**SETTINGS)
def _pool(program, scratch, node, steps, signs, part, parts):
    """Join the lists of the pixels in each window, or count their events channel by channel."""
    source = program.nodes[node.source]
    for plane in range(2 * steps):
        if plane % 2 >= signs:
            continue
        step, factor = plane // 2, np.float32(1 - 2 * (plane % 2))
        events, starts, sums = scratch.events[plane], scratch.starts[plane], scratch.sums[step]
        for y in _share(node.height, part, parts):
            end = node.events + y * node.line
            top = y * node.stride_y - node.padding_y
            for x in range(node.width):
                at = node.sums + (y * node.width + x) * node.channels
                if plane % 2 == 0:
                    sums[at : at + node.channels] = 0.0
                left = x * node.stride_x - node.padding_x
                starts[node.starts + y * (node.width + 1) + x] = end
                for source_y in range(max(0, top), min(source.height, top + node.kernel_y)):
                    for source_x in range(max(0, left), min(source.width, left + node.kernel_x)):
                        pixel = source.starts + source_y * (source.width + 1) + source_x
                        first, count = starts[pixel], starts[pixel + 1] - starts[pixel]
                        if node.summed:
                            for i in range(first, first + count):
                                sums[at + events[i] - source_x * node.channels] += factor
                        if node.listed:
                            base = events.ctypes.data
                            copy_shifted(base + 4 * first, base + 4 * end, count, (x - source_x) * node.channels)
                            end += count
            starts[node.starts + y * (node.width + 1) + node.width] = end


def _compiled(sources):
    """The entrances, which numba keeps compiled. `sources` is in their closure, and so in the key of what is kept:
    by itself numba would look at this file alone, and run old code after a change in the others."""

    @njit(cache=True, **SETTINGS)
    def advance(program, state, scratch, gates, part, parts, counter):
        _ = sources
        _advance(program, state, scratch, gates, part, parts, counter)

    @njit(cache=True, **SETTINGS)
    def inject(program, state, pixels):
        _ = sources
        _inject(program, state, pixels)

    return advance, inject


SOURCES = ("events_llvm.py", "events_program.py", "events_vectors.py")
_HERE = Path(__file__).parent
advance, inject = _compiled(hashlib.sha256(b"".join((_HERE / name).read_bytes() for name in SOURCES)).hexdigest())
