"""VGG-16 with batch normalisation and average pooling, in CIFAR and ImageNet form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (2, 2, 3, 3, 3)
_MULTIPLES = (1, 2, 4, 8, 8)


class VGG16(nn.Module):
    """VGG-16 on normalised images `[batch, channel, height, width]` -> logits `[batch, class]`.

    `form` is "cifar" (32x32 images) or "imagenet" (224x224 images); `width` is the number of channels of the first
    stage, `hidden` the size of the two hidden linear layers (0: a single linear layer).
    """

    def __init__(
        self, *, activation: Callable[[], nn.Module], form: str, width: int, hidden: int, classes: int, in_channels: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for count, multiple in zip(_CONVOLUTIONS, _MULTIPLES, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width * multiple, 3, padding=1, bias=False)]
                channels = width * multiple
                layers += [nn.BatchNorm2d(channels), activation()]
            layers.append(nn.AvgPool2d(2))
        self.features = nn.Sequential(*layers)
        features = channels * 49 if form == "imagenet" else channels
        if hidden:
            self.classifier = nn.Sequential(
                nn.Linear(features, hidden),
                activation(),
                nn.Dropout(),
                nn.Linear(hidden, hidden),
                activation(),
                nn.Dropout(),
                nn.Linear(hidden, classes),
            )
        else:
            self.classifier = nn.Sequential(nn.Linear(features, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))
