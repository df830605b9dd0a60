"""Augmentation: what it may do to an image, and that a part of a batch is changed as in the whole batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.toolchain.augment import AUGMENTATIONS, drawn, shifted


def changed_by(augment: str, pixels: torch.Tensor) -> torch.Tensor:
    return shifted(pixels, drawn(augment, len(pixels), *pixels.shape[2:]))


def test_shift_moves_by_up_to_an_eighth_and_repeats_the_edge():
    torch.manual_seed(0)
    pixels = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).repeat(100, 2, 1, 1)
    changed = changed_by("shift", pixels)
    assert changed.shape == pixels.shape
    assert changed.dtype == torch.uint8
    padded = np.pad(pixels[0, 0].numpy(), 1, mode="edge")
    windows = {padded[y : y + 8, x : x + 8].tobytes() for y in range(3) for x in range(3)}
    assert {image.numpy().tobytes() for image in changed[:, 0]} == windows
    assert torch.equal(changed[:, 0], changed[:, 1])


def test_crop_flip_mirrors_about_half_and_none_changes_nothing():
    torch.manual_seed(0)
    pixels = torch.arange(8, dtype=torch.uint8).expand(200, 1, 8, 8).contiguous()
    mirrored = changed_by("crop-flip", pixels)[:, 0, 0, 0] > 3
    assert 70 < int(mirrored.sum()) < 130
    assert torch.equal(changed_by("none", pixels), pixels)
    with pytest.raises(DynamicConfidenceError, match="augmentation 'rotate' is unknown, known: none, shift, crop-flip"):
        changed_by("rotate", pixels)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_a_part_of_a_batch_is_changed_as_in_the_whole_batch(augment: str):
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (10, 3, 16, 9), dtype=torch.uint8)
    shift, rows = drawn(augment, 10, 16, 9), torch.tensor([7, 2, 3])
    assert torch.equal(shifted(pixels, shift)[rows], shifted(pixels[rows], shift.part(rows)))
