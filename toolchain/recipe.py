"""Training recipes: everything that decides a training's result, beside the data and the starting weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..runtime.errors import DynamicConfidenceError
from .augment import AUGMENTATIONS

SCHEDULES = ("cosine", "exponential")
FINAL_LR = 0.01  # share of the learning rate that the exponential schedule ends with
LARGE_SET = 10_000
"""Images from which the fast recipe takes batches of 128 instead of 16."""


@dataclass(frozen=True)
class TrainingOptions:
    """How to train, by stochastic gradient descent on the cross-entropy."""

    epochs: int = 20
    batch: int = 16
    lr: float = 0.05
    weight_decay: float = 5e-4
    momentum: float = 0.9
    schedule: str = "cosine"
    augment: str = "shift"
    seed: int = 0
    amp: bool = False
    """Convolutions and matrix products in bfloat16; weights, quantisers and the loss in float32."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 2:
            raise DynamicConfidenceError(
                f"epochs {self.epochs}, batch {self.batch}: expected at least 1 epoch, 2 images."
            )
        if not (0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf and 0 <= self.momentum < 1):
            raise DynamicConfidenceError(
                f"lr {self.lr:g}, weight decay {self.weight_decay:g}, momentum {self.momentum:g}: expected lr > 0, "
                "weight decay >= 0 and 0 <= momentum < 1."
            )
        for what, value, known in (("schedule", self.schedule, SCHEDULES), ("augment", self.augment, AUGMENTATIONS)):
            if value not in known:
                raise DynamicConfidenceError(f"{what} '{value}' is unknown, known: {', '.join(known)}.")


def _fast(images: int, fine_tuning: bool) -> TrainingOptions:
    if images >= LARGE_SET:
        return TrainingOptions(batch=128, lr=0.05 if fine_tuning else 0.2)
    return TrainingOptions(lr=0.01 if fine_tuning else 0.05)


def _paper(images: int, fine_tuning: bool) -> TrainingOptions:
    """Dynamic Confidence, section 6.1; the augmentation is that of its published code."""
    return TrainingOptions(
        epochs=60, batch=32, lr=0.01, weight_decay=2.5e-5, schedule="exponential", augment="crop-flip"
    )


RECIPES = {"fast": _fast, "paper": _paper}


def recipe(name: str, images: int, fine_tuning: bool, **changes: object) -> TrainingOptions:
    """Return the recipe `name` for so many training images; `changes` that are not None take precedence.

    Raises: DynamicConfidenceError for an unknown name or values outside their limits.
    """
    if name not in RECIPES:
        raise DynamicConfidenceError(f"recipe '{name}' is unknown, known: {', '.join(RECIPES)}.")
    changes = {key: value for key, value in changes.items() if value is not None}
    return replace(RECIPES[name](images, fine_tuning), **changes)


def learning_rate(options: TrainingOptions, done: float) -> float:
    """Return the learning rate when the share `done` (0..1) of the training is over."""
    if options.schedule == "cosine":
        return options.lr * 0.5 * (1.0 + math.cos(math.pi * done))
    return options.lr * FINAL_LR**done
