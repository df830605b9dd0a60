"""Several processes that train one network, each on its part of every batch, as torchrun starts them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..runtime.errors import DynamicConfidenceError


@dataclass(frozen=True)
class Workers:
    """The processes of one training. Alone by default: then nothing is communicated."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    """Number of this process on its machine, and of its GPU."""

    @property
    def first(self) -> bool:
        """Whether this process reports, evaluates and writes."""
        return self.rank == 0

    def part(self, rows: Tensor) -> Tensor:
        """Return this process's part of the rows `[n]` of a batch."""
        return rows.tensor_split(self.count)[self.rank]

    def total(self, value: float) -> float:
        """Add a number up over all processes."""
        if self.count == 1:
            return value
        place = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        summed = torch.tensor(value, dtype=torch.float64, device=place)
        torch.distributed.all_reduce(summed)
        return float(summed)

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.total(0.0)

    def averaging(self, network: nn.Module) -> nn.Module:
        """Return the network as a module whose backward pass averages the gradients over the processes."""
        if self.count == 1:
            return network
        return nn.parallel.DistributedDataParallel(network)


@contextmanager
def workers(device: torch.device) -> Iterator[Workers]:
    """Join the processes that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK), or be alone where it did not.

    Raises: DynamicConfidenceError for a process without a GPU of its own.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Workers()
        return
    one = Workers(int(os.environ["RANK"]), count, int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda":
        if one.local_rank >= torch.cuda.device_count():
            raise DynamicConfidenceError(
                f"process {one.local_rank} of this machine has no GPU of its own ({torch.cuda.device_count()} found): "
                f"torchrun --nproc-per-node {torch.cuda.device_count()}."
            )
        torch.cuda.set_device(one.local_rank)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield one
        one.wait()
    finally:
        # DistributedDataParallel lies in reference cycles and holds the process group; what is left of it when Python
        # ends would abort the process.
        gc.collect()
        torch.distributed.destroy_process_group()
