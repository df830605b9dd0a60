"""Weights in int8 digits: they add up to the bit, and float32 holds their sums where `are_exact` says so."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_confidence.toolchain.byte_digits import BASE, are_exact, byte_digits
from dynamic_confidence.toolchain.snn import Synapse

OUT, IN = 3, 5


def synapse(integers: list[int], exponent: int) -> Synapse:
    return Synapse("layer", np.array(integers).reshape(OUT, IN, 1, 1) * 2.0**exponent)


def integers(largest: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(-largest, largest), min_size=OUT * IN, max_size=OUT * IN)


@given(integers(2**24), st.integers(-30, 4))
def test_the_digits_add_up_to_the_weights(weights: list[int], exponent: int):
    one = synapse(weights, exponent)
    digits = byte_digits(one)
    for channel in range(OUT):
        unit = Fraction(digits.unit[channel])
        for found, weight in zip(
            np.stack(digits.values, -1)[channel].reshape(IN, -1), one.weight[channel], strict=True
        ):
            assert unit * sum(int(digit) * BASE**i for i, digit in enumerate(found)) == Fraction(float(weight[0, 0]))
    assert all(digit.dtype == np.int8 for digit in digits.values)
    assert digits.values[-1].any() or not any(weights)


@pytest.mark.parametrize(("largest", "digits"), [(0, 1), (127, 1), (128, 2), (-128, 1), (32639, 2), (32640, 3)])
def test_as_few_digits_as_the_largest_weight_takes(largest: int, digits: int):
    assert len(byte_digits(synapse([largest, 1] + [0] * 13, -9)).values) == digits


def test_the_unit_is_the_finest_bit_of_a_channel():
    np.testing.assert_array_equal(
        byte_digits(synapse([12, 8, 4, 0, 0, *[0] * 5, 3, *[0] * 4], -6)).unit * 64, [4, 64, 1]
    )


def test_weights_of_int8_keep_their_unit():
    unit = np.array([0.375, 0.5, 3.0])
    one = Synapse("layer", np.full((OUT, IN, 1, 1), 7) * unit.reshape(-1, 1, 1, 1), precision="int8", unit=unit)
    digits = byte_digits(one)
    np.testing.assert_array_equal(digits.unit, unit)
    assert len(digits.values) == 1
    assert np.all(digits.values[0] == 7)


@given(
    integers(2**17), st.lists(st.integers(-(2**24), 2**24), min_size=OUT, max_size=OUT), st.integers(1, 128), st.data()
)
def test_what_are_exact_adds_up_in_float32(weights: list[int], added: list[int], largest: int, data: st.DataObject):
    """In the order of the graph: the highest digit first, the lowest together with the bias."""
    one, bias = synapse(weights, -20), np.array(added).reshape(OUT, 1, 1) * 2.0**-21
    digits = byte_digits(one)
    if not are_exact(digits, largest, bias):
        return
    seen = np.array(data.draw(st.lists(st.integers(0, largest), min_size=IN, max_size=IN)))
    parts = [np.einsum("oixy,i->o", digit.astype(np.int64), seen).astype(np.float32) for digit in digits.values]
    unit = digits.unit.astype(np.float32)
    lowest = parts[0] * unit + bias.reshape(-1).astype(np.float32)
    total = np.zeros(OUT, np.float32)
    for index in range(len(parts) - 1, 0, -1):
        total += parts[index] * (unit * np.float32(BASE**index))
    exact = one.weight.reshape(OUT, IN) @ seen + bias.reshape(-1)
    assert np.abs(parts).max() < 2**24
    if np.abs(exact).max() < 2.0**3:  # the head-room of a grid of 2^-21
        np.testing.assert_array_equal((total + lowest).astype(np.float64), exact)


def test_what_float32_does_not_hold():
    many = Synapse("layer", np.full((1, 2**13, 4, 4), 127.0))
    assert are_exact(byte_digits(many), 1, None)
    assert not are_exact(byte_digits(many), 2, None)  # 127 * 2^18 is more than 2^24
    one = synapse([1] * 15, -20)
    assert are_exact(byte_digits(one), 1, np.full((OUT, 1, 1), 8.0))
    assert not are_exact(byte_digits(one), 1, np.full((OUT, 1, 1), 16.0))
    assert not are_exact(byte_digits(one), 1, np.full((OUT, 1, 1), 8.0 + 2.0**-22))  # finer than the weights
