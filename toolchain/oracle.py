"""The numpy float64 oracle: the stepping network as plainly as possible, to check everything else against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .snn import INPUT, Layer, Pool, Snn, Synapse


@dataclass(frozen=True)
class OracleStep:
    """What one time step leaves behind."""

    logits: np.ndarray
    """float64 `[batch, class]`, accumulated."""
    spikes: dict[str, np.ndarray]
    """Per layer `[batch, channel, y, x]`: -1, 0 or 1."""
    membrane: dict[str, np.ndarray]
    """Per layer, after the reset, in thresholds."""


def oracle_steps(snn: Snn, pixels: np.ndarray, steps: int) -> Iterator[OracleStep]:
    """Step the network in float64 and yield every time step.

        p = v + I;  QCFS: z = [p >= 1];  QFFS: z = [p >= 1][n < levels] - [p < 0][n > 0];  v' = p - z

    Shapes: pixels uint8 `[batch, channel, y, x]`, or `[step, batch, channel, y, x]` for an input that varies in time.
    Source: Dynamic Confidence, eq. 3-4 and 20-26.
    """
    frames = pixels[None] if pixels.ndim == 4 else pixels
    batch, method = frames.shape[1], snn.method
    membrane = {layer.name: np.full((batch, *layer.shape), 0.5) for layer in snn.layers}
    emitted = {layer.name: np.zeros((batch, *layer.shape)) for layer in snn.layers}
    logits = np.zeros((batch, snn.readout.shape[0]))
    for step in range(steps):
        inject = method.injection_steps is None or step < method.injection_steps
        values = {INPUT: frames[min(step, len(frames) - 1)].astype(np.float64)}
        spikes = {}
        for node in snn.nodes:
            if isinstance(node, Pool):
                values[node.name] = sum_pool(values[node.source], node)
                continue
            p = membrane[node.name] + _current(node, values, inject)
            if method.name == "qcfs":
                z = (p >= 1.0).astype(np.float64)
            else:
                n = emitted[node.name]
                z = ((p >= 1.0) & (n < method.levels)).astype(np.float64) - ((p < 0.0) & (n > 0))
            membrane[node.name] = p - z
            emitted[node.name] = emitted[node.name] + z
            values[node.name] = spikes[node.name] = z
        logits = logits + _current(snn.readout, values, inject)[:, :, 0, 0]
        yield OracleStep(logits, spikes, dict(membrane))


def _current(layer: Layer, values: dict[str, np.ndarray], inject: bool) -> np.ndarray:
    total = layer.bias[None] * inject
    for synapse in layer.synapses:
        if synapse.source == INPUT and not inject:
            continue
        total = total + convolve(values[synapse.source], synapse)
    return total


def convolve(x: np.ndarray, synapse: Synapse) -> np.ndarray:
    """Apply a synapse: `[batch, in, y, x]` -> `[batch, out, y', x']`, float64."""
    if synapse.is_identity:
        return x * synapse.weight
    weight, groups = synapse.weight, synapse.groups
    windows = _windows(x, weight.shape[2:], synapse.stride, synapse.padding)  # [batch, in, y', x', ky, kx]
    if groups == 1:
        return np.moveaxis(np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3))), 3, 1)
    batch, channels, height, width, ky, kx = windows.shape
    grouped = windows.reshape(batch, groups, channels // groups, height, width, ky, kx)
    weights = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return np.einsum("bgiyxkl,goikl->bgoyx", grouped, weights).reshape(batch, weight.shape[0], height, width)


def sum_pool(x: np.ndarray, pool: Pool) -> np.ndarray:
    return _windows(x, pool.kernel, pool.stride, pool.padding).sum(axis=(4, 5))


def _windows(x: np.ndarray, kernel: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))  # type: ignore[call-overload]
    return windows[:, :, :: stride[0], :: stride[1]]
