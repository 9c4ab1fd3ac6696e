"""Attention of the language model to the visual tokens, for FastV-style ranking."""

from typing import Any

import torch
from torch import Tensor

from autoselect.vlm.attention_maps import attention_layers, attention_maps

FASTV_LAYER = 2


def has_llm_attention(vlm: Any) -> bool:
    """Whether the language model can be asked for attention maps."""
    inner = getattr(getattr(vlm, "model", None), "model", None)
    language = getattr(inner, "language_model", None)
    if language is None or not hasattr(language, "set_attn_implementation"):
        return False
    return len(attention_layers(language)) >= FASTV_LAYER


@torch.inference_mode()
def visual_attention(
    vlm: Any, prompt: dict[str, Tensor], tokens: Tensor, layer: int = FASTV_LAYER
) -> Tensor:
    """Attention of the prompt's last token to each visual token, mean over heads, [R, N].

    Args:
        vlm: a `FrozenVLM`.
        prompt: of `vlm.prompt`, [R, T].
        tokens: visual tokens of every row, [R, N, D].
        layer: counted from 1; FastV takes the second.
    """
    prefix = vlm.prefix(prompt, tokens, None)
    language = vlm.model.model.language_model
    maps = attention_maps(
        language,
        attention_layers(language)[layer - 1],
        lambda: vlm.model.model(**prefix, use_cache=False),
    )
    last = maps[:, :, -1].mean(dim=1)
    is_image = prompt["input_ids"] == vlm.image_token_id
    return last[is_image].view(len(tokens), -1)
