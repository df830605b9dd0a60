"""Neurons against an independent numpy bracket form, with exact ties; where QFFS settles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_confidence.models.neurons import IFState, SignedIFState, if_step, signed_if_step

# Multiples of 1/16 make sums exact, so that potentials land on 0 and on the threshold itself.
dyadic = st.integers(-64, 64).map(lambda n: n / 16)
anything = st.floats(-4.0, 4.0, allow_nan=False, width=64)
current = st.one_of(dyadic, anything)
trains = st.lists(st.tuples(current, current, current), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(trains)
def test_if_step_equals_the_brackets(train: list[tuple[float, ...]]):
    v = np.full(3, 0.5)
    state = IFState(torch.tensor(v))
    for row in train:
        p = v + np.array(row)
        z = (p >= 1).astype(float)
        v = p - z
        spikes, state = if_step(torch.tensor(row, dtype=torch.float64), state)
        np.testing.assert_array_equal(spikes.numpy(), z)
        np.testing.assert_array_equal(state.v.numpy(), v)


@settings(max_examples=200, deadline=None)
@given(trains, st.sampled_from([1, 3, 7, 15]))
def test_signed_if_step_equals_the_brackets_and_keeps_its_cap(train: list[tuple[float, ...]], levels: int):
    v, n = np.full(3, 0.5), np.zeros(3)
    state = SignedIFState(torch.tensor(v), torch.tensor(n))
    for row in train:
        p = v + np.array(row)
        z = ((p >= 1) & (n < levels)).astype(float) - ((p < 0) & (n > 0)).astype(float)
        v, n = p - z, n + z
        spikes, state = signed_if_step(torch.tensor(row, dtype=torch.float64), state, levels)
        np.testing.assert_array_equal(spikes.numpy(), z)
        np.testing.assert_array_equal(state.v.numpy(), v)
        np.testing.assert_array_equal(state.n.numpy(), n)
        assert ((state.n >= 0) & (state.n <= levels)).all()


@pytest.mark.parametrize(
    ("p", "spike"), [(1.0, 1.0), (np.nextafter(1.0, 0.0), 0.0), (0.0, 0.0), (3.5, 1.0), (-2.0, 0.0)]
)
def test_the_threshold_itself_fires(p: float, spike: float):
    spikes, _ = if_step(torch.tensor([p - 0.5], dtype=torch.float64), IFState(torch.tensor([0.5], dtype=torch.float64)))
    assert spikes.item() == spike


@settings(max_examples=200, deadline=None)
@given(trains, st.sampled_from([1, 3, 7]))
def test_once_settled_the_net_spikes_are_the_quantised_total(train: list[tuple[float, ...]], levels: int):
    state = SignedIFState(torch.full((3,), 0.5, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    for row in train:
        _, state = signed_if_step(torch.tensor(row, dtype=torch.float64), state, levels)
    silence = torch.zeros(3, dtype=torch.float64)
    for _ in range(levels):  # a settled input leaves at most `levels` spikes to add or to take back
        _, state = signed_if_step(silence, state, levels)
    spikes, _ = signed_if_step(silence, state, levels)
    assert not spikes.any()
    # What the neuron holds is 1/2 plus all it received, exactly as the loop added it.
    received = state.v.numpy() + state.n.numpy()
    np.testing.assert_array_equal(state.n.numpy(), np.clip(np.floor(received), 0, levels))
    total = np.array(train).sum(axis=0)
    np.testing.assert_allclose(received, total + 0.5, atol=1e-9)
    off_tie = np.abs(total + 0.5 - np.rint(total + 0.5)) > 1e-9
    np.testing.assert_array_equal(state.n.numpy()[off_tie], np.clip(np.floor(total + 0.5), 0, levels)[off_tie])


@settings(max_examples=100, deadline=None)
@given(st.lists(dyadic, min_size=1, max_size=12), st.sampled_from([1, 3, 7]))
def test_exact_ties_round_up(train: list[float], levels: int):
    state = SignedIFState(torch.tensor([0.5], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    for value in [*train, *[0.0] * levels]:
        _, state = signed_if_step(torch.tensor([value], dtype=torch.float64), state, levels)
    assert state.n.item() == np.clip(np.floor(sum(train) + 0.5), 0, levels)
