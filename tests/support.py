"""What tests import by name: a small random network, and where the development data lies."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dynamic_confidence.models.checkpoint import Checkpoint
from dynamic_confidence.models.lsq import initialise_scales
from dynamic_confidence.models.registry import build
from dynamic_confidence.runtime.manifest import Preprocessing

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"

GREY = Preprocessing(color="L", height=12, width=12, mean=(0.3,), std=(0.4,))
CLASSES = ("zero", "one", "two", "three")


def random_checkpoint(
    architecture: str = "resnet8", preprocessing: Preprocessing = GREY, **arguments: object
) -> Checkpoint:
    """A network with random weights, settled batch statistics and quantisers that see their range."""
    torch.manual_seed(0)
    arguments = {"width": 4, "classes": len(CLASSES), "in_channels": preprocessing.channels, **arguments}
    network = build(architecture, **arguments)
    images = torch.randn(64, *preprocessing.shape)
    with torch.no_grad():
        network.train()
        for _ in range(20):
            network(images)
        network.eval()
        initialise_scales(network, images)
        readout = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        readout.weight.mul_(16.0)  # answers that differ from image to image
    return Checkpoint(architecture, arguments, network.state_dict(), preprocessing, CLASSES)
