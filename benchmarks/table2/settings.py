"""The eight settings of the paper's Table 2: which network, which T, and what the paper reports of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...runtime.manifest import Preprocessing
from ..preprocessings import CIFAR, IMAGENET
from ..tables import published

METHODS = ("qcfs", "qffs")
QUICK = 4
"""A quick run takes networks with so many times fewer channels."""
TEST_IMAGES = 1000
"""Of which the accuracy of a trained network is told, where there are so many."""
LIKELY_RATES = (0.05, 0.25)
"""Of the neurons, so many spike per step in trained networks; outside of that a random network says little of them."""


@dataclass(frozen=True)
class Network:
    title: str
    data: str
    architecture: str
    preprocessing: Preprocessing
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of the architecture, beside `width`."""
    width: int = 64
    """Channels of the first stage."""
    thresholds: float = 1.0
    """Times what the range of the activations asks for, so that spikes are no more than in trained networks."""

    def channels(self, *, quick: bool) -> int:
        """Of the first stage."""
        return max(self.width // QUICK, 1) if quick else self.width


@dataclass(frozen=True)
class PaperSetting:
    """A row of the table, with what the paper reports; None: not known to us, and nothing is derived for it."""

    network: str
    """One of `NETWORKS`."""
    method: str
    steps: int
    """T"""
    mean_steps: float | None = None
    """With Dynamic Confidence."""
    v100_ms: float | None = None
    """An image at fixed T, batch 1, on a V100."""
    v100_exit_ms: float | None = None
    """The same with Dynamic Confidence."""
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.network}/{self.method}"


NETWORKS: dict[str, Network] = {
    "vgg16_cifar10": Network("VGG-16", "CIFAR-10", "vgg16", CIFAR),
    "resnet18_cifar10": Network("ResNet-18", "CIFAR-10", "resnet18", CIFAR, thresholds=1.5),
    "vgg16_imagenet": Network("VGG-16", "ImageNet", "vgg16", IMAGENET, {"form": "imagenet", "classes": 1000}),
    "resnet50_imagenet": Network(
        "ResNet-50", "ImageNet", "resnet50", IMAGENET, {"form": "imagenet", "classes": 1000}, thresholds=4.0
    ),
}


def _published(network: str, method: str, **own: Any) -> PaperSetting:
    """A setting whose steps stand in Table 1."""
    about = NETWORKS[network]
    wanted = about.data, about.title, method
    row = next(row for row in published.SETTINGS if (row.data, row.network, row.method) == wanted)
    if row.steps is None:
        raise ValueError(f"{network}/{method}: Table 1 has no T of it")
    return PaperSetting(network, method, row.steps, row.mean_steps, **own)


SETTINGS = (
    _published("vgg16_cifar10", "qcfs"),
    _published("vgg16_cifar10", "qffs"),
    _published(
        "resnet18_cifar10",
        "qcfs",
        v100_ms=127.0,
        v100_exit_ms=47.0,
        note="47 of 127 ms saves 63 %, 11.51 of 27 steps save 57.4 %; the demo's log has 103 and 45 ms",
    ),
    _published("resnet18_cifar10", "qffs"),
    PaperSetting("vgg16_imagenet", "qcfs", 74, note="which of 74 and 128 is whose T is our reading"),
    _published("vgg16_imagenet", "qffs"),
    PaperSetting("resnet50_imagenet", "qcfs", 128, note="which of 74 and 128 is whose T is our reading"),
    _published("resnet50_imagenet", "qffs"),
)
"""Dynamic Confidence, Tables 1 and 2, and the log of its demo."""


def names() -> tuple[str, ...]:
    """Every setting, as `network/method`."""
    return tuple(setting.name for setting in SETTINGS)


def paper_setting(name: str) -> PaperSetting:
    return next(setting for setting in SETTINGS if setting.name == name)
