"""Attention of the language model to the visual tokens, for FastV-style ranking.

Dimension letters: R rows, T prompt tokens, N visual tokens of one image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autoselect.vlm.adapter import VisualAdapter
from autoselect.vlm.attention_maps import attention_layers, attention_maps
from autoselect.vlm.blocks import Block

FASTV_LAYER = 2


def has_llm_attention(model: Any) -> bool:
    language = model.get_decoder()
    if not hasattr(language, "set_attn_implementation"):
        return False
    return len(attention_layers(language)) >= FASTV_LAYER


@torch.inference_mode()
def visual_attention(
    adapter: VisualAdapter, call: Mapping[str, Any], blocks: Sequence[Block]
) -> list[Tensor]:
    """Return the attention of each prompt's last token to the tokens of every image, [N] each.

    `call` has encoded images and is padded on the left, [R, T]. The mean over the heads of the
    second layer is returned, which FastV takes.
    """
    language = adapter.model.get_decoder()
    arguments = dict(call)
    if not adapter.positions.on_grid:
        real = arguments["attention_mask"]
        first = adapter.family.first_position
        arguments["position_ids"] = (real.cumsum(dim=1) - 1).clamp(min=0) + first
    maps = attention_maps(
        language,
        attention_layers(language)[FASTV_LAYER - 1],
        lambda: adapter.base(**arguments, use_cache=False),
    )
    last = maps[:, :, -1].mean(dim=1)
    return [last[block.row, block.columns] for block in blocks]
