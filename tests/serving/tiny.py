"""Tiny models of the families that vLLM serves, with their real processors, written to folders.

vLLM's CPU kernels need heads of 32 channels, so these are wider than those of `tests/vlm`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image

from tests.word_tokenizer import word_tokenizer

WIDTH, VOCABULARY = 64, 128
PLAIN = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>")
WORDS = "is there a red star ? what does the sign say how many hearts are in here".split()
PINPOINTS = [[16, 16], [16, 32], [32, 16]]

TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
VISION: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
}
GRID_VISION: dict[str, Any] = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "out_hidden_size": WIDTH,
}
MROPE = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}


def tokenizer(special: dict[str, str]) -> Any:
    """Build a tokenizer of whole words; `special` names tokens by the family's attributes."""
    names = [*PLAIN, *[own for own in special.values() if own not in PLAIN]]
    return word_tokenizer([*names, *WORDS], special)


def ids(own: Any, **names: str) -> dict[str, int]:
    """Return the ids of named tokens, as a configuration lists them."""
    return {name: own.convert_tokens_to_ids(token) for name, token in names.items()}


def llava_next() -> tuple[Any, Any]:
    own = tokenizer({"image_token": "<image>"})
    config = hf.LlavaNextConfig(
        text_config=hf.LlamaConfig(**TEXT),
        vision_config=hf.CLIPVisionConfig(**VISION, image_size=16),
        vision_feature_layer=-1,
        image_grid_pinpoints=PINPOINTS,
        **ids(own, image_token_index="<image>"),
    )
    processor = hf.LlavaNextProcessor(
        image_processor=hf.LlavaNextImageProcessor(
            size={"shortest_edge": 16},
            crop_size={"height": 16, "width": 16},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer=own,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    own = tokenizer({"image_token": "<image>", "video_token": "<video>"})
    config = hf.LlavaOnevisionConfig(
        text_config=hf.Qwen2Config(**TEXT),
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=16),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
        **ids(own, image_token_index="<image>", video_token_index="<video>"),
    )
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(
            size={"height": 16, "width": 16}, image_grid_pinpoints=PINPOINTS
        ),
        video_processor=hf.LlavaOnevisionVideoProcessor(size={"height": 16, "width": 16}),
        tokenizer=own,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


QWEN = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}


INTERLEAVED = {**MROPE, "mrope_section": [6, 5, 5], "mrope_interleaved": True}


def _qwen(
    config_class: Any, vision: dict[str, Any], processor_class: Any, rope: dict[str, Any] = MROPE
) -> tuple[Any, Any]:
    own = tokenizer(QWEN)
    named = {f"{name}_id": token for name, token in QWEN.items()}
    config = config_class(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config=vision,
        tie_word_embeddings=False,
        **ids(own, **named),
    )
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    area = {"shortest_edge": 256, "longest_edge": 2048}
    processor = processor_class(
        image_processor=hf.Qwen2VLImageProcessor(size=area, **sizes),
        video_processor=hf.Qwen2VLVideoProcessor(size=area, **sizes),
        tokenizer=own,
    )
    return config, processor


def qwen2_vl() -> tuple[Any, Any]:
    vision = {**GRID_VISION, "embed_dim": WIDTH}
    config, processor = _qwen(hf.Qwen2VLConfig, vision, hf.Qwen2VLProcessor)
    return hf.Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    vision = {**GRID_VISION, "fullatt_block_indexes": [1], "window_size": 16}
    config, processor = _qwen(hf.Qwen2_5_VLConfig, vision, hf.Qwen2_5_VLProcessor)
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[Any, Any]:
    vision = {**GRID_VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    config, processor = _qwen(hf.Qwen3VLConfig, vision, hf.Qwen3VLProcessor, INTERLEAVED)
    return hf.Qwen3VLForConditionalGeneration(config), processor


def glm4v() -> tuple[Any, Any]:
    names = {
        "image_token": "<|image|>",
        "video_token": "<|video|>",
        "image_start_token": "<|begin_of_image|>",
        "image_end_token": "<|end_of_image|>",
        "video_start_token": "<|begin_of_video|>",
        "video_end_token": "<|end_of_video|>",
    }
    own = tokenizer(names)
    rope = {**MROPE, "mrope_section": [4, 6, 6], "partial_rotary_factor": 1.0}
    config = hf.Glm4vConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={**GRID_VISION, "image_size": 32},
        tie_word_embeddings=False,
        **ids(own, **{f"{name}_id": token for name, token in names.items()}),
    )
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    area = {"shortest_edge": 256, "longest_edge": 2048}
    processor = hf.Glm4vProcessor(
        image_processor=hf.Glm4vImageProcessor(size=area, **sizes),
        video_processor=hf.Glm4vVideoProcessor(size=area, **sizes),
        tokenizer=own,
    )
    return hf.Glm4vForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    own = tokenizer(names)
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(**TEXT),
        vision_config={**VISION, "image_size": [32, 32], "patch_size": [4, 4]},
        image_seq_length=16,
        **ids(own, image_token_id="<IMG_CONTEXT>"),
    )
    side = {"height": 32, "width": 32}
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(
            size=side, crop_to_patches=True, min_patches=1, max_patches=2
        ),
        video_processor=hf.InternVLVideoProcessor(size=side),
        tokenizer=own,
        image_seq_length=16,
    )
    return hf.InternVLForConditionalGeneration(config), processor


def _idefics(config_class: Any, processor_class: Any, image_processor: Any, **more: Any) -> Any:
    tiles = {f"tile_{r}_{c}": f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)}
    names = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    own = tokenizer({**names, **tiles})
    config = config_class(
        text_config=hf.LlamaConfig(**TEXT),
        vision_config={**VISION, "image_size": 32},
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=False,
        **ids(own, image_token_id="<image>"),
    )
    processor = processor_class(
        image_processor=image_processor(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
        ),
        tokenizer=own,
        image_seq_len=16,
        **more,
    )
    return config, processor


def idefics3() -> tuple[Any, Any]:
    config, processor = _idefics(hf.Idefics3Config, hf.Idefics3Processor, hf.Idefics3ImageProcessor)
    return hf.Idefics3ForConditionalGeneration(config), processor


def smolvlm() -> tuple[Any, Any]:
    video = hf.SmolVLMVideoProcessor(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, fps=1, num_frames=2
    )
    config, processor = _idefics(
        hf.SmolVLMConfig, hf.SmolVLMProcessor, hf.SmolVLMImageProcessor, video_processor=video
    )
    return hf.SmolVLMForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    names = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    own = tokenizer({**names, **{f"newlines_{n}": "\n" * n for n in range(1, 5)}})
    text = hf.Gemma3TextConfig(
        **TEXT,
        query_pre_attn_scalar=32,
        sliding_window=512,
        layer_types=["sliding_attention", "full_attention"],
    )
    config = hf.Gemma3Config(
        text_config=text,
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=32),
        mm_tokens_per_image=16,
        tie_word_embeddings=False,
        **ids(
            own,
            image_token_index=names["image_token"],
            boi_token_index=names["boi_token"],
            eoi_token_index=names["eoi_token"],
        ),
    )
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessor(size={"height": 32, "width": 32}),
        tokenizer=own,
        image_seq_length=16,
    )
    return hf.Gemma3ForConditionalGeneration(config), processor


def mistral3() -> tuple[Any, Any]:
    names = {"image_token": "[IMG]", "break_token": "[IMG_BREAK]", "end_token": "[IMG_END]"}
    own = tokenizer(names)
    config = hf.Mistral3Config(
        text_config=hf.MistralConfig(**TEXT, sliding_window=None),
        vision_config=hf.PixtralVisionConfig(**VISION, image_size=32, head_dim=32),
        spatial_merge_size=2,
        vision_feature_layer=-1,
        **ids(own, image_token_index="[IMG]"),
    )
    processor = hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessor(
            size={"longest_edge": 32}, patch_size={"height": 4, "width": 4}
        ),
        tokenizer=own,
        patch_size=4,
        spatial_merge_size=2,
        image_token="[IMG]",
    )
    return hf.Mistral3ForConditionalGeneration(config), processor


BUILDERS = {
    "gemma3": gemma3,
    "glm4v": glm4v,
    "idefics3": idefics3,
    "internvl": internvl,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "mistral3": mistral3,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen2_vl": qwen2_vl,
    "qwen3_vl": qwen3_vl,
    "smolvlm": smolvlm,
}
BEFORE_PROJECTOR, PROJECTED = ("internvl",), 4 * WIDTH
"""Families that are also pruned before their projector, and the channels that it takes."""

BEFORE = "-before"
"""End of the folders of their second runs."""

QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
PLACEHOLDERS = {
    "gemma3": "<start_of_image>",
    "glm4v": "<|begin_of_image|><|image|><|end_of_image|>",
    "internvl": "<IMG_CONTEXT>",
    "mistral3": "[IMG]",
    "qwen2_5_vl": QWEN_IMAGE,
    "qwen2_vl": QWEN_IMAGE,
    "qwen3_vl": QWEN_IMAGE,
}
"""What stands for an image in a text; `<image>` in other families."""

SIZES = [(36, 28), (64, 32), (32, 64), (48, 24), (34, 44), (24, 56)]
PROMPTS: list[tuple[int, ...]] = [(0,), (1,), (2,), (3,), (4, 5), (1, 0)]
"""Numbers of the images in each prompt."""


def image(number: int) -> Image.Image:
    width, height = SIZES[number]
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def text(name: str, images: tuple[int, ...]) -> str:
    question = " ".join(WORDS[images[0] : images[0] + 6])
    return f"<s>{PLACEHOLDERS.get(name, '<image>') * len(images)}{question}"


def build(name: str, folder: Path) -> tuple[Any, Any]:
    """Write a tiny model with its processor; weights so large that answers depend on everything."""
    torch.manual_seed(0)
    model, processor = BUILDERS[name]()
    model = model.eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.std() < 1e-3:
                parameter.normal_(std=0.08)
            elif parameter.ndim > 1:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor
