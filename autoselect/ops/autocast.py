"""Arithmetic in the dtype of its operands, whatever `torch.autocast` says."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which operators on this kind of device keep the dtypes of their operands.

    Choices among tokens compare numbers that bfloat16 would make equal.
    """
    if device.type != "meta" and torch.is_autocast_enabled(device.type):  # it knows no meta device
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
