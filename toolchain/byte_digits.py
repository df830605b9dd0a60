"""Weights as a few int8 digits each: what processors multiply four times as fast as float32, and no less exact."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..runtime.manifest import FLOAT32_BITS
from .snn import Synapse

BASE = 256
EXACT = 2.0**FLOAT32_BITS
"""Integers below this are float32 numbers."""


class Digits(NamedTuple):
    """weight = unit * (d_0 + 256 d_1 + 256^2 d_2 + …), to the bit."""

    unit: np.ndarray
    """float64 `[out]`"""
    values: tuple[np.ndarray, ...]
    """int8 `[out, in / groups, kernel y, kernel x]`, d_0 first."""


def byte_digits(synapse: Synapse) -> Digits:
    """Write the snapped weights of a synapse in digits from -128 to 127; those of int8 are one each.

    Snapped weights are dyadic: the unit of an output channel is its finest bit.
    """
    unit = _finest_bit(synapse.weight) if synapse.unit is None else synapse.unit
    whole = synapse.in_units(unit)
    assert np.abs(whole).max(initial=0.0) < 2.0**53, "weights that are not snapped"
    rest, values = whole.astype(np.int64), []
    while rest.any() or not values:
        digit = (rest + BASE // 2) % BASE - BASE // 2
        values.append(digit.astype(np.int8))
        rest = (rest - digit) // BASE
    return Digits(unit, tuple(values))


def are_exact(digits: Digits, largest: int, bias: np.ndarray | None) -> bool:
    """Whether float32 holds the sum of each digit's products, and that of the lowest together with the bias.

    Then it holds their total too, added from the highest digit on, if weights and bias are those of `snap`: what is
    there down to digit j is a multiple of 256^j units. It differs from the current by the sums of the lower digits, so
    it is below 2^24 of these as the current, by the head-room of its grid, is of units.
    `largest`: what the source can emit, from 0 on. `bias`: `[out, 1, 1]`.
    """
    peaks = [largest * _peak(digit) for digit in digits.values]
    if any((peak >= EXACT).any() for peak in peaks):
        return False
    if bias is None:
        return True
    added = bias.reshape(-1)
    finest = np.minimum(_finest_bit(added), digits.unit)
    return bool((peaks[0] * digits.unit + np.abs(added) < EXACT * finest).all())


def _peak(digit: np.ndarray) -> np.ndarray:
    """`[out]`: the largest sum of some of an output channel's weights, of either sign."""
    flat = digit.reshape(len(digit), -1).astype(np.int64)
    return np.maximum(flat.clip(min=0).sum(axis=1), -flat.clip(max=0).sum(axis=1))


def _finest_bit(values: np.ndarray) -> np.ndarray:
    """`[out]`: the largest power of two that divides all numbers of a row; 1 where all are zero."""
    fraction, exponent = np.frexp(values.reshape(len(values), -1))
    integer = (fraction * 2.0**53).astype(np.int64)
    lowest = np.frexp((integer & -integer).astype(np.float64))[1] - 1 + exponent - 53
    some = integer != 0
    finest = lowest.min(axis=1, initial=np.iinfo(np.int32).max, where=some)
    return np.exp2(np.where(some.any(axis=1), finest, 0).astype(np.float64))
