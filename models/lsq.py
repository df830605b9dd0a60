"""LSQ: the learned-step-size quantiser of activations (Esser et al., ICLR 2020; Dynamic Confidence, eq. 9-14)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.errors import DynamicConfidenceError


class _Quantise(torch.autograd.Function):
    """Forward s * round(clip(v/s, 0, Qp)); backward straight through, with LSQ's own gradient for the scale."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: Tensor, levels: int) -> Tensor:
        ctx.save_for_backward(value, scale)
        ctx.levels = levels
        return scale * torch.round(torch.clamp(value / scale, 0, levels))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grad_outputs
        value, scale = ctx.saved_tensors
        ratio = value / scale
        inside = (ratio > 0) & (ratio < ctx.levels)
        scale_term = torch.where(inside, torch.round(ratio) - ratio, (ratio >= ctx.levels) * float(ctx.levels))
        # g keeps the scale's updates in proportion to the weights'. The LSQ paper counts features; the demo counts the
        # batch, which makes the step depend on the batch size. Features per sample it is.
        g = 1.0 / math.sqrt(value[0].numel() * ctx.levels)
        return grad * inside, (g * (grad * scale_term).sum()).reshape(scale.shape), None


class LSQ(nn.Module):
    """Quantise an activation to `levels + 1` values with a learned step.

        y = s * round(clip(v / s, 0, Qp)),  Qp = 2^bits - 1 = levels

    Any shape `[batch, …]` in, the same shape out. `scale` has shape (1,). torch rounds half to even.
    Raises: DynamicConfidenceError when the scale is not positive.
    Source: Dynamic Confidence, eq. 9 and 14; gradients eq. 10-12.
    """

    def __init__(self, bits: int = 2, scale: float = 1.0) -> None:
        super().__init__()
        if not 1 <= bits <= 8:
            raise DynamicConfidenceError(f"bits {bits}: an LSQ quantiser takes 1 to 8 bits.")
        self.levels = 2**bits - 1
        self.scale = nn.Parameter(torch.tensor([float(scale)]))

    def forward(self, value: Tensor) -> Tensor:
        return _Quantise.apply(value, self.scale, self.levels)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


def positive_scales(model: nn.Module) -> None:
    """Raise a DynamicConfidenceError that names the first LSQ layer whose scale is not a positive number."""
    for name, module in model.named_modules():
        if isinstance(module, LSQ):
            scale = float(module.scale.detach())
            if not (scale > 0 and math.isfinite(scale)):
                raise DynamicConfidenceError(
                    f"layer '{name}': the LSQ scale is {scale:g}, expected a positive number. "
                    "Train with a smaller learning rate (`dc-train --lr`)."
                )


@torch.no_grad()
def initialise_scales(model: nn.Module, batch: Tensor) -> None:
    """Set every LSQ scale from one batch `[batch, channel, height, width]`: s = 2 mean|v| / sqrt(Qp) (LSQ paper, 2.1).

    Layer by layer in one forward pass, so each layer sees the quantised output of the ones before it.
    """

    def set_scale(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(module, LSQ)  # noqa: S101 - hooks are registered on LSQ modules only
        module.scale.fill_(2.0 * float(arguments[0].abs().mean()) / math.sqrt(module.levels))

    hooks = [m.register_forward_pre_hook(set_scale) for m in model.modules() if isinstance(m, LSQ)]
    try:
        model(batch)
    finally:
        for hook in hooks:
            hook.remove()
