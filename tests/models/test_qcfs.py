"""QCFS: forward and gradients against the formulas in float64 and the published composition; initialisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynamic_confidence.models.lsq import LSQ
from dynamic_confidence.models.qcfs import QCFS
from dynamic_confidence.models.quantiser import initialise_scales, positive_scales, quantisers, scales_are_fresh
from dynamic_confidence.runtime.errors import DynamicConfidenceError


def layer_with(levels: int, threshold: float) -> QCFS:
    return QCFS(levels, threshold).double()


def currents(levels: int, threshold: float) -> np.ndarray:
    """Random values over and beyond the quantiser's range, and every tie and edge, `[batch 2, features]`."""
    rng = np.random.default_rng(levels)
    special = np.arange(-2, 2 * levels + 3) * threshold / (2 * levels)
    values = np.concatenate([special, rng.uniform(-threshold, 2 * threshold, 65 + len(special) % 2)])
    return values[: len(values) // 2 * 2].reshape(2, -1)


@pytest.mark.parametrize("levels", [1, 2, 4, 5, 8, 16, 255])
@pytest.mark.parametrize("threshold", [0.5, 8.0, 0.0247])
def test_forward_and_gradients_equal_the_formulas(levels: int, threshold: float):
    layer = layer_with(levels, threshold)
    lam = float(layer.threshold.detach())  # as the float32 constructor rounded it
    values = currents(levels, lam)
    upstream = np.random.default_rng(1).normal(size=values.shape)
    x = torch.tensor(values, requires_grad=True)
    y = layer(x)
    y.backward(torch.tensor(upstream))

    ratio = values / lam
    level = np.floor(np.clip(ratio, 0, 1) * levels + 0.5)
    inside = (ratio > 0) & (ratio < 1)
    slope = np.where(inside, level / levels - ratio, np.where(ratio >= 1, 1.0, 0.0))
    assert x.grad is not None
    assert layer.threshold.grad is not None
    np.testing.assert_allclose(y.detach().numpy(), lam * level / levels, rtol=1e-15)
    np.testing.assert_array_equal(x.grad.numpy(), upstream * inside)
    np.testing.assert_allclose(layer.threshold.grad.numpy(), [(upstream * slope).sum()], rtol=1e-11)


def published(x: Tensor, threshold: Tensor, levels: int) -> Tensor:
    """The authors' newer code: divide, clip, floor with a straight-through gradient, multiply."""
    ratio = torch.clamp(x / threshold, 0, 1)
    scaled = ratio * levels + 0.5
    return (scaled + (scaled.floor() - scaled).detach()) / levels * threshold


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 255),
    st.floats(0.01, 100.0),
    st.lists(st.floats(-2.0, 3.0), min_size=1, max_size=20),
)
def test_any_input_gives_what_the_published_composition_gives(levels: int, lam: float, ratios: list[float]):
    # Away from the two clip edges, where a subgradient may be chosen, and from ties, where rounding decides.
    kept = [r for r in ratios if min(abs(r), abs(r - 1)) > 1e-9 and abs((r * levels) % 1 - 0.5) > 1e-6]
    x = torch.tensor([kept], dtype=torch.float64) * lam
    layer = layer_with(levels, lam)
    with torch.no_grad():
        layer.threshold.fill_(lam)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    threshold = torch.tensor([lam], dtype=torch.float64, requires_grad=True)
    y, expected = layer(ours), published(theirs, threshold, levels)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=0)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=0)
    torch.testing.assert_close(layer.threshold.grad, threshold.grad, rtol=1e-6, atol=1e-9 * lam)
    assert torch.equal((y / layer.step).round(), (y / layer.step).round().clamp(0, levels))


def test_a_tie_rounds_up():
    x = torch.tensor([[0.125, 0.375, 0.625, 0.875]], dtype=torch.float64)
    assert layer_with(4, 1.0)(x).tolist() == [[0.25, 0.5, 0.75, 1.0]]
    assert LSQ(2, 0.25).double()(x).tolist() == [[0.0, 0.5, 0.5, 0.75]], "LSQ rounds half to even"


def test_at_its_thresholds_two_kinds_of_quantiser_are_one():
    """With L = 2^b - 1 and λ = L s, LSQ and QCFS differ at ties only."""
    x = torch.randn(4, 100, dtype=torch.float64)
    lsq, qcfs = LSQ(2, 0.25).double(), QCFS(3, 0.75).double()
    torch.testing.assert_close(lsq(x), qcfs(x))
    assert lsq.largest() == qcfs.largest() == 0.75
    assert float(lsq.step.detach()) == float(qcfs.step.detach()) == 0.25


@pytest.mark.parametrize("levels", [0, 256, -4, "4", 4.0])
def test_levels_outside_the_range_are_refused(levels: int):
    with pytest.raises(DynamicConfidenceError, match=rf"levels {levels}: a QCFS activation takes 1 to 255 levels"):
        QCFS(levels)


def test_thresholds_are_initialised_layer_by_layer():
    network = nn.Sequential(nn.Identity(), QCFS(4), nn.Sequential(QCFS(8)))
    batch = torch.rand(8, 1, 4, 4) * 3
    assert scales_are_fresh(network)
    initialise_scales(network, batch)
    assert [name for name, _ in quantisers(network)] == ["1", "2.0"]
    first, second = (quantiser for _, quantiser in quantisers(network))
    assert float(first.learned.detach()) == pytest.approx(4 * 2 * float(batch.mean()) / np.sqrt(4))
    assert float(second.learned.detach()) == pytest.approx(8 * 2 * float(first(batch).detach().mean()) / np.sqrt(8))
    assert not scales_are_fresh(network)
    assert [quantiser.learned for _, quantiser in quantisers(network)] == list(network.parameters())


def test_a_layer_without_current_is_named():
    message = r"layer '0': the first batch gives the QCFS threshold 0, expected a positive number"
    with pytest.raises(DynamicConfidenceError, match=message):
        initialise_scales(nn.Sequential(QCFS(4)), torch.zeros(2, 1, 4, 4))


@pytest.mark.parametrize("threshold", [0.0, -0.1, float("nan"), float("inf")])
def test_a_threshold_that_is_not_positive_names_its_layer(threshold: float):
    network = nn.Sequential(QCFS(4), nn.Sequential(QCFS(4, threshold)))
    with pytest.raises(DynamicConfidenceError, match=r"layer '1\.0': the QCFS threshold is .*, expected a positive"):
        positive_scales(network)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_currents_are_quantised_in_single(dtype: torch.dtype):
    x = torch.tensor([[0.3, -1.0, 5.0]], dtype=dtype, requires_grad=True)
    layer = QCFS(4, 2.0)
    y = layer(x)
    y.sum().backward()
    assert y.dtype == torch.float32
    assert y.tolist() == [[0.5, 0.0, 2.0]]
    assert x.grad is not None
    assert (x.grad.dtype, x.grad.tolist()) == (dtype, [[1.0, 0.0, 0.0]])
