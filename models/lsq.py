"""LSQ: the learned-step-size quantiser of activations (Esser et al., ICLR 2020; Dynamic Confidence, eq. 9-14)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..runtime.errors import DynamicConfidenceError

FRESH_SCALE = 1.0


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

    def __init__(self, bits: int = 2, scale: float = FRESH_SCALE) -> None:
        super().__init__()
        if not (isinstance(bits, int) and 1 <= bits <= 8):
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


def scales_are_fresh(model: nn.Module) -> bool:
    """Say whether no LSQ scale was ever set: neither initialised from data nor trained nor loaded."""
    return all(float(module.scale.detach()) == FRESH_SCALE for module in model.modules() if isinstance(module, LSQ))


@torch.no_grad()
def initialise_scales(model: nn.Module, batch: Tensor) -> None:
    """Set every LSQ scale from one batch `[batch, channel, height, width]`.

        s = 2 mean|v| / sqrt(Qp)

    Layer by layer in one forward pass, so each layer sees the quantised output of the ones before it.
    Raises: DynamicConfidenceError when a layer gets nothing but zeros.
    Source: Esser et al., "Learned Step Size Quantization", section 2.1.
    """
    hooks = [_initialise_on_input(name, module) for name, module in model.named_modules() if isinstance(module, LSQ)]
    try:
        model(batch)
    finally:
        for hook in hooks:
            hook.remove()


def _initialise_on_input(name: str, layer: LSQ) -> RemovableHandle:
    def set_scale(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        scale = 2.0 * float(arguments[0].abs().mean()) / math.sqrt(layer.levels)
        if not (scale > 0 and math.isfinite(scale)):
            raise DynamicConfidenceError(
                f"layer '{name}': the first batch gives the LSQ scale {scale:g}, expected a positive number. "
                "Check that the images are not all one colour and that the weights are finite."
            )
        layer.scale.fill_(scale)

    return layer.register_forward_pre_hook(set_scale)
