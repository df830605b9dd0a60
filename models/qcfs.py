"""QCFS: quantised clip-floor-shift activations (Bu et al., "Optimal ANN-SNN conversion …", ICLR 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.errors import DynamicConfidenceError
from .quantiser import FRESH, Quantiser, dot


class _ClipFloorShift(torch.autograd.Function):
    """Forward λ floor(clip(x/λ, 0, 1) L + 1/2) / L; backward straight through the floor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, threshold: Tensor, levels: int) -> Tensor:
        ratio = value / threshold
        quantised = torch.clamp(ratio, 0, 1).mul_(levels).add_(0.5).floor_().mul_(threshold / levels)
        ctx.save_for_backward(ratio, quantised, threshold)
        return quantised

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grad_outputs
        ratio, quantised, threshold = ctx.saved_tensors
        passed = torch.ops.aten.hardtanh_backward(grad, ratio, 0, 1)
        # y / λ - r inside, 1 above, 0 below: y / λ everywhere less r inside, as two dot products.
        threshold_grad = dot(grad, quantised) / threshold - dot(passed, ratio)
        return passed, threshold_grad, None


class QCFS(Quantiser):
    """Quantise an activation to `levels + 1` values up to a learned threshold.

        y = λ clip(floor(x L / λ + 1/2) / L, 0, 1),  L = levels
        dy/dx = [0 < r < 1];  dy/dλ = y/λ - r [0 < r < 1],  r = x / λ

    Any shape `[batch, …]` in, the same shape out. `threshold` (λ) has shape (1,). A tie rounds up, as in the neuron.
    The gradients are those of the authors' newer code, which clips before the floor; the older one clips after it, so
    that its gradient passes for r in -1/(2L) … 1 + 1/(2L). λ's gradient is not rescaled, unlike that of LSQ's scale.
    Raises: DynamicConfidenceError for levels outside 1 … 255.
    Source: Bu et al., section 4.
    """

    learned_name = "threshold"

    def __init__(self, levels: int = 4, threshold: float = FRESH) -> None:
        if not (isinstance(levels, int) and 1 <= levels <= 255):
            raise DynamicConfidenceError(f"levels {levels}: a QCFS activation takes 1 to 255 levels.")
        super().__init__(levels, span=levels)
        self.threshold = nn.Parameter(torch.tensor([float(threshold)]))

    def forward(self, value: Tensor) -> Tensor:
        return _ClipFloorShift.apply(value, self.threshold, self.levels)  # type: ignore[no-any-return]
