"""Sums over micro-batches and ranks that wait for the device once."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def total(values: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors of a device, 0-d, in float64 on that device."""
    return torch.stack(list(values)).double().sum()


def sum_over_ranks(values: Sequence[float | Tensor], device: torch.device) -> list[float]:
    """Return the sums of numbers and of float64 tensors of the device, 0-d (a collective)."""
    numbers = [value for value in values if not isinstance(value, Tensor)]
    known = iter(torch.tensor(numbers, dtype=torch.float64).to(device))
    sums = torch.stack([v if isinstance(v, Tensor) else next(known) for v in values])
    dist.all_reduce(sums)
    return list(map(float, sums.tolist()))
