"""What the paper and the log of its demo report; a number that neither is known to report is None, never derived."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One setting of the paper: accuracies in %, steps in time steps, saving in %, spikes per neuron and inference."""

    data: str
    network: str
    method: str
    ann: float | None = None
    accuracy: float | None = None
    """At T, without early exit."""
    steps: int | None = None
    exit_accuracy: float | None = None
    mean_steps: float | None = None
    saving: float | None = None
    """As printed; where it does not follow from the steps, `note` says so."""
    spikes: float | None = None
    exit_spikes: float | None = None
    note: str = ""


SETTINGS = (
    Published(
        "CIFAR-10",
        "ResNet-18",
        "qcfs",
        ann=93.79,
        accuracy=94.27,
        steps=27,
        exit_accuracy=94.27,
        mean_steps=11.51,
        saving=57.4,
        spikes=3.02,
        exit_spikes=1.29,
        note="the demo's log: 10,000 test images, alpha 30, threshold 0.6 set by hand",
    ),
    Published(
        "CIFAR-10",
        "ResNet-18",
        "qffs",
        ann=93.79,
        accuracy=94.11,
        steps=4,
        mean_steps=2.52,
        saving=41.0,
        spikes=0.34,
        note="printed 41 %; 4 → 2.52 steps is 37.0 %",
    ),
    Published("CIFAR-10", "VGG-16", "qcfs", steps=30),
    Published("CIFAR-10", "VGG-16", "qffs", accuracy=92.41, steps=6, spikes=0.32),
    Published("ImageNet", "VGG-16", "qffs", steps=4, spikes=0.52),
    Published("ImageNet", "ResNet-50", "qffs", accuracy=73.17, steps=6, spikes=0.53),
)

S1 = (
    Published(
        "CIFAR-10",
        "ResNet-18",
        "qcfs",
        steps=19,
        mean_steps=8.03,
        saving=63.0,
        note="printed 63 %; 19 → 8.03 steps is 57.7 %",
    ),
    Published("CIFAR-10", "ResNet-18", "qffs", accuracy=93.79, steps=4),
    Published("CIFAR-10", "VGG-16", "qffs", accuracy=92.31, steps=6),
    Published("ImageNet", "ResNet-50", "qffs", accuracy=72.56, steps=6),
)

CIFAR_SAVING = (41.0, 58.0)
"""The range of the savings that the paper reports for CIFAR-10, in %."""


def counterpart(method: str, table: tuple[Published, ...] = SETTINGS) -> Published:
    """The paper's ResNet-18 on CIFAR-10 by the same method: the nearest to what is measured here."""
    return next(row for row in table if (row.network, row.method) == ("ResNet-18", method))
