"""Several processes that train one student, each on its part of a batch: on two cores faster than two threads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """Return how many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return which of them this one is."""
    return dist.get_rank() if dist.is_initialized() else 0


def part(batch: Tensor) -> Tensor:
    """Return this process's rows of a batch."""
    return batch[rank() :: processes()]


def summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the sums of each tensor over the processes, flat; the tensors themselves where there is one process."""
    if processes() == 1:
        return list(tensors)
    flat = torch.cat([one.flatten() for one in tensors])
    dist.all_reduce(flat)
    return list(flat.split([one.numel() for one in tensors]))


def together() -> None:
    """Wait until every process is here."""
    if processes() > 1:
        dist.barrier()
