"""Weights that DeepSpeed has split over the ranks (ZeRO-3), made whole for a computation."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from autoselect.config.extras import extra


def parameters_outside(model: torch.nn.Module, part: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters of a model that do not belong to a part of it."""
    inside = {id(parameter) for parameter in part.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in inside]


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
