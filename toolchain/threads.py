"""How many threads torch should use: small networks lose more by waiting for each other than they gain."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..models.checkpoint import Checkpoint

WORTH_IT = 5e8
"""Operations per call below which one thread was faster, measured on two cores (ten times when they were shared)."""


def use_threads(threads: int | None, operations: float) -> None:
    """Set torch's CPU threads: as asked for, else one where a call has few operations, else torch's own choice."""
    if threads is not None:
        torch.set_num_threads(threads)
    elif operations < WORTH_IT:
        torch.set_num_threads(1)


@torch.no_grad()
def operations_per_batch(checkpoint: Checkpoint, batch: int) -> float:
    """Floating-point operations of one forward pass of `batch` images."""
    network = checkpoint.network()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *checkpoint.preprocessing.shape))
    return float(batch * counter.get_total_flops())
