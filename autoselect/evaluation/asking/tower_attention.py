"""Attention inside the vision tower, for ranking by the class token.

Dimension letters: E entries (images or tiles) of the tower, P places of its sequence, N visual
tokens of one entry, M of all entries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.vlm.adapter import VisualAdapter
from autoselect.vlm.attention_maps import attention_layers, attention_maps
from autoselect.vlm.patches import tower_of


@dataclass(frozen=True)
class TowerAttention:
    """Attention to each visual token, mean over heads.

    Attributes:
        values: one per visual token, [M].
        of_class_token: true if the class token pays it; false if it is what each token receives on
            average, because the tower has no class token.
    """

    values: Tensor
    of_class_token: bool


@torch.no_grad()
def tower_attention(
    adapter: VisualAdapter, inputs: Mapping[str, Any], total: int
) -> TowerAttention:
    """Return the attention of the class token to each visual token.

    It is read in the layer whose output the projector takes. For a tower without a class token it
    is the attention that each patch receives on average, as VisionZip uses for SigLIP. `inputs` are
    arguments of `forward` with pixels; `total` is M.

    Raises:
        ConfigError: the attention of this tower cannot be read, or not per visual token.
    """
    tower, config = tower_of(adapter), adapter.model.config
    number = getattr(config, "vision_feature_layer", -1)
    layers = attention_layers(tower) if tower is not None else []
    if not layers or not isinstance(number, int):
        raise ConfigError(
            f"model_type={config.model_type} has no vision tower whose attention can be read; "
            "leave out the methods that need a class token, such as cls_attention"
        )
    layer = layers[number if number < 0 else number - 1]
    maps = attention_maps(tower, layer, lambda: adapter.encode(inputs)).mean(dim=1)
    entries, places = maps.shape[0], maps.shape[-1]
    if entries * (places - 1) == total:
        return TowerAttention(maps[:, 0, 1:].flatten(), True)
    if entries * places == total:
        return TowerAttention(maps.mean(dim=1).flatten(), False)
    raise ConfigError(
        f"model_type={config.model_type}: the vision tower attends among {entries} x {places} "
        f"places, but the language model sees {total} tokens; leave out the methods that need a "
        "class token, such as cls_attention"
    )
