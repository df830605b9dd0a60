"""Small restatements of networks that others train, under their names: what `dc-import` must reproduce."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


def _threshold_layer(name: str) -> Callable[[], nn.Module]:
    """Bu et al.'s activation with L = 4, by its formula; λ is the parameter `name`."""

    class ClipFloorShift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_parameter(name, nn.Parameter(torch.tensor([8.0])))

        def forward(self, x: Tensor) -> Tensor:
            threshold = getattr(self, name)
            return threshold * torch.clamp(torch.floor(x * 4 / threshold + 0.5) / 4, 0, 1)

    return ClipFloorShift


class QcfsBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, act: Callable[[], nn.Module], last: str) -> None:
        super().__init__()
        self.residual_function = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            act(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.last = last
        self.add_module(last, act())

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.last)(self.residual_function(x) + self.shortcut(x))


class QcfsResNet(nn.Module):
    """The QCFS authors' residual networks, old (`up`, `relu`) and new (`thresh`, `act`)."""

    def __init__(self, depths: tuple[int, ...], new: bool, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        act, last = _threshold_layer("thresh" if new else "up"), "act" if new else "relu"
        self.conv1 = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), act())
        channels = width
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(QcfsBlock(channels, width * 2**stage, stride, act, last))
                channels = width * 2**stage
            self.add_module(f"conv{stage + 2}_x", nn.Sequential(*blocks))
        self.stages = len(depths)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in range(self.stages):
            x = self.get_submodule(f"conv{stage + 2}_x")(x)
        return self.fc(x.mean((2, 3)))


class QcfsVgg(nn.Module):
    """The QCFS authors' VGG-16: biases before the normalisation, a dropout after every activation."""

    def __init__(self, new: bool, width: int = 2, classes: int = 3, hidden: int = 8, side: int = 1) -> None:
        super().__init__()
        act, channels = _threshold_layer("thresh" if new else "up"), 3
        for stage, (count, multiple) in enumerate(((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))):
            layers: list[nn.Module] = []
            for _ in range(count):
                layers += [nn.Conv2d(channels, width * multiple, 3, padding=1), nn.BatchNorm2d(width * multiple)]
                layers += [act(), nn.Dropout(0.1)]
                channels = width * multiple
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers, nn.AvgPool2d(2)))
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * side * side, hidden),
            act(),
            nn.Dropout(0.1),
            nn.Linear(hidden, hidden),
            act(),
            nn.Dropout(0.1),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        for stage in range(5):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.classifier(x)


class TorchvisionVgg(nn.Module):
    """torchvision's vgg16_bn with fewer channels, and average instead of maximum pooling."""

    def __init__(self, width: int = 2, classes: int = 3, hidden: int = 8) -> None:
        super().__init__()
        layers, channels = [], 3
        for count, multiple in ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8)):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width * multiple, 3, padding=1), nn.BatchNorm2d(width * multiple)]
                layers.append(nn.ReLU())
                channels = width * multiple
            layers.append(nn.AvgPool2d(2))
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(channels * 49, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class AkamasterBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, weights: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.changes, self.width = stride != 1 or channels != width, width
        self.shortcut = nn.Sequential()
        if self.changes and weights:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.pads = self.changes and not weights

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.pads:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.width // 4, self.width // 4))
        return functional.relu(out + self.shortcut(x))


class AkamasterResNet(nn.Module):
    """akamaster's ResNet for CIFAR-10; with weights in the shortcuts (option B) also what kuangliu's is named like."""

    def __init__(self, blocks: int, weights: bool = False, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        channels = width
        for stage in range(3):
            layers = []
            for index in range(blocks):
                layers.append(AkamasterBlock(channels, width << stage, 2 if stage and not index else 1, weights))
                channels = width << stage
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        for stage in range(3):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.linear(x.mean((2, 3)))


def trained_looking(network: nn.Module, side: int = 32) -> nn.Module:
    """Random numbers everywhere, and batch statistics of random images, so that signals live; in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith((".up", ".thresh")):
            tensor.uniform_(1.0, 2.0, generator=generator)
        elif name.endswith("bias"):
            tensor.uniform_(-0.2, 0.2, generator=generator)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.7, 1.5, generator=generator)
        elif tensor.ndim == 2:
            tensor.normal_(0.0, 2.0 * tensor.shape[1] ** -0.5, generator=generator)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(8, 3, side, side, generator=generator))
    return network.eval()
