"""Sizes of a VLM from its configuration alone: no weights are read or allocated.

The stock transformers class is built on torch's meta device, so parameter counts are exact for
every model family; widths and token counts come from the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from autoselect.config import ConfigError, GateSite
from autoselect.vlm.adapter import PROJECTORS
from autoselect.vlm.families import family_of, token_width
from autoselect.vlm.head import output_embeddings
from autoselect.vlm.loading import check_model
from autoselect.vlm.patches import check_kind, pair
from autoselect.vlm.projectors import check_projector, input_width

USUAL_PATCH = 14
"""Pixels of a patch's side if a tower does not name them."""


@dataclass(frozen=True)
class VLMShape:
    """Sizes on which memory and time depend.

    Attributes:
        name: model type of the configuration.
        vision_parameters: parameters of vision tower and projector.
        language_parameters: parameters of the language model without its embeddings and head.
        embedding_parameters: parameters of input embeddings and head (counted once if tied).
        largest_layer_parameters: parameters of the largest module that ZeRO-3 gathers whole.
        width: D, hidden channels of the language model.
        mlp_width: channels inside its MLP.
        key_value_width: channels of all key heads together.
        layers: number of layers of the language model.
        vocabulary: V.
        vision_layers: number of layers of the vision tower.
        vision_width: channels of the vision tower.
        visual_tokens: N, visual tokens per image.
        token_width: channels of a visual token as the model's `forward` takes it; D except in
            Llama 4.
        patches: patches that the vision tower computes per image, in whole tiles; at least N.
        patches_per_tile: patches that see each other in the tower; all if it takes images whole.
        patch_values: numbers of a patch's pixels.
        projector_width: P, channels that the projector takes; None if the family names none.
    """

    name: str
    vision_parameters: int
    language_parameters: int
    embedding_parameters: int
    largest_layer_parameters: int
    width: int
    mlp_width: int
    key_value_width: int
    layers: int
    vocabulary: int
    vision_layers: int
    vision_width: int
    visual_tokens: int
    token_width: int
    patches: int
    patches_per_tile: int
    patch_values: int
    projector_width: int | None

    def width_at(self, site: GateSite) -> int:
        """Return the channels of a token at a gate site.

        Raises:
            ConfigError: the family names no projector, or is refused at the site.
        """
        if site == "after_projector":
            return self.token_width
        if site == "before_encoder":
            check_kind(self.name)
            return self.vision_width
        check_projector(self.name)
        if self.projector_width is None:
            raise ConfigError(
                f"gate.site=before_projector: the family {self.name} names no projector; "
                "use gate.site=after_projector"
            )
        return self.projector_width

    def repaired_width_at(self, site: GateSite) -> int:
        """Return the channels that the Denoiser repairs, for a gate at a site."""
        return self.token_width if site == "before_encoder" else self.width_at(site)

    @property
    def parameters(self) -> int:
        return self.vision_parameters + self.language_parameters + self.embedding_parameters


def read_shape(path: str, visual_tokens: int | None = None) -> VLMShape:
    """Read the sizes of a model from `config.json` of a folder or hub name.

    Args:
        path: folder or hub name.
        visual_tokens: N per image, for models in which it depends on the image.

    Raises:
        ConfigError: the configuration is missing or not that of a VLM, weights beside it are not
            whole, or N is below 1 or needed and not given.
    """
    config = check_model(path, weights_needed=False)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    text, vision = config.get_text_config(), config.vision_config
    tokens = _fixed_tokens(path, config) if visual_tokens is None else visual_tokens
    if tokens < 1:
        raise ConfigError(f"visual_tokens={tokens} is below 1; give the tokens of one image")
    patches = tokens * patches_per_token(config)
    tile = _patches_per_tile(config) or patches
    heads = text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
    embeddings = {
        id(p): p.numel()
        for module in (model.get_input_embeddings(), output_embeddings(model))
        if module is not None
        for p in module.parameters()
    }
    language = _count(_language_model(model)) - model.get_input_embeddings().weight.numel()
    embedding = sum(embeddings.values())
    vision_width = _first(vision, "hidden_size", "embed_dim")
    return VLMShape(
        name=config.model_type,
        vision_parameters=_count(model) - language - embedding,
        language_parameters=language,
        embedding_parameters=embedding,
        largest_layer_parameters=max(
            sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()
        ),
        width=text.hidden_size,
        mlp_width=text.intermediate_size,
        key_value_width=(getattr(text, "num_key_value_heads", None) or heads) * head_width,
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        vision_layers=_first(vision, "num_hidden_layers", "depth"),
        vision_width=vision_width,
        visual_tokens=tokens,
        token_width=token_width(config),
        patches=-(-patches // tile) * tile,
        patches_per_tile=tile,
        patch_values=_patch_values(vision),
        projector_width=_projector_width(model.base_model),
    )


def _language_model(model: Any) -> Any:
    inside = model.base_model
    found = getattr(inside, "language_model", getattr(inside, "text_model", inside))
    return getattr(found, "model", found)  # without a head


def _projector_width(inside: Any) -> int | None:
    projectors = (getattr(inside, name) for name in PROJECTORS if hasattr(inside, name))
    widths = (input_width(projector) for projector in projectors)
    return next((width for width in widths if width is not None), None)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _first(config: Any, *names: str) -> int:
    """Return the value of the first of several names that families use for one quantity."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    raise ConfigError(
        f"the vision configuration {config.model_type} has none of {', '.join(names)}; "
        "this model family is not supported by the plan"
    )


def _fixed_tokens(path: str, config: Any) -> int:
    """Return the visual tokens of every image.

    Raises:
        ConfigError: they depend on the image; `image_seq_length` may then count one of its tiles.
    """
    family = family_of(config)
    if family.fixed_tokens:
        return int(config.image_seq_length)
    most = _most_tokens(config)
    raise ConfigError(
        f"model={path} ({config.model_type}) has a varying number of visual tokens; give the "
        "typical number per image with --visual-tokens N"
        + (f", at most {most}" if most is not None else "")
    )


def _most_tokens(config: Any) -> int | None:
    """Return the most visual tokens of a LLaVA-NeXT image, or None for other families.

    The largest grid with a newline token after each of its rows, plus the overview.
    """
    if config.model_type not in ("llava_next", "llava_next_video"):
        return None
    patch = config.vision_config.patch_size
    grids = [(height // patch, width // patch) for height, width in config.image_grid_pinpoints]
    overview = (config.vision_config.image_size // patch) ** 2
    return int(max(rows * (columns + 1) for rows, columns in grids) + overview)


def patches_per_token(config: Any) -> int:
    """Return how many patches become one visual token, side by side or by pixel shuffle."""
    shuffle, ratio = getattr(config, "scale_factor", None), getattr(config, "downsample_ratio", 1)
    shuffled = shuffle**2 if isinstance(shuffle, int) else round(1 / ratio**2)
    return int(shuffled * (_merge_size(config) or 1) ** 2)


def _patch_values(vision: Any) -> int:
    """Return the numbers of a patch's pixels: its channels, frames, height and width."""
    side = getattr(vision, "patch_size", None) or USUAL_PATCH
    frames = getattr(vision, "temporal_patch_size", None) or 1
    return 3 * frames * prod(pair(side))


def _merge_size(config: Any) -> int | None:
    """Return the side of the merged square of patches, in families that take images whole."""
    own = getattr(config, "spatial_merge_size", None)
    return getattr(getattr(config, "vision_config", None), "spatial_merge_size", own)


def _patches_per_tile(config: Any) -> int | None:
    """Return the patches of an image of the configured size; None if the tower takes any size."""
    vision = config.vision_config
    size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if _merge_size(config) is not None or size is None or patch is None:
        return None
    return prod(whole // part for whole, part in zip(pair(size), pair(patch), strict=True))
