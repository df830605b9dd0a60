"""The algebra of a conversion: sources carry pixels or spikes in a unit, currents are linear functions of sources."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from ..runtime.errors import DynamicConfidenceError
from ..runtime.manifest import Preprocessing
from .snn import INPUT, PIXEL_MAX, Layer, Pool, Shape, Synapse


@dataclass(frozen=True)
class Source:
    """What pixels, spikes or sums of spikes stand for: real value = unit * carried + offset, per channel."""

    name: str
    shape: Shape
    unit: np.ndarray
    """float64 `[channel]` or `[]`."""
    offset: np.ndarray
    """float64 `[channel]` or `[]`; only the normalised image has one."""


@dataclass(frozen=True)
class Current:
    """A linear function of sources, in the units of the quantised network."""

    synapses: tuple[Synapse, ...]
    bias: np.ndarray
    """float64 `[out, 1, 1]` or `[out, y, x]`."""
    shape: Shape


Value = Source | Current


@dataclass(frozen=True)
class NewNode:
    """A node that a conversion adds to the spiking network, and the real value of 1 of what it emits."""

    node: Layer | Pool
    unit: np.ndarray
    """float64 `[channel]` or `[]`."""


def pixel_source(preprocessing: Preprocessing) -> Source:
    """The image: uint8 pixels that stand for normalised values.

    (pixel / 255 - mean) / std = unit * pixel + offset
    """
    mean, std = np.array(preprocessing.mean, np.float64), np.array(preprocessing.std, np.float64)
    return Source(INPUT, preprocessing.shape, 1.0 / (PIXEL_MAX * std), -mean / std)


def require_source(value: Value, name: str, what: str) -> Source:
    """Return the value as a source. Raises: DynamicConfidenceError for a current, which nothing has quantised yet."""
    if isinstance(value, Source):
        return value
    raise DynamicConfidenceError(f"layer '{name}': {what} needs a quantised activation before it, got a linear layer.")


def not_the_image(value: Value, name: str, what: str) -> Source:
    """Return the value as a source of spikes.

    Only weights absorb the image's unit and normalisation: a sum of pixels is no integer number of one unit, whatever
    the mean is. Raises: DynamicConfidenceError for the image and for a current.
    """
    source = require_source(value, name, what)
    if source.name == INPUT:
        raise DynamicConfidenceError(
            f"layer '{name}': {what} of the image itself has no spiking form; put a convolution and a quantised "
            "activation before it."
        )
    return source


def weighted(source: Source, weight: np.ndarray, bias: np.ndarray, geometry: Synapse, shape: Shape) -> Current:
    """Convolve a source's real value; `geometry` gives stride, padding and groups.

        W * (unit x + offset) + b = (W unit) * x + (W * offset + b)

    Zero padding pads the real value, so where the offset is not zero the bias becomes a map with its own borders.
    Shapes: weight `[out, in / groups, kernel y, kernel x]`, bias `[out]`, both float64.
    """
    unit = source.unit
    if unit.ndim:  # per input channel, laid out for the weight
        per_group = unit.reshape(geometry.groups, -1)
        unit = np.repeat(per_group, weight.shape[0] // geometry.groups, axis=0)[:, :, None, None]
    synapse = replace(geometry, source=source.name, weight=weight * unit)
    total = bias.reshape(-1, 1, 1)
    if np.any(source.offset):
        offset = torch.from_numpy(np.array(np.broadcast_to(source.offset.reshape(-1, 1, 1), source.shape)))
        kernel = torch.from_numpy(weight)
        # Not the oracle's convolution: the oracle checks what becomes of this.
        folded = functional.conv2d(
            offset[None], kernel, None, geometry.stride, geometry.padding, groups=geometry.groups
        )
        total = total + folded[0].numpy()
    return Current((synapse,), total, shape)


def scaled(current: Current, factor: np.ndarray) -> Current:
    """Multiply a current by a factor `[out]` or `[]`."""
    synapses = tuple(synapse.times(factor) for synapse in current.synapses)
    return Current(synapses, current.bias * (factor.reshape(-1, 1, 1) if factor.ndim else factor), current.shape)


def added(left: Value, right: Value, name: str) -> Current:
    """Add two values; spikes enter as an identity synapse.

    Raises: DynamicConfidenceError for different shapes (nothing is broadcast) and for the image itself.
    """
    one, other = _as_current(left, name), _as_current(right, name)
    if one.shape != other.shape:
        raise DynamicConfidenceError(
            f"'{name}': an addition of {list(one.shape)} and {list(other.shape)} has no spiking form."
        )
    return Current(one.synapses + other.synapses, one.bias + other.bias, one.shape)


def _as_current(value: Value, name: str) -> Current:
    if isinstance(value, Current):
        return value
    source = not_the_image(value, name, "an addition")
    return Current((Synapse(source.name, source.unit),), np.zeros((source.shape[0], 1, 1)), source.shape)
