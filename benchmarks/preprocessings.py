"""How images are prepared for the networks of the studies."""

from __future__ import annotations

from ..runtime.manifest import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR = Preprocessing(color="RGB", height=32, width=32, mean=MEAN, std=STD)
IMAGENET = Preprocessing(color="RGB", height=224, width=224, mean=MEAN, std=STD, resize_shorter_side=256)
