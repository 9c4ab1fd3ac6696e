"""Build the second reference VLM: a stock `LlavaForConditionalGeneration` of SigLIP and Qwen2.

Images of 112 pixels in patches of 8 pixels give 196 visual tokens; the tower has no class token.
The VLM is saved with `save_pretrained` in bfloat16 and loads like any hub model.
"""

from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from autoselect.reference.documents.canvas import PAGE_SIZE
from autoselect.reference.documents.lexicon import CHARACTERS, DIRECTIONS, PRINTED, TEXT_COLOURS
from autoselect.reference.documents.signs import PANEL_COLOURS
from autoselect.reference.scenes import COLOURS, SHAPES
from autoselect.reference.vlm import (
    CHAT_TEMPLATE,
    LANGUAGE,
    WORDS,
    llava_config,
    sinusoidal_positions,
    word_piece_tokenizer,
)

PATCH_SIZE = 8
GRID = PAGE_SIZE // PATCH_SIZE
NUM_VISUAL_TOKENS = GRID * GRID
PAGE_WORDS = (
    "value of which bar row has highest lowest costs much color word written first last way far"
).split()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with the words of questions and pages, and characters for other text."""
    words = [*WORDS, *PAGE_WORDS, *COLOURS, *SHAPES, *(f"{s}s" for s in SHAPES), *TEXT_COLOURS]
    words += [*PANEL_COLOURS, *DIRECTIONS, *PRINTED]
    letters = [*CHARACTERS, *"abcdefghijklmnopqrstuvwxyz?,-"]
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("?", "isolated")]
    )
    return word_piece_tokenizer(words, letters, splitter)


def build_processor() -> LlavaProcessor:
    image_processor = SiglipImageProcessorPil(size={"height": PAGE_SIZE, "width": PAGE_SIZE})
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )


def build_config(vocabulary: int) -> LlavaConfig:
    vision = SiglipVisionConfig(
        hidden_size=192,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=PAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    language = Qwen2Config(vocab_size=vocabulary, num_key_value_heads=3, **LANGUAGE)
    return llava_config(vision, language, NUM_VISUAL_TOKENS, "full")


def build_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """Build an untrained second reference VLM; the same seed gives the same weights."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config(len(build_tokenizer())))
    positions = model.model.vision_tower.embeddings.position_embedding.weight
    with torch.no_grad():
        positions.copy_(0.5 * sinusoidal_positions(positions.shape[1], GRID))
    return model


def save_vlm(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write a bfloat16 copy of the model, and its processor, as a hub folder."""
    copy = LlavaForConditionalGeneration(model.config).bfloat16()
    copy.load_state_dict(model.state_dict())
    copy.save_pretrained(folder)
    build_processor().save_pretrained(folder)
