"""Attention of the language model to the visual tokens, for FastV-style ranking."""

from typing import Any

import torch
from torch import Tensor

from autoselect.vlm.backbone import eager_attention

FASTV_LAYER = 2


def has_llm_attention(vlm: Any) -> bool:
    """Whether the language model can be asked for attention maps."""
    inner = getattr(getattr(vlm, "model", None), "model", None)
    return hasattr(getattr(inner, "language_model", None), "set_attn_implementation")


@torch.inference_mode()
def visual_attention(
    vlm: Any, prompt: dict[str, Tensor], tokens: Tensor, layer: int = FASTV_LAYER
) -> Tensor:
    """Attention of the prompt's last token to each visual token, mean over heads, [R, N].

    Only the eager implementation gives attention maps, so the language model runs eagerly here and
    is put back.

    Args:
        vlm: a `FrozenVLM`.
        prompt: of `vlm.prompt`, [R, T].
        tokens: visual tokens of every row, [R, N, D].
        layer: counted from 1; FastV takes the second.
    """
    prefix = vlm.prefix(prompt, tokens, None)
    with eager_attention(vlm.model.model.language_model):
        maps = vlm.model.model(**prefix, output_attentions=True, use_cache=False).attentions
    last = maps[layer - 1][:, :, -1].mean(dim=1)
    is_image = prompt["input_ids"] == vlm.image_token_id
    return last[is_image].view(len(tokens), -1)
