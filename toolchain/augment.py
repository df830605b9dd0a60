"""Random changes of training images, drawn apart from being applied: every process can draw for the whole batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..runtime.errors import DynamicConfidenceError

AUGMENTATIONS = ("none", "shift", "crop-flip")


class Shift(NamedTuple):
    """How far each image moves, in pixels, and whether it is mirrored first: all `[batch, 1]`."""

    down: Tensor
    right: Tensor
    mirrored: Tensor

    def part(self, rows: Tensor) -> Shift:
        """Return the draws of these images of the batch."""
        return Shift(*(values[rows] for values in self))


def drawn(augment: str, count: int, height: int, width: int) -> Shift:
    """Draw the changes of `count` images from torch's random state.

    "shift" moves each image by up to an eighth of its size and repeats its edge; "crop-flip" also mirrors every second
    one; "none" leaves the images as they are.
    """
    if augment not in AUGMENTATIONS:
        raise DynamicConfidenceError(f"augmentation '{augment}' is unknown, known: {', '.join(AUGMENTATIONS)}.")
    none = torch.zeros(count, 1, dtype=torch.int64)
    if augment == "none":
        return Shift(none, none, none.bool())
    down, right = _offsets(count, height), _offsets(count, width)
    return Shift(down, right, torch.rand(count, 1) < 0.5 if augment == "crop-flip" else none.bool())


def shifted(pixels: Tensor, shift: Shift) -> Tensor:
    """Return a changed copy of uint8 pixels `[batch, channel, y, x]`."""
    count, _, height, width = pixels.shape
    # Clamped indices repeat the edge, which costs no padded copy.
    rows = (torch.arange(height) + shift.down).clamp(0, height - 1)
    columns = (torch.arange(width) + shift.right).clamp(0, width - 1)
    columns = torch.where(shift.mirrored, columns.flip(1), columns)
    images = torch.arange(count)[:, None, None]
    return pixels[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _offsets(count: int, size: int) -> Tensor:
    reach = max(1, size // 8)
    return torch.randint(-reach, reach + 1, (count, 1))
