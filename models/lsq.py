"""LSQ: the learned-step-size quantiser of activations (Esser et al., ICLR 2020; Dynamic Confidence, eq. 9-14)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.errors import DynamicConfidenceError
from .quantiser import FRESH, Quantiser, dot


class _Quantise(torch.autograd.Function):
    """Forward s * round(clip(v/s, 0, Qp)); backward straight through, with LSQ's own gradient for the scale."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: Tensor, levels: int) -> Tensor:
        ratio = value / scale
        quantised = torch.clamp(ratio, 0, levels).round_().mul_(scale)
        ctx.save_for_backward(ratio, quantised, scale)
        ctx.levels = levels
        return quantised

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grad_outputs
        ratio, quantised, scale = ctx.saved_tensors
        passed = torch.ops.aten.hardtanh_backward(grad, ratio, 0, ctx.levels)
        # round(r) - r inside and Qp above, summed as clip(round(r)) everywhere less r inside: two dot products.
        scale_grad = dot(grad, quantised) / scale - dot(passed, ratio)
        # g keeps the scale's updates in proportion to the weights'. The LSQ paper counts features; the demo counts the
        # batch, which makes the step depend on the batch size. Features per sample it is.
        g = 1.0 / math.sqrt(ratio[0].numel() * ctx.levels)
        return passed, g * scale_grad, None


class LSQ(Quantiser):
    """Quantise an activation to `levels + 1` values with a learned step.

        y = s * round(clip(v / s, 0, Qp)),  Qp = 2^bits - 1 = levels

    Any shape `[batch, …]` in, the same shape out. `scale` has shape (1,). torch rounds half to even.
    Raises: DynamicConfidenceError for bits outside 1 … 8.
    Source: Dynamic Confidence, eq. 9 and 14; gradients eq. 10-12.
    """

    learned_name = "scale"

    def __init__(self, bits: int = 2, scale: float = FRESH) -> None:
        if not (isinstance(bits, int) and 1 <= bits <= 8):
            raise DynamicConfidenceError(f"bits {bits}: an LSQ quantiser takes 1 to 8 bits.")
        super().__init__(levels=2**bits - 1, span=1)
        self.scale = nn.Parameter(torch.tensor([float(scale)]))

    def forward(self, value: Tensor) -> Tensor:
        return _Quantise.apply(value, self.scale, self.levels)  # type: ignore[no-any-return]
