"""Collectives that exchange values between ranks; a single process gets its own value back."""

from typing import Any

import torch
import torch.distributed as dist


def broadcast_object(value: Any) -> Any:
    """Return the `value` of rank 0 on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Return the `value` of every rank, by rank, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def any_true(flag: bool, device: torch.device) -> bool:
    """Return True if `flag` is true on at least one rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return flag
    value = torch.tensor([float(flag)], device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())
