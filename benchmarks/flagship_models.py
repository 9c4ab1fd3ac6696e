"""LLaVA-1.5-7B and Qwen2.5-VL-7B with random weights, built from their sizes, and their prompts.

The time of a model depends on its sizes and not on its weights, so neither a hub nor a download is
needed. `toy` builds the same classes with few layers and channels, for a rehearsal on a CPU.

Dimension letters: B rows, T prompt tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.models.llava.configuration_llava import LlavaConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig

TEXT_TOKENS = 64


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model that differ between the real one and its toy.

    Attributes:
        text: of the language model's configuration.
        vision: of the encoder's configuration.
        side: pixels of a side of the picture.
        patch: pixels of a side of a patch.
        vocabulary: tokens; the last one is the image token.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    side: int
    patch: int
    vocabulary: int = 256
    rope: tuple[int, ...] = field(default=())


LLAVA = Sizes(
    {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "projection_dim": 768,
    },
    336,
    14,
    32064,
)
LLAVA_TOY = Sizes(
    {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 16,
    },
    84,
    14,
)
QWEN = Sizes(
    {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    672,
    14,
    152064,
    (16, 24, 24),
)
QWEN_TOY = Sizes(
    {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
    },
    168,
    14,
    256,
    (2, 3, 3),
)


def llava_config(sizes: Sizes) -> Any:
    return LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "image_size": sizes.side,
            "patch_size": sizes.patch,
            **sizes.vision,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": sizes.vocabulary,
            "max_position_embeddings": 4096,
            **sizes.text,
        },
        image_token_index=sizes.vocabulary - 1,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def qwen_config(sizes: Sizes) -> Any:
    return Qwen2_5_VLConfig(
        vision_config={"patch_size": sizes.patch, **sizes.vision},
        text_config={
            "vocab_size": sizes.vocabulary,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": list(sizes.rope),
            },
            **sizes.text,
        },
        image_token_id=sizes.vocabulary - 1,
        video_token_id=sizes.vocabulary - 2,
        vision_start_token_id=sizes.vocabulary - 3,
        vision_end_token_id=sizes.vocabulary - 4,
    )


CONFIGS = {
    "llava-1.5-7b": (llava_config, LLAVA, LLAVA_TOY),
    "qwen2.5-vl-7b": (qwen_config, QWEN, QWEN_TOY),
}


def build(name: str, toy: bool, device: str, dtype: torch.dtype) -> tuple[Any, Sizes]:
    """Build a model with random weights on its device, and return it with its sizes."""
    config_of, real, small = CONFIGS[name]
    sizes = small if toy else real
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            model = AutoModelForImageTextToText.from_config(config_of(sizes))
    finally:
        torch.set_default_dtype(before)
    # Some buffers, such as rotary frequencies, are made on the CPU whatever the default is.
    return model.to(device).eval().requires_grad_(False), sizes


def visual_tokens(name: str, sizes: Sizes) -> int:
    """Return the visual tokens of one picture."""
    patches = (sizes.side // sizes.patch) ** 2
    return patches if name.startswith("llava") else patches // 4


def prompt(name: str, model: Any, sizes: Sizes, rows: int, images: int = 1) -> dict[str, Tensor]:
    """Return the arguments of `generate` for equal rows of `images` pictures and a text, [B, T]."""
    count, token = visual_tokens(name, sizes), sizes.vocabulary - 1
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(3, 100, (TEXT_TOKENS,), generator=generator).tolist()
    qwen = name.startswith("qwen")
    marks = [[sizes.vocabulary - 3], [sizes.vocabulary - 4]] if qwen else [[3], [3]]
    one = [*marks[0], *[token] * count, *marks[1]]
    ids = torch.tensor([[1, *one * images, *text]] * rows)
    side = sizes.side // sizes.patch
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if qwen:
        patches = torch.randn(rows * images * side**2, 3 * 2 * sizes.patch**2, generator=generator)
        inputs["pixel_values"] = patches
        inputs["image_grid_thw"] = torch.tensor([[1, side, side]] * (rows * images))
        inputs["mm_token_type_ids"] = (ids == token).int()
    else:
        shape = (rows * images, 3, sizes.side, sizes.side)
        inputs["pixel_values"] = torch.randn(shape, generator=generator)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return {key: value.to(model.device) for key, value in inputs.items()}
