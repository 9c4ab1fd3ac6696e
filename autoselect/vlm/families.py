"""What differs between model families, as data: one line per tested family.

Everything else is the public interface of transformers. A family is told apart by the model type of
its configuration.
"""

from dataclasses import dataclass
from typing import Any, Literal

from autoselect.config import ConfigError

OLDEST_TRANSFORMERS = "5.20"

Blocks = Literal["entries", "runs"]
Raster = Literal["square", "picture"]
Marker = Literal["same_before_last", "same_after_last", "same_before_first"]


@dataclass(frozen=True)
class Family:
    """How one family writes images into its prompt.

    Attributes:
        images: an image is one entry of the image features, or one run of adjacent placeholders.
        videos: a clip is one entry of the video features, or one run of adjacent placeholders.
        tiles: tiles of one image are separate runs with marker tokens between them. The last tile
            of an image has the same token before it (or after it) as the last tile of the prompt;
            or its first tile has the same token before it as the first tile of the prompt. None if
            an image is one block, or if tiles cannot be told from images.
        raster: the tokens of an image are one raster, square or of the picture's shape; None if
            there are tiles, newline tokens or resampled tokens, or if it is unknown.
        clip_token: modality whose placeholder stands for tokens of clips.
        first_position: position of the first token when the caller gives no positions.
        fixed_tokens: every image has as many tokens, as long as the processor writes as many.
        images_see_themselves: tokens of one image see each other, not only earlier ones.
        beyond_features: the prompt receives more than visual tokens at placeholders: deepstack
            features or indicator tokens, which only the model's own `forward` can insert.
        convolutions: some layers mix neighbouring columns whatever the attention mask says, so
            rounds that must not see each other cannot share a row.
        untrained: why `autoselect train` refuses the family; empty if it does not.
    """

    images: Blocks = "entries"
    videos: Blocks = "entries"
    tiles: Marker | None = None
    raster: Raster | None = None
    clip_token: Literal["image", "video"] = "video"
    first_position: int = 0
    fixed_tokens: bool = False
    images_see_themselves: bool = False
    beyond_features: bool = False
    convolutions: bool = False
    untrained: str = ""


FAMILIES: dict[str, Family] = {
    "aya_vision": Family(images="runs", tiles="same_after_last"),
    "cohere2_vision": Family(images="runs", tiles="same_before_first"),
    "deepseek_vl": Family(raster="square"),
    "fast_vlm": Family(raster="square"),
    "gemma3": Family(raster="square", images_see_themselves=True),
    "glm4v": Family(raster="picture", clip_token="image"),
    "got_ocr2": Family(
        images="runs", untrained="its processor takes neither several rows of images nor text alone"
    ),
    "idefics2": Family(
        images="runs", untrained="its processor does not tell what it writes for an image"
    ),
    "idefics3": Family(images="runs", tiles="same_before_last"),
    "internvl": Family(images="runs"),
    "janus": Family(raster="square"),
    "lfm2_vl": Family(images="runs", tiles="same_after_last", convolutions=True),
    "llava": Family(raster="square", fixed_tokens=True),
    "llava_next": Family(),
    "llava_next_video": Family(),
    "llava_onevision": Family(),
    "mistral3": Family(raster="picture"),
    "ovis2": Family(images="runs", tiles="same_before_first", beyond_features=True),
    "paligemma": Family(
        raster="square",
        first_position=1,
        untrained="its whole prompt is a bidirectional prefix of one answer",
    ),
    "perception_lm": Family(
        images="runs",
        videos="runs",
        untrained="its processor makes no batch of images with different numbers of tiles",
    ),
    "qwen2_5_vl": Family(raster="picture"),
    "qwen2_vl": Family(raster="picture"),
    "qwen3_vl": Family(raster="picture", beyond_features=True),
    "smolvlm": Family(images="runs", tiles="same_before_last"),
    "video_llava": Family(videos="runs", raster="square"),
    "vipllava": Family(raster="square", fixed_tokens=True),
}

REFUSED = {
    "mllama": "its images enter through cross-attention, not through the prompt",
    "idefics": "its images enter through cross-attention, not through the prompt",
    "florence2": "it is an encoder-decoder, whose decoder sees images through cross-attention",
}


def register_family(model_type: str, family: Family) -> None:
    """Let `attach` accept a model type that is not in the table, written as `family` says."""
    FAMILIES[model_type] = family


def family_of(config: Any) -> Family:
    """Return the family of a model's configuration.

    Raises:
        ConfigError: the family is refused or unknown.
    """
    kind = config.model_type
    if kind in REFUSED:
        raise ConfigError(
            f"model_type={kind} cannot be pruned: {REFUSED[kind]}; choose a model whose images are "
            f"tokens of the prompt: {', '.join(sorted(FAMILIES))}"
        )
    if kind not in FAMILIES:
        raise ConfigError(
            f"model_type={kind} is not a tested family; choose one of "
            f"{', '.join(sorted(FAMILIES))}, or see docs/backbones.md for how to add a family "
            "with autoselect.vlm.register_family"
        )
    return FAMILIES[kind]
