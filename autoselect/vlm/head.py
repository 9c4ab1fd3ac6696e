"""Logits of hidden states by the model's own head.

Some families scale or cap logits behind the output embeddings (Gemma, Granite, Cohere), or forbid
tokens (Chameleon). The stock `forward` is called with a base that returns the given states.
"""

from typing import Any

import torch
from torch import Tensor


class _States:
    """Output of a base model: the last hidden states, and nothing else."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, place: int) -> Tensor:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, _name: str) -> None:
        return None


class _Base:
    """Stands for the base model during one call; whatever else is read is the model's own."""

    def __init__(self, base: Any, hidden: Tensor) -> None:
        self._base, self._hidden = base, hidden

    def __call__(self, *_arguments: Any, **_named: Any) -> _States:
        return _States(self._hidden)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Return the logits of last hidden states [n, D] as the model's own `forward` does, [n, V].

    Not for several threads at once. A model without a base of its own (Llama 4, Nemotron Omni) has
    logits that its output embeddings give.
    """
    base = model.base_model
    if base is model:
        return output_embeddings(model)(hidden)
    ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
    # An attribute of the object is found before the module of the same name.
    vars(model)[model.base_model_prefix] = _Base(base, hidden[None])
    try:
        return type(model).forward(model, input_ids=ids, return_dict=True).logits[0]
    finally:
        del vars(model)[model.base_model_prefix]


def output_embeddings(model: Any) -> Any:
    """Return the head's linear layer: the model's own, or that of the language model inside it."""
    own = model.get_output_embeddings()
    return model.get_decoder().get_output_embeddings() if own is None else own
