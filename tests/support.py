"""What tests import by name: a small random network, and where the development data lies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dynamic_confidence.benchmarks import networks
from dynamic_confidence.models.checkpoint import Checkpoint
from dynamic_confidence.runtime.manifest import Preprocessing

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"

GREY = Preprocessing(color="L", height=12, width=12, mean=(0.3,), std=(0.4,))
CLASSES = ("zero", "one", "two", "three")


def random_checkpoint(
    architecture: str = "resnet8", preprocessing: Preprocessing = GREY, *, width: int = 4, **arguments: object
) -> Checkpoint:
    """`networks.random_checkpoint`, small and with names for its classes."""
    checkpoint = networks.random_checkpoint(architecture, preprocessing, width=width, classes=len(CLASSES), **arguments)
    return replace(checkpoint, class_names=CLASSES)
