"""The quantised network's own modules with neurons in place of quantisers: what the torch peers have in common."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...models.quantiser import Quantiser, quantisers


@dataclass
class Window:
    """Which rows of the batch image and biases enter: QFFS injects in its first steps only."""

    steps: int | None
    """Time steps with injection; None: all."""
    first_silent: int | None = None
    """Row of the batch from which on nothing is injected; None: everywhere."""

    def step(self, step: int) -> None:
        """Take one time step (from 0) for the whole batch."""
        self.first_silent = None if self.steps is None or step < self.steps else 0

    def all_steps(self, batch: int) -> None:
        """Take a batch `[step * batch, …]` that holds all time steps."""
        self.first_silent = None if self.steps is None else self.steps * batch

    @property
    def injected(self) -> slice:
        return slice(None, self.first_silent)

    @property
    def silent(self) -> slice:
        return slice(0, 0) if self.first_silent is None else slice(self.first_silent, None)


def window_of(network: nn.Module, method: str) -> Window:
    """QCFS injects in every step, QFFS in as many as the activations have levels."""
    levels = next(quantiser.levels for _, quantiser in quantisers(network))
    return Window(levels if method == "qffs" else None)


class Shifted(nn.Module):
    """A layer, plus a constant per channel in the rows of the batch where it is due."""

    def __init__(self, layer: nn.Module, shift: Tensor, rows: Callable[[], slice]) -> None:
        super().__init__()
        self.layer, self.rows = layer, rows
        self.register_buffer("shift", shift.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        y, rows = self.layer(x), self.rows()
        if y[rows].numel():
            shift = self.get_buffer("shift")
            y[rows] += shift.reshape(-1, *[1] * (y.ndim - 2))
        return y


def spiking(network: nn.Module, neuron: Callable[[Quantiser], nn.Module], window: Window) -> nn.Module:
    """Copy a quantised network with neurons for its quantisers; constants enter inside the window only.

    A normalisation's constant is taken away again outside the window, as the demo does it; a layer that has a bias
    gets it inside only.
    """
    network = copy.deepcopy(network).eval()
    for name, quantiser in list(quantisers(network)):
        _set(network, name, neuron(quantiser))
    if window.steps is not None:
        for name, layer in list(network.named_modules()):
            if isinstance(layer, nn.BatchNorm2d):
                _set(network, name, Shifted(layer, -_constant(layer), lambda: window.silent))
            elif isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                bias = layer.bias
                layer.register_parameter("bias", None)
                _set(network, name, Shifted(layer, bias, lambda: window.injected))
    return network


def folded(network: nn.Module) -> nn.Module:
    """Copy a network with every batch normalisation folded into the convolution before it."""
    network = copy.deepcopy(network).eval()
    for convolution, normalisation in list(_pairs(network)):
        conv, norm = network.get_submodule(convolution), network.get_submodule(normalisation)
        _set(network, convolution, fuse_conv_bn_eval(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm)))
        _set(network, normalisation, nn.Identity())
    return network


@torch.inference_mode()
def stepped(network: nn.Module, window: Window, image: Tensor, steps: int, scale: float) -> Tensor:
    """Run a network whose neurons keep their state step by step: accumulated logits `[step, batch, class]`.

    After every step its confidence is computed and looked at, as an early exit needs it.
    """
    dark, total, logits = torch.zeros_like(image), image.new_zeros(()), []
    for step in range(steps):
        window.step(step)
        total = total + network(dark if window.first_silent == 0 else image)
        confidence(total, scale)
        logits.append(total)
    return torch.stack(logits)


@torch.inference_mode()
def layer_by_layer(network: nn.Module, window: Window, image: Tensor, steps: int, scale: float) -> Tensor:
    """Run all time steps in one pass, each layer over a batch `[step * batch, …]`: logits `[step, batch, class]`."""
    window.all_steps(len(image))
    images = image.repeat(steps, 1, 1, 1)
    images[window.silent] = 0.0
    logits = network(images).unflatten(0, (steps, len(image))).cumsum(0)
    confidence(logits, scale)
    return logits


def confidence(logits: Tensor, scale: float) -> list[float]:
    """max softmax(logits / scale), on the host."""
    return torch.softmax(logits / scale, dim=-1).amax(-1).flatten().tolist()


def _constant(norm: nn.BatchNorm2d) -> Tensor:
    """What a normalisation makes of zeros."""
    assert norm.running_mean is not None, "a network that converts has running statistics"
    assert norm.running_var is not None
    return norm.bias - norm.running_mean * norm.weight / torch.sqrt(norm.running_var + norm.eps)


class _LeafTracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not list(m.children()) or isinstance(m, Quantiser)


def _pairs(network: nn.Module) -> Iterator[tuple[str, str]]:
    """The names of every convolution and the normalisation that follows it."""
    for node in _LeafTracer().trace(network).nodes:
        if node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), nn.BatchNorm2d):
            before = node.args[0]
            if before.op == "call_module" and isinstance(network.get_submodule(str(before.target)), nn.Conv2d):
                yield str(before.target), str(node.target)


def _set(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, module)
