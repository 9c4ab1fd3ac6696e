"""Attention maps of one layer of a stock model, without keeping those of the other layers.

Only the eager implementation returns maps, so the model runs eagerly during the call, and stops
after the wanted layer. Maps of [B, heads, T, T] are large: ask for few rows at a time.

Dimension letters: B rows, T places of the sequence.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _Seen(BaseException):
    """Ends a forward pass once the maps are computed."""

    def __init__(self, maps: Tensor) -> None:
        self.maps = maps


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """Return the self-attention modules in the order of their layers; empty if none is found."""
    return [module for name, module in model.named_modules() if name.endswith("self_attn")]


@torch.no_grad()
def attention_maps(model: Any, layer: nn.Module, run: Callable[[], object]) -> Tensor:
    """Return the attention maps of one of `attention_layers`, [B, heads, T, T].

    `run` calls the model; `model` is the part of it that contains the layer.
    """

    def stop(_module: nn.Module, _inputs: object, output: tuple[Any, ...]) -> None:
        raise _Seen(output[1])

    try:
        with layer.register_forward_hook(stop), _eager_attention(model):
            run()
    except _Seen as seen:
        return seen.maps
    raise AssertionError("the layer takes part in the forward pass")


@contextmanager
def _eager_attention(model: Any) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
