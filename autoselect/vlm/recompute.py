"""Recomputation of the language model's activations in the backward pass, layer by layer.

Between forward and backward each layer keeps its input only. When the backward pass reaches a layer
it repeats that layer, so the activations of one layer are alive at a time. A checkpoint around the
whole model would save nothing: the backward pass would bring all layers back at once.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

logger = logging.getLogger(__name__)

# A frozen model in eval mode draws no random numbers, so none are kept for the repetition.
_repeat = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def run_recomputed(run: Callable[[Tensor], Tensor], inputs: Tensor, decoder: nn.Module) -> Tensor:
    """Return `run(inputs)`, without keeping the activations inside the layers of `decoder`.

    `run` calls the decoder; gradients flow to `inputs`. If the layers are not found, all of `run`
    is repeated in one piece, with a warning. The decoder is unchanged afterwards.
    """
    layers = repeatable_layers(decoder)
    if not layers:
        _say_that_nothing_is_saved(type(decoder).__name__)
        return _repeat(run, inputs)
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_repeated(layer))
        return run(inputs)


def repeatable_layers(decoder: nn.Module) -> list[nn.Module]:
    """Return the layers that transformers declares fit for recomputation."""
    return [
        module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)
    ]


@contextmanager
def _repeated(layer: nn.Module) -> Iterator[None]:
    """Make calls of the layer inside the block keep their inputs only.

    Its `forward` is exchanged; the switch of transformers would work in training mode only. Hooks
    of the layer itself stay outside and run once. Hooks of modules inside run again, as ZeRO-3
    needs to gather their weights.
    """
    own = vars(layer).get("forward")
    vars(layer)["forward"] = partial(_repeat, layer.forward)
    try:
        yield
    finally:
        del vars(layer)["forward"]
        if own is not None:
            vars(layer)["forward"] = own


@cache
def _say_that_nothing_is_saved(name: str) -> None:
    logger.warning(
        "activation_checkpointing: %s has no layers that can be repeated one by one, so the "
        "backward pass holds the activations of all; lower the micro batch if memory is short",
        name,
    )
