"""Residual networks in CIFAR and ImageNet form, with average pooling and one activation layer per quantiser."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Callable[[], nn.Module]


class PadShortcut(nn.Module):
    """Option-A shortcut: keep every `stride`-th pixel and pad the missing channels with zeros on both sides."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        before = (self.out_channels - self.in_channels) // 2
        after = self.out_channels - self.in_channels - before
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, after))


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)


def _downsample(shortcut: str, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    if shortcut == "pad":
        return PadShortcut(in_channels, out_channels, stride)
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """conv-bn-act, conv-bn, add the shortcut, act."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, activation: Activation, shortcut: str) -> None:
        super().__init__()
        self.conv1, self.bn1, self.activation1 = (
            _conv(in_channels, width, 3, stride),
            nn.BatchNorm2d(width),
            activation(),
        )
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = _downsample(shortcut, in_channels, width, stride)
        self.activation2 = activation()

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.activation2(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride) and 1x1 convolutions around a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, activation: Activation, shortcut: str) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1, self.bn1, self.activation1 = _conv(in_channels, width, 1), nn.BatchNorm2d(width), activation()
        self.conv2, self.bn2, self.activation2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width), activation()
        self.conv3, self.bn3 = _conv(width, out_channels, 1), nn.BatchNorm2d(out_channels)
        self.downsample = _downsample(shortcut, in_channels, out_channels, stride)
        self.activation3 = activation()

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation1(self.bn1(self.conv1(x)))
        out = self.activation2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.activation3(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Residual network on normalised images `[batch, channel, height, width]` -> logits `[batch, class]`.

    `form` is "cifar" (3x3 stem) or "imagenet" (7x7 stem of stride 2 and an average pooling of stride 2); `width` is
    the number of channels of the first stage, doubled from stage to stage.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        *,
        activation: Activation,
        form: str,
        width: int,
        classes: int,
        in_channels: int,
        shortcut: str,
    ) -> None:
        super().__init__()
        if form == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
        else:
            self.conv1 = _conv(in_channels, width, 3)
        self.bn1, self.activation1 = nn.BatchNorm2d(width), activation()
        self.pool = nn.AvgPool2d(3, 2, 1) if form == "imagenet" else nn.Identity()
        channels = width
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels, width * 2**stage, stride, activation, shortcut))
                channels = width * 2**stage * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.stages = len(depths)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.activation1(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))
