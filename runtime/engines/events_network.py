"""The layers of a network as the event-driven engine knows them: what flows into which, and no more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Pair = tuple[int, int]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Gain:
    """An identity shortcut: `source` times one number."""

    source: str
    gain: float


@dataclass(frozen=True)
class Convolution:
    source: str
    weight: np.ndarray
    """`[out, in / groups, y, x]`, int8 in units of `unit`, or float32."""
    unit: np.ndarray | None
    """float32 `[out]`; None with float32 weights."""
    stride: Pair
    padding: Pair
    groups: int


@dataclass(frozen=True)
class Layer:
    """Neurons, or the read-out: what flows into them in a time step."""

    name: str
    shape: Shape
    synapses: tuple[Gain | Convolution, ...]
    bias: np.ndarray
    """float32 `[channel, 1, 1]` or `[channel, y, x]`; QFFS: in the injection steps only."""


@dataclass(frozen=True)
class Pool:
    """Sums of `source` over windows."""

    name: str
    shape: Shape
    source: str
    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True)
class Network:
    input: str
    input_shape: Shape
    nodes: tuple[Layer | Pool, ...]
    """In topological order."""
    readout: Layer
    levels: int
    """QFFS: of the quantiser; 0 with QCFS."""
