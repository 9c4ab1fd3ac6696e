"""Weights that accelerate keeps elsewhere between the calls of a module (`device_map`, offloading).

A module's own weights come when it is called. Encoders are methods of a module that is not called,
and some of them read its weights (the newline token of LLaVA-NeXT).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

HOOK = "_hf_hook"


def is_offloaded(module: Any) -> bool:
    """Return True if accelerate moves weights or inputs of a module when it is called."""
    return getattr(module, HOOK, None) is not None


def device_of_inputs(weight: torch.Tensor) -> torch.device:
    """Return where the inputs of a weight's module may be; those of an offloaded one are moved."""
    return torch.device("cpu") if weight.is_meta else weight.device


@contextmanager
def weights_at_hand(module: Any) -> Iterator[None]:
    """Have a module's own weights on its device inside the block, as in a call of it."""
    hook = getattr(module, HOOK, None)
    if hook is None:
        yield
        return
    hook.pre_forward(module)
    try:
        yield
    finally:
        hook.post_forward(module, None)
