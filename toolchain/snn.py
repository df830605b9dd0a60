"""The spiking network between conversion and export: layers of neurons, the synapses into them, and a read-out.

Everything is in units of the receiving layer's threshold, so a spike is 1 (or -1) and every threshold is 1; only the
read-out keeps the unit of the logits. Pools sum instead of averaging: sums of spikes are integers, and the divisor is
folded into the next weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..runtime.manifest import Method, Precision

Shape = tuple[int, int, int]
INPUT = "input"
PIXEL_MAX = 255


@dataclass(frozen=True)
class Synapse:
    """A convolution from `source`, or the identity times a gain when `weight` is a scalar array."""

    source: str
    weight: np.ndarray
    """float64 `[out, in / groups, kernel y, kernel x]`, or `[]`."""
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    precision: Precision = "fp32"
    """What the convolution computes in."""
    unit: np.ndarray | None = None
    """int8: `[out]`, of which the weights are multiples in -127 … 127."""

    @property
    def is_identity(self) -> bool:
        return self.weight.ndim == 0

    def in_units(self, unit: np.ndarray) -> np.ndarray:
        """float64 `[out, in / groups, kernel y, kernel x]`: the whole numbers that the weights are of units `[out]`."""
        return np.round(self.weight / unit.reshape(-1, 1, 1, 1))

    def times(self, factor: np.ndarray) -> Synapse:
        """Scale the current, by one factor or by one per output channel `[out]`."""
        return replace(self, weight=self.weight * (factor.reshape(-1, 1, 1, 1) if factor.ndim else factor))


@dataclass(frozen=True)
class Layer:
    """Neurons, and the current into them: the sum of the synapses and a bias."""

    name: str
    synapses: tuple[Synapse, ...]
    bias: np.ndarray
    """float64 `[out, 1, 1]`, or `[out, y, x]` where the borders differ (the folded normalisation of a padded image)."""
    shape: Shape
    threshold: float
    """The unit of this layer's currents, in the units of the quantised network."""


@dataclass(frozen=True)
class Pool:
    """The sum (not the mean) of `source` over windows."""

    name: str
    source: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    shape: Shape


@dataclass(frozen=True)
class Snn:
    """A spiking network: nodes in topological order, then the read-out (a layer that only accumulates)."""

    method: Method
    input_shape: Shape
    nodes: tuple[Layer | Pool, ...]
    readout: Layer

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The spiking layers."""
        return tuple(node for node in self.nodes if isinstance(node, Layer))

    def shape_of(self, source: str) -> Shape:
        """[channel, y, x] of the image, a layer or a pool."""
        return self.input_shape if source == INPUT else next(n.shape for n in self.nodes if n.name == source)

    def largest_values(self) -> dict[str, int]:
        """The largest magnitude that each source can emit in one time step, by name."""
        largest = {INPUT: PIXEL_MAX}
        for node in self.nodes:
            largest[node.name] = (
                1 if isinstance(node, Layer) else largest[node.source] * node.kernel[0] * node.kernel[1]
            )
        return largest


def out_size(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1


def default_steps(method: str, levels: int, layers: int) -> int:
    """Time steps to allow: 16 for QCFS; for QFFS more than any measured network needs to settle (4 + layers / 3)."""
    return 16 if method == "qcfs" else levels + 3 + -(-layers // 3)
