"""Eager PyTorch as fast as it gets without leaving it, and the same step through torch.compile."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...toolchain.snn import INPUT, Layer, Pool, Snn
from .candidate import Candidate, Missing
from .setting import Setting
from .spiking_modules import confidence

NAME, COMPILED = "eager PyTorch, tuned", "torch.compile"
EQUALS = "fp32"
BIAS = "bias"
States = tuple[Tensor, ...]


class _Link(NamedTuple):
    """A synapse without its weights, which are a buffer under `key`."""

    key: str
    source: str
    geometry: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int] | None
    """Stride, padding, dilation and groups; None: the identity times a gain."""


class TunedStep(nn.Module):
    """One time step of the snapped network as a pure function, in thresholds: folded, channels last, bias in the conv.

    (pixels `[batch, channel, y, x]`, states, logits `[batch, class]`, injection) -> (states', logits')
    """

    def __init__(self, snn: Snn) -> None:
        super().__init__()
        self.method = snn.method
        self.shapes = [layer.shape for layer in snn.layers]
        self.nodes = [(node.name, node if isinstance(node, Pool) else None) for node in snn.nodes]
        self.readout, self.classes = snn.readout.name, snn.readout.shape[0]
        self.links = {layer.name: self._links(layer) for layer in (*snn.layers, snn.readout)}

    def initial(self, batch: int) -> States:
        """Membranes at half the threshold, each followed by its spike counts for QFFS."""
        states = []
        for shape in self.shapes:
            v = torch.full((batch, *shape), 0.5).contiguous(memory_format=torch.channels_last)
            states += [v] if self.method.name == "qcfs" else [v, torch.zeros_like(v)]
        return tuple(states)

    def forward(self, pixels: Tensor, states: States, logits: Tensor, inject: bool) -> tuple[States, Tensor]:
        values, after, before = {INPUT: pixels}, [], iter(states)
        for name, pool in self.nodes:
            if pool is not None:
                windows = pool.kernel, pool.stride, pool.padding
                values[name] = functional.avg_pool2d(values[pool.source], *windows, divisor_override=1)
                continue
            v = next(before)
            current = self._current(name, values, inject, v)
            if self.method.name == "qcfs":
                values[name], *state = _if_step(current, v)
            else:
                values[name], *state = _signed_if_step(current, v, next(before), self.method.levels)
            after += state
        return tuple(after), logits + self._current(self.readout, values, inject, logits)[:, :, 0, 0]

    def _links(self, layer: Layer) -> list[_Link]:
        bias = torch.as_tensor(layer.bias, dtype=torch.float32)
        self.register_buffer(_key(layer.name, BIAS), bias.flatten() if bias.shape[1:] == (1, 1) else bias)
        links = []
        for index, synapse in enumerate(layer.synapses):
            weight, key = torch.as_tensor(synapse.weight, dtype=torch.float32), _key(layer.name, index)
            geometry = None if synapse.is_identity else (synapse.stride, synapse.padding, (1, 1), synapse.groups)
            self.register_buffer(key, weight.contiguous(memory_format=torch.channels_last) if geometry else weight)
            links.append(_Link(key, synapse.source, geometry))
        return links

    def _current(self, name: str, values: dict[str, Tensor], inject: bool, like: Tensor) -> Tensor:
        bias, total = self.get_buffer(_key(name, BIAS)) if inject else None, None
        for link in self.links[name]:
            if link.source == INPUT and not inject:
                continue
            weight, x = self.get_buffer(link.key), values[link.source]
            if link.geometry is None:
                part = x * weight
            else:
                rides = bias if bias is not None and bias.ndim == 1 else None  # one per channel: in the convolution
                part = functional.conv2d(x, weight, rides, *link.geometry)
                bias = bias if rides is None else None
            total = part if total is None else total + part
        if total is None:  # the stem outside the window
            return torch.zeros_like(like)
        return total if bias is None else total + (bias if bias.ndim == 3 else bias.reshape(-1, 1, 1))


def _if_step(current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`models.neurons.if_step` in the memory of the current, which nothing else reads: spikes, v'."""
    p = current.add_(v)
    z = torch.floor(p).clamp_(0.0, 1.0)
    return z, p.sub_(z)


def _signed_if_step(current: Tensor, v: Tensor, n: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """`models.neurons.signed_if_step` likewise: spikes, v', n'."""
    p = current.add_(v)
    after = torch.floor(p).clamp_(-1.0, 1.0).add_(n).clamp_(0.0, float(levels))
    z = after - n
    return z, p.sub_(z), after


@torch.inference_mode()
def run_tuned(step: Any, module: TunedStep, pixels: np.ndarray, steps: int, scale: float) -> Tensor:
    """Step through `step`, the module or what was compiled from it: accumulated logits `[step, batch, class]`."""
    image = torch.from_numpy(pixels).float().contiguous(memory_format=torch.channels_last)
    window, rows = module.method.injection_steps, []
    states, logits = module.initial(len(image)), torch.zeros(len(image), module.classes)
    for t in range(steps):
        states, logits = step(image, states, logits, window is None or t < window)
        confidence(logits, scale)
        rows.append(logits)
    return torch.stack(rows)


def tuned(setting: Setting) -> Candidate:
    """See the first line of this file."""
    return _candidate(NAME, setting, module := TunedStep(setting.snn).eval(), module)


def compiled(setting: Setting) -> Candidate | Missing:
    """The tuned step through torch.compile, or why that does not work here."""
    module = TunedStep(setting.snn).eval()
    torch.compiler.reset()  # of other networks' steps: torch counts the graphs of one function and refuses a ninth
    step = torch.compile(module, fullgraph=True, dynamic=False)
    try:
        run_tuned(step, module, setting.pixels[:1], setting.steps, setting.scale)
    except (RuntimeError, OSError, ImportError) as error:  # no compiler, no Python headers, no backend for this machine
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return Missing(COMPILED, "not working here", reason)
    return _candidate(COMPILED, setting, module, step)


def _candidate(name: str, setting: Setting, module: TunedStep, step: Any) -> Candidate:
    def run(pixels: np.ndarray, steps: int) -> np.ndarray:
        return run_tuned(step, module, pixels, steps, setting.scale)[:, 0].numpy()

    return Candidate(name, run, run, equals=EQUALS)


def _key(layer: str, part: object) -> str:
    return f"{layer}:{part}".replace(".", "/")
