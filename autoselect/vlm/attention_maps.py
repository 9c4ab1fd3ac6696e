"""Attention maps of one layer of a stock model, without keeping those of all others.

Only the eager implementation gives maps, so the model runs eagerly meanwhile; layers behind the
wanted one are not computed. Maps of [B, heads, T, T] are large: ask for few rows at a time.

Dimension letters: B rows, T places of the sequence.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _Seen(BaseException):
    """Ends a forward pass once the maps are there."""

    def __init__(self, maps: Tensor) -> None:
        self.maps = maps


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """The self-attention modules in the order of their layers; empty where they are not found."""
    return [module for name, module in model.named_modules() if name.endswith("self_attn")]


@torch.no_grad()
def attention_maps(model: Any, layer: nn.Module, run: Callable[[], object]) -> Tensor:
    """The maps of one layer, [B, heads, T, T].

    Args:
        model: the part that `layer` belongs to, with transformers' `set_attn_implementation`.
        layer: of `attention_layers`.
        run: calls the model.
    """

    def stop(_module: nn.Module, _inputs: object, output: tuple[Any, ...]) -> None:
        raise _Seen(output[1])

    handle = layer.register_forward_hook(stop)
    try:
        with _eager_attention(model):
            run()
    except _Seen as seen:
        return seen.maps
    finally:
        handle.remove()
    raise AssertionError("the layer takes part in the forward pass")


@contextmanager
def _eager_attention(model: Any) -> Iterator[None]:
    """The former implementation is put back."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
