"""Weights that DeepSpeed has split over the ranks (ZeRO-3), made whole for a computation."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from autoselect.config.extras import extra


@contextmanager
def gathered(parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Make the sharded ones among `parameters` whole on every rank, for reading (a collective)."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    with extra("training"):
        import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield
