"""Write tiny LLaVA models with random weights, laid out like on the hub."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

IMAGE_SIZE, PATCH_SIZE = 56, 14
NUM_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
WIDTH = 64
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
SHARD_SIZE = "200KB"
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
CROP = {
    "size": {"shortest_edge": IMAGE_SIZE},
    "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
}
PROCESSOR = {
    "patch_size": PATCH_SIZE,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}"
    "{% endfor %}{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %} {% else %}ASSISTANT: "
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer of bytes and special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate([*SPECIAL, *alphabet])}
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(piece, special=True) for piece in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


def parts(text: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return the settings that the configurations of both families share."""
    return {
        "vision_config": CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
        ),
        "text_config": LlamaConfig(
            vocab_size=len(text),
            hidden_size=WIDTH,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
            pad_token_id=3,
            bos_token_id=1,
            eos_token_id=2,
        ),
        "image_token_index": SPECIAL.index("<image>"),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "pad_token_id": 3,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def write_hub_folder(folder: Path) -> None:
    """Write a LLaVA-1.5: configuration, weights in several files, tokenizer and processor."""
    torch.manual_seed(0)
    text = tokenizer()
    config = LlavaConfig(**parts(text), image_seq_length=NUM_TOKENS)
    LlavaForConditionalGeneration(config).save_pretrained(folder, max_shard_size=SHARD_SIZE)
    images = CLIPImageProcessorPil(**CROP)
    LlavaProcessor(images, text, chat_template=TEMPLATE, **PROCESSOR).save_pretrained(folder)


def write_next_folder(folder: Path) -> None:
    """Write a LLaVA-NeXT, whose number of visual tokens depends on the size of the image."""
    torch.manual_seed(0)
    text = tokenizer()
    config = LlavaNextConfig(**parts(text), image_grid_pinpoints=PINPOINTS)
    LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    images = LlavaNextImageProcessorPil(**CROP, image_grid_pinpoints=PINPOINTS)
    LlavaNextProcessor(images, text, chat_template=TEMPLATE, **PROCESSOR).save_pretrained(folder)
