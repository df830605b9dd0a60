"""LSQ: forward and gradients against the written formulas in float64, initialisation, positive scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dynamic_confidence.models.lsq import LSQ
from dynamic_confidence.models.quantiser import initialise_scales, positive_scales, scales_are_fresh
from dynamic_confidence.runtime.errors import DynamicConfidenceError


def layer_with(bits: int, scale: float) -> LSQ:
    return LSQ(bits, scale).double()


def currents(bits: int, scale: float) -> np.ndarray:
    """Random values over and beyond the quantiser's range, and every tie and edge, `[batch 2, features]`."""
    rng = np.random.default_rng(bits)
    levels = 2**bits - 1
    special = np.arange(-2, 2 * levels + 3) * scale / 2
    values = np.concatenate([special, rng.uniform(-levels * scale, 2 * levels * scale, 65 + len(special) % 2)])
    return values[: len(values) // 2 * 2].reshape(2, -1)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("scale", [0.5, 0.0247, 2.338])
def test_forward_and_gradients_equal_the_formulas(bits: int, scale: float):
    levels = 2**bits - 1
    values = currents(bits, scale)
    upstream = np.random.default_rng(1).normal(size=values.shape)
    layer = layer_with(bits, scale)
    s = float(layer.scale.detach())  # as the float32 constructor rounded it
    v = torch.tensor(values, requires_grad=True)
    y = layer(v)
    y.backward(torch.tensor(upstream))

    ratio = values / s
    inside = (ratio > 0) & (ratio < levels)
    slope = np.where(inside, np.rint(ratio) - ratio, np.where(ratio >= levels, levels, 0.0))
    factor = 1.0 / np.sqrt(values.shape[1] * levels)
    assert v.grad is not None
    assert layer.scale.grad is not None
    np.testing.assert_array_equal(y.detach().numpy(), s * np.rint(np.clip(ratio, 0, levels)))
    np.testing.assert_array_equal(v.grad.numpy(), upstream * inside)
    np.testing.assert_allclose(layer.scale.grad.numpy(), [factor * (upstream * slope).sum()], rtol=1e-12)


def test_the_scale_gradient_counts_features_not_the_batch():
    def gradient(batch: int) -> float:
        layer = layer_with(2, 0.5)
        layer(torch.full((batch, 4, 3, 3), 0.6, dtype=torch.float64)).mean().backward()
        assert layer.scale.grad is not None
        return float(layer.scale.grad)

    assert gradient(1) == pytest.approx(gradient(32), rel=1e-12)
    # r = 1.2: round(r) - r = -0.2, times 1 / sqrt(36 features * 3 levels)
    assert gradient(1) == pytest.approx(-0.2 / np.sqrt(36 * 3), rel=1e-12)


def test_the_output_has_levels_plus_one_values():
    y = layer_with(2, 0.3)(torch.linspace(-1, 3, 1000, dtype=torch.float64)[None])
    assert len(torch.unique(y)) == 4


@pytest.mark.parametrize("bits", [0, 9, "2", 2.0])
def test_bits_outside_the_range_are_refused(bits: int):
    with pytest.raises(DynamicConfidenceError, match=rf"bits {bits}: an LSQ quantiser takes 1 to 8 bits"):
        LSQ(bits)


def test_scales_are_initialised_layer_by_layer():
    network = nn.Sequential(nn.Identity(), LSQ(2), LSQ(4))
    batch = torch.rand(8, 1, 4, 4) * 3
    assert scales_are_fresh(network)
    initialise_scales(network, batch)
    first, second = network[1], network[2]
    assert isinstance(first, LSQ)
    assert isinstance(second, LSQ)
    assert float(first.scale.detach()) == pytest.approx(2 * float(batch.mean()) / np.sqrt(3))
    assert float(second.scale.detach()) == pytest.approx(2 * float(first(batch).detach().mean()) / np.sqrt(15))
    assert not scales_are_fresh(network)
    before = first.scale.detach().clone()
    network(batch * 2)  # the hooks are gone
    assert torch.equal(first.scale, before)


def test_a_layer_without_current_is_named():
    network = nn.Sequential(LSQ(2), LSQ(2))
    with pytest.raises(
        DynamicConfidenceError, match=r"layer '0': the first batch gives the LSQ scale 0, expected a pos"
    ):
        initialise_scales(network, torch.zeros(2, 1, 4, 4))


@pytest.mark.parametrize("scale", [0.0, -0.1, float("nan"), float("inf")])
def test_a_scale_that_is_not_positive_names_its_layer(scale: float):
    network = nn.Sequential(LSQ(2), nn.Sequential(LSQ(2, scale)))
    with pytest.raises(DynamicConfidenceError, match=r"layer '1\.0': the LSQ scale is .*, expected a positive number"):
        positive_scales(network)
