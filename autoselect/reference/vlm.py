"""Build the reference VLM: a stock `LlavaForConditionalGeneration`, tokenizer and processor.

It has a small CLIP tower, the usual two-layer projector and a small Llama. Images of 96 pixels in
patches of 8 pixels give 144 visual tokens. It is saved with `save_pretrained` and loads with
`from_pretrained` like any hub model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from autoselect.reference.scenes import COLOURS, IMAGE_SIZE, PLATE_CHARACTERS, SHAPES

PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
NUM_VISUAL_TOKENS = GRID * GRID
IMAGE_TOKEN, USER_TOKEN, ASSISTANT_TOKEN = "<image>", "<user>", "<assistant>"
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", IMAGE_TOKEN, USER_TOKEN, ASSISTANT_TOKEN)
SPECIAL_IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LANGUAGE: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    **SPECIAL_IDS,
}
"""Settings that the language models of both reference VLMs share."""
WORDS = (
    "is there a an the what color colour shape object objects how many are left right of above "
    "below or sign does say yes no in on to and ?"
).split()

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<user>' if message['role'] == 'user' else '<assistant>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with the words of all questions, and characters for other text."""
    words = [*WORDS, *COLOURS, *SHAPES, *(f"{s}s" for s in SHAPES), *"012345"]
    letters = [chr(c) for c in range(33, 127)]
    return word_piece_tokenizer(words, letters, pre_tokenizers.Whitespace())


def word_piece_tokenizer(
    words: Sequence[str], letters: Sequence[str], splitter: pre_tokenizers.PreTokenizer
) -> PreTrainedTokenizerFast:
    """Build a WordPiece tokenizer with the special tokens of the reference VLMs.

    Args:
        words: words that are one token.
        letters: characters of which other words are put together.
        splitter: divides a text into words.
    """
    pieces = [*SPECIAL_TOKENS, *words, *letters, *(f"##{c}" for c in letters)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="<unk>", max_input_chars_per_word=100)
    )
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A $B", special_tokens=[]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={
            "image_token": IMAGE_TOKEN,
            "user_token": USER_TOKEN,
            "assistant_token": ASSISTANT_TOKEN,
        },
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
    )


def build_processor() -> LlavaProcessor:
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_config(vocabulary: int) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    language = LlamaConfig(vocab_size=vocabulary, num_key_value_heads=6, **LANGUAGE)
    return llava_config(vision, language, NUM_VISUAL_TOKENS, "default")


def llava_config(vision: Any, language: Any, tokens: int, strategy: Any) -> LlavaConfig:
    """Join the parts of a reference VLM with `tokens` visual tokens per image."""
    return LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=SPECIAL_TOKENS.index(IMAGE_TOKEN),
        image_seq_length=tokens,
        vision_feature_layer=-1,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=True,
        **SPECIAL_IDS,
    )


def sinusoidal_positions(width: int, grid: int) -> torch.Tensor:
    """Return a 2-D sine-cosine table [grid * grid, width], the tower's initial positions."""
    rate = 1.0 / 100 ** (torch.arange(width // 4) / (width // 4))
    angle = torch.arange(grid)[:, None] * rate
    line = torch.cat([angle.sin(), angle.cos()], dim=-1)
    rows = line[:, None, :].expand(grid, grid, -1)
    columns = line[None, :, :].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, width)


def build_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """Build an untrained reference VLM; the same seed gives the same weights."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config(len(build_tokenizer())))
    positions = model.model.vision_tower.embeddings.position_embedding.weight
    with torch.no_grad():
        positions[1:] = 0.5 * sinusoidal_positions(positions.shape[1], GRID)
    return model


def save_vlm(model: LlavaForConditionalGeneration, folder: Path) -> None:
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)


assert set(PLATE_CHARACTERS) <= {chr(c) for c in range(33, 127)}
