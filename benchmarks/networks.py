"""Random networks that behave like trained ones: for studies of speed, size and equality, not of accuracy."""

from __future__ import annotations

import torch
from torch import nn

from ..models.checkpoint import Checkpoint
from ..models.quantiser import initialise_scales, quantisers
from ..models.registry import build
from ..runtime.manifest import Preprocessing
from .preprocessings import CIFAR

PIXELS = 65536
"""Of the random images, in all, that settle the batch statistics and the quantisers; four images at least."""


def random_checkpoint(
    architecture: str = "resnet8",
    preprocessing: Preprocessing = CIFAR,
    *,
    classes: int = 10,
    thresholds: float = 1.0,
    **arguments: object,
) -> Checkpoint:
    """Random weights, settled batch statistics and quantisers that see their range; the same ones on every call.

    `thresholds`: times what the range asks for, so that fewer neurons spike. `arguments` are the architecture's own
    (`models.registry.build`).
    """
    torch.manual_seed(0)
    arguments = {"classes": classes, "in_channels": preprocessing.channels, **arguments}
    network = build(architecture, **arguments)
    images = torch.randn(max(4, PIXELS // (preprocessing.height * preprocessing.width)), *preprocessing.shape)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of this batch, in one pass
    with torch.no_grad():
        network.train()(images)
        initialise_scales(network.eval(), images)
        for _, quantiser in quantisers(network):
            quantiser.learned.mul_(thresholds)
        readout = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        readout.weight.mul_(16.0)  # answers that differ from image to image
    names = tuple(f"class {index}" for index in range(classes))
    return Checkpoint(architecture, arguments, network.state_dict(), preprocessing, names)
