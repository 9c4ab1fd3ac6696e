"""What differs between model families and cannot be read from a model, as data.

Everything else is the public interface of transformers. A family is told apart by the model type of
its configuration. A type without an entry is one image per entry of the features, if `contract`
finds that it does what is needed.
"""

from dataclasses import dataclass
from typing import Any, Literal

from autoselect.config import ConfigError

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
        merges_frames: the tower makes one frame of all frames of a clip.
        first_position: position of the first token when the caller gives no positions.
        fixed_tokens: every image has as many tokens, as long as the processor writes as many.
        images_see_themselves: tokens of one image see each other, not only earlier ones.
        projects: `forward` takes what the vision tower returns and projects it itself, so tokens
            have the channels of the tower's output.
        convolutions: some layers mix neighbouring columns whatever the attention mask says, so
            rounds that must not see each other cannot share a row.
        padding_mask_only: attention takes no other mask than which columns are padding, so tokens
            cannot be weighed or removed as keys.
        untrained: why `autoselect train` refuses the family; empty if it does not.
    """

    images: Blocks = "entries"
    videos: Blocks = "entries"
    tiles: Marker | None = None
    raster: Raster | None = None
    clip_token: Literal["image", "video"] = "video"
    merges_frames: bool = False
    first_position: int = 0
    fixed_tokens: bool = False
    images_see_themselves: bool = False
    projects: bool = False
    convolutions: bool = False
    padding_mask_only: bool = False
    untrained: str = ""


FAMILIES: dict[str, Family] = {
    "aya_vision": Family(images="runs", tiles="same_after_last"),
    "cohere2_vision": Family(images="runs", tiles="same_before_first"),
    "deepseek_vl": Family(raster="square"),
    "fast_vlm": Family(raster="square"),
    "gemma3": Family(raster="square", images_see_themselves=True),
    "glm46v": Family(raster="picture", clip_token="image"),
    "glm4v": Family(raster="picture", clip_token="image"),
    "glm4v_moe": Family(raster="picture", clip_token="image"),
    "glm5_next": Family(
        raster="picture", clip_token="image", convolutions=True, padding_mask_only=True
    ),
    "glm_ocr": Family(raster="picture", clip_token="image"),
    "glmga": Family(raster="picture", clip_token="image"),
    "got_ocr2": Family(
        images="runs",
        untrained="its processor takes exactly one image per text, and neither rows of images nor "
        "text alone",
    ),
    "granite4_vision": Family(),
    "granite_docling": Family(images="runs", tiles="same_before_first"),
    "idefics2": Family(
        images="runs", untrained="its processor does not tell what it writes for an image"
    ),
    "idefics3": Family(images="runs", tiles="same_before_last"),
    "inkling_mm_model": Family(images="runs", convolutions=True),
    "internvl": Family(images="runs"),
    "janus": Family(raster="square"),
    "kimi_k25": Family(merges_frames=True),
    "lfm2_vl": Family(images="runs", tiles="same_after_last", convolutions=True),
    "llama4": Family(images="runs", tiles="same_before_last", projects=True),
    "llava": Family(raster="square", fixed_tokens=True),
    "llava_next": Family(),
    "llava_next_video": Family(),
    "llava_onevision": Family(),
    "minicpm_ocr": Family(images="runs", tiles="same_before_first", convolutions=True),
    "minicpmv4_6": Family(images="runs", tiles="same_before_first", convolutions=True),
    "minicpmv4_7": Family(images="runs", tiles="same_before_first", convolutions=True),
    "mistral3": Family(raster="picture"),
    "molmo2": Family(
        clip_token="image",
        images_see_themselves=True,
        untrained="all images of a prompt see each other and the tokens between them, a mask that "
        "training does not build",
    ),
    "nemotron_h_omni": Family(clip_token="image", convolutions=True),
    "ovis2": Family(images="runs", tiles="same_before_first"),
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
    "pp_chart2table": Family(
        images="runs",
        untrained="its processor writes no image tokens and takes no text alone; its chat template "
        "writes them",
    ),
    "qianfan_ocr": Family(images="runs"),
    "qwen2_5_vl": Family(raster="picture"),
    "qwen2_vl": Family(raster="picture"),
    "qwen3_vl": Family(raster="picture"),
    "shieldgemma2": Family(raster="square", images_see_themselves=True),
    "smolvlm": Family(images="runs", tiles="same_before_last"),
    "video_llava": Family(videos="runs", raster="square"),
    "vipllava": Family(raster="square", fixed_tokens=True),
}

CROSS_ATTENTION = "its images enter through cross-attention, not through the prompt"
ENCODER_DECODER = "it is an encoder-decoder, whose decoder sees images through cross-attention"
QUERY_TOKENS = (
    "an image is a few query tokens already, and its generate hands embeddings to an inner "
    "language model"
)
LATENT_QUERIES = (
    "an image is a fixed set of latent queries, which are not image tokens of the prompt"
)

REFUSED = {
    "blip": CROSS_ATTENTION,
    "blip-2": QUERY_TOKENS,
    "diffusion_gemma": "it decodes by diffusion: a canvas attends to the encoder's cache",
    "evolla": "it reads proteins, not images, through cross-attention",
    "florence2": ENCODER_DECODER,
    "git": "its images stand before the prompt, without image tokens",
    "idefics": CROSS_ATTENTION,
    "instructblip": QUERY_TOKENS,
    "instructblipvideo": QUERY_TOKENS,
    "kosmos-2": LATENT_QUERIES,
    "kosmos-2.5": LATENT_QUERIES,
    "mistral4": "it is a language model without a vision tower",
    "mllama": CROSS_ATTENTION,
    "pi0": "it generates robot actions by flow matching, not text",
    "pix2struct": ENCODER_DECODER,
    "pp_formulanet": ENCODER_DECODER,
    "t5gemma2": ENCODER_DECODER,
    "udop": ENCODER_DECODER,
    "vision-encoder-decoder": ENCODER_DECODER,
}


def placeholder_id(config: Any, kind: str) -> int | None:
    """Return the token id that stands for one visual token of a kind, or None."""
    for name in (f"{kind}_token_id", f"{kind}_token_index"):
        if (token := getattr(config, name, None)) is not None:
            return int(token)
    return None


def token_width(config: Any) -> int:
    """Return the channels of a visual token as the model's `forward` takes it."""
    family = FAMILIES.get(config.model_type)
    if family is not None and family.projects:
        return int(config.vision_config.vision_output_dim)
    return int(config.get_text_config().hidden_size)


def register_family(model_type: str, family: Family) -> None:
    """Let `attach` accept a model type that is not in the table, written as `family` says."""
    FAMILIES[model_type] = family


MIXING = ("conv", "linear_attention", "hybrid", "hybrid_sliding", "mamba", "mamba2")
SLIDING = ("sliding_attention", "hybrid_sliding")


def family_of(config: Any) -> Family:
    """Return the family of a model's configuration; one without an entry is read from it.

    Raises:
        ConfigError: the family is refused.
    """
    kind = config.model_type
    if kind in REFUSED:
        raise ConfigError(
            f"model_type={kind} cannot be pruned: {REFUSED[kind]}; choose a model whose images are "
            f"tokens of the prompt: {', '.join(sorted(FAMILIES))}"
        )
    if kind in FAMILIES:
        return FAMILIES[kind]
    text = config.get_text_config()
    bidirectional = getattr(text, "use_bidirectional_attention", None) == "vision"
    return Family(
        images_see_themselves=bidirectional,
        convolutions=any(kind in MIXING for kind in getattr(text, "layer_types", None) or ()),
    )


def training_fault(config: Any, rounds: str) -> tuple[str, str] | None:
    """Return why `autoselect train` refuses a model and what to do, or None if it does not.

    Args:
        config: configuration of the model.
        rounds: the setting `data.rounds`.

    Raises:
        ConfigError: the family is refused.
    """
    family = family_of(config)
    if family.untrained:
        found = f"cannot be trained on: {family.untrained}"
        return found, "choose another family of docs/backbones.md"
    if family.convolutions and rounds == "independent":
        found = "has convolutions, which would mix the rounds of a row with data.rounds=independent"
        return found, "set data.rounds=conversation"
    return None
