"""The table of foreign checkpoint layouts: how each family names its weights, and what of it is not taken over."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

Replacement = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True)
class Layout:
    """How one family of checkpoints names its weights, as regular expressions from its names to ours."""

    name: str
    mark: str
    """Only this layout's checkpoints have such a key: decides where two layouts fit alike."""
    rename: tuple[tuple[str, Replacement], ...] = ()
    """Applied one after the other, to the names without DataParallel's `module.`."""
    drop: tuple[tuple[str, str], ...] = ()
    """Keys that are left out, each with the reason."""
    fold: tuple[tuple[str, Replacement], ...] = ()
    """Biases (our names) of convolutions before batch normalisation, and the running mean that takes them over.

    gamma (W x + b - mean) / std + beta = gamma (W x - (mean - b)) / std + beta
    """


def replaced(name: str, rules: tuple[tuple[str, Replacement], ...]) -> str:
    """Apply all rules to a name, one after the other."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


_PARTS = ("conv", "bn", "activation")
_VGG_STAGES = {"1": 0, "2": 7, "3": 14, "4": 24, "5": 34}
"""The index of each stage's first layer in our one sequence: three layers per convolution, and a pool per stage."""
_BIAS_BEFORE_NORMALISATION = (r"features\.(\d+)\.bias", lambda match: f"features.{int(match[1]) + 1}.running_mean")


def _sequence(match: re.Match[str]) -> str:
    """`.3.` of a sequence convolution, normalisation, activation, convolution, … is `.conv2.`."""
    index = int(match[1])
    return f".{_PARTS[index % 3]}{index // 3 + 1}."


def _vgg_layer(match: re.Match[str]) -> str:
    """Their stages have four layers per convolution, with a dropout; ours are one sequence with three."""
    block, part = divmod(int(match[2]), 4)
    return f"features.{_VGG_STAGES[match[1]] + 3 * block + part}."


def _qcfs(name: str, threshold: str, last: str) -> Layout:
    """The QCFS authors' networks: `threshold` is their name of λ, `last` of the activation after the addition."""
    return Layout(
        name,
        mark=rf"\.{threshold}$",
        rename=(
            (rf"\.{threshold}$", ".threshold"),
            (r"^layer([1-5])\.(\d+)\.", _vgg_layer),
            (r"^classifier\.(\d+)\.", lambda match: f"classifier.{int(match[1]) - 1}."),  # theirs flattens first
            (r"^conv1\.([012])\.", lambda match: f"{_PARTS[int(match[1])]}1."),
            (r"^conv([2-5])_x\.", lambda match: f"layer{int(match[1]) - 1}."),
            (r"\.residual_function\.(\d+)\.", _sequence),
            (r"\.shortcut\.", ".downsample."),
            (rf"\.{last}\.threshold$", ".activation2.threshold"),
        ),
        fold=(_BIAS_BEFORE_NORMALISATION,),
    )


LAYOUTS = (
    Layout(
        "paper's demo",  # github.com/chenlicodebank/Dynamic-Confidence-in-Spiking-Neural-Networks: our own names
        mark=r"activation\d\.scale$",
        drop=(
            (r"activation2\.scale", "quantises the logits, which no spiking network does, nor the paper's read-out"),
        ),
    ),
    Layout(
        "torchvision",  # our names too, but for the biases of vgg16_bn
        mark=r"^(fc|classifier\.6)\.weight$",
        fold=(_BIAS_BEFORE_NORMALISATION,),
    ),
    Layout(
        "akamaster",  # github.com/akamaster/pytorch_resnet_cifar10, and what is built like kuangliu/pytorch-cifar
        mark=r"^linear\.",
        rename=((r"^linear\.", "fc."), (r"\.shortcut\.", ".downsample.")),
    ),
    _qcfs("old QCFS", "up", "relu"),  # github.com/putshua/SNN_conversion_QCFS; also SRP's and COS's networks
    _qcfs("new QCFS", "thresh", "act"),  # github.com/putshua/ANN_SNN_QCFS
)
