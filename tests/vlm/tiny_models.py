"""A tiny model with random weights of every tested family, from its configuration."""

from typing import Any

import transformers as hf

from tests.vlm.tiny_prompts import (
    BOS,
    BREAK,
    END,
    EOS,
    GLOBAL,
    IMAGE,
    PAD,
    START,
    TILE,
    VIDEO,
    VOCABULARY,
    WIDTH,
)

TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
VISION: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
INDEX = {"image_token_index": IMAGE}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def clip_vision(side: int = 16, **more: Any) -> hf.CLIPVisionConfig:
    return hf.CLIPVisionConfig(**VISION, image_size=side, patch_size=4, **more)


def siglip(side: int = 16) -> hf.SiglipVisionConfig:
    return hf.SiglipVisionConfig(**VISION, image_size=side, patch_size=4)


def llama() -> hf.LlamaConfig:
    return hf.LlamaConfig(**TEXT)


def qwen2() -> hf.Qwen2Config:
    return hf.Qwen2Config(**TEXT)


def llava(side: int = 16) -> Any:
    text = hf.LlamaConfig(**{**TEXT, "max_position_embeddings": 1024})
    config = hf.LlavaConfig(
        text_config=text, vision_config=clip_vision(side), vision_feature_layer=-1, **INDEX
    )
    return hf.LlavaForConditionalGeneration(config)


def llava_siglip(side: int = 20) -> Any:
    """(side / 4)^2 tokens of the last layer per image, 25; its configuration says 16."""
    config = hf.LlavaConfig(
        text_config=llama(),
        vision_config=siglip(side),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=16,
        **INDEX,
    )
    return hf.LlavaForConditionalGeneration(config)


def llava_pixtral() -> Any:
    """Build LLaVA's classes for images of many sizes; its config says one token per image."""
    config = hf.LlavaConfig(
        text_config=hf.MistralConfig(**TEXT),
        vision_config=hf.PixtralVisionConfig(**VISION, image_size=32, patch_size=4, head_dim=8),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=1,
        **INDEX,
    )
    return hf.LlavaForConditionalGeneration(config)


def vipllava() -> Any:
    config = hf.VipLlavaConfig(
        text_config=llama(), vision_config=clip_vision(), vision_feature_layer=[-1, -2], **INDEX
    )
    return hf.VipLlavaForConditionalGeneration(config)


PINPOINTS = [[16, 16], [16, 32], [32, 16]]


def llava_next() -> Any:
    config = hf.LlavaNextConfig(
        text_config=llama(),
        vision_config=clip_vision(),
        vision_feature_layer=-1,
        image_grid_pinpoints=PINPOINTS,
        **INDEX,
    )
    return hf.LlavaNextForConditionalGeneration(config)


def llava_next_video() -> Any:
    config = hf.LlavaNextVideoConfig(
        text_config=llama(),
        vision_config=clip_vision(),
        vision_feature_layer=-1,
        image_grid_pinpoints=PINPOINTS,
        video_token_index=VIDEO,
        **INDEX,
    )
    return hf.LlavaNextVideoForConditionalGeneration(config)


def llava_onevision() -> Any:
    config = hf.LlavaOnevisionConfig(
        text_config=qwen2(),
        vision_config=siglip(),
        image_grid_pinpoints=PINPOINTS,
        video_token_index=VIDEO,
        **INDEX,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config)


def video_llava() -> Any:
    config = hf.VideoLlavaConfig(
        text_config=llama(),
        vision_config=clip_vision(),
        vision_feature_layer=-1,
        video_token_index=VIDEO,
        **INDEX,
    )
    return hf.VideoLlavaForConditionalGeneration(config)


QWEN_VISION: dict[str, Any] = {
    "depth": 2,
    "num_heads": 4,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}
GRID_VISION: dict[str, Any] = {
    **QWEN_VISION,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "out_hidden_size": WIDTH,
}
QWEN3_VISION: dict[str, Any] = {**GRID_VISION, "num_position_embeddings": 64}
QWEN2_5_VISION: dict[str, Any] = {**GRID_VISION, "fullatt_block_indexes": [1], "window_size": 16}
GLM_VISION: dict[str, Any] = {**GRID_VISION, "image_size": 32}
GLM_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}
QWEN_IDS: dict[str, Any] = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
GLM_IDS: dict[str, Any] = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": TILE,
    "video_end_token_id": GLOBAL,
}
SAM: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "output_channels": 16,
    "mlp_dim": 64,
    "image_size": 64,
    "patch_size": 4,
    "window_size": 4,
    "global_attn_indexes": [1],
}


def qwen2_vl() -> Any:
    vision = {**QWEN_VISION, "embed_dim": WIDTH, "hidden_size": WIDTH}
    text = {**TEXT, "rope_parameters": MROPE}
    config = hf.Qwen2VLConfig(text_config=text, vision_config=vision, **QWEN_IDS)
    return hf.Qwen2VLForConditionalGeneration(config)


def qwen2_5_vl() -> Any:
    text = {**TEXT, "rope_parameters": MROPE}
    config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=QWEN2_5_VISION, **QWEN_IDS)
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl() -> Any:
    vision = {**QWEN3_VISION, "deepstack_visual_indexes": [0, 1]}
    text = {**TEXT, "head_dim": 8, "rope_parameters": MROPE}
    config = hf.Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_IDS)
    return hf.Qwen3VLForConditionalGeneration(config)


def glm4v() -> Any:
    text = {**TEXT, "rope_parameters": GLM_ROPE}
    config = hf.Glm4vConfig(text_config=text, vision_config=GLM_VISION, **GLM_IDS)
    return hf.Glm4vForConditionalGeneration(config)


def internvl() -> Any:
    vision = {**VISION, "image_size": [32, 32], "patch_size": [4, 4]}
    config = hf.InternVLConfig(
        text_config=qwen2(), vision_config=vision, image_token_id=IMAGE, image_seq_length=16
    )
    return hf.InternVLForConditionalGeneration(config)


def shuffled() -> dict[str, Any]:
    """Return arguments that the configurations of Idefics3 and SmolVLM share."""
    return {
        "text_config": llama(),
        "vision_config": {**VISION, "image_size": 32, "patch_size": 4},
        "image_token_id": IMAGE,
        "scale_factor": 2,
        "pad_token_id": PAD,
    }


def idefics3() -> Any:
    return hf.Idefics3ForConditionalGeneration(hf.Idefics3Config(**shuffled()))


def smolvlm() -> Any:
    return hf.SmolVLMForConditionalGeneration(hf.SmolVLMConfig(**shuffled()))


def idefics2() -> Any:
    config = hf.Idefics2Config(
        text_config=hf.MistralConfig(**TEXT),
        vision_config={**VISION, "image_size": 32, "patch_size": 4},
        perceiver_config={
            "hidden_size": WIDTH,
            "resampler_n_latents": 8,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "num_key_value_heads": 1,
        },
        image_token_id=IMAGE,
    )
    return hf.Idefics2ForConditionalGeneration(config)


def paligemma() -> Any:
    config = hf.PaliGemmaConfig(
        text_config=hf.GemmaConfig(**TEXT, head_dim=8),
        vision_config={
            **VISION,
            "image_size": 16,
            "patch_size": 4,
            "model_type": "siglip_vision_model",
        },
        projection_dim=WIDTH,
        hidden_size=WIDTH,
        **INDEX,
    )
    return hf.PaliGemmaForConditionalGeneration(config)


def gemma3() -> Any:
    text = hf.Gemma3TextConfig(
        **TEXT,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=256,
        layer_types=["sliding_attention", "full_attention"],
    )
    config = hf.Gemma3Config(
        text_config=text, vision_config=siglip(32), mm_tokens_per_image=16, **INDEX
    )
    return hf.Gemma3ForConditionalGeneration(config)


def mistral3() -> Any:
    vision = hf.PixtralVisionConfig(**VISION, image_size=32, patch_size=4, head_dim=8)
    config = hf.Mistral3Config(
        text_config=hf.MistralConfig(**TEXT), vision_config=vision, spatial_merge_size=2, **INDEX
    )
    return hf.Mistral3ForConditionalGeneration(config)


def cohere2() -> hf.Cohere2Config:
    return hf.Cohere2Config(
        **TEXT, sliding_window=256, layer_types=["sliding_attention", "full_attention"]
    )


def aya_vision() -> Any:
    config = hf.AyaVisionConfig(text_config=cohere2(), vision_config=siglip(32), **INDEX)
    return hf.AyaVisionForConditionalGeneration(config)


def cohere2_vision() -> Any:
    config = hf.Cohere2VisionConfig(
        text_config=cohere2(),
        vision_config=siglip(32),
        image_token_id=IMAGE,
        alignment_intermediate_size=64,
    )
    return hf.Cohere2VisionForConditionalGeneration(config)


def got_ocr2() -> Any:
    config = hf.GotOcr2Config(text_config=qwen2(), vision_config=SAM, **INDEX)
    return hf.GotOcr2ForConditionalGeneration(config)


def lfm2_vl() -> Any:
    text = hf.Lfm2Config(
        **{**TEXT, "intermediate_size": 64},
        layer_types=["conv", "full_attention"],
        block_multiple_of=8,
        conv_L_cache=3,
    )
    vision = hf.Siglip2VisionConfig(**VISION, patch_size=4, num_patches=64)
    config = hf.Lfm2VlConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, projector_hidden_size=64
    )
    return hf.Lfm2VlForConditionalGeneration(config)


def perception_lm() -> Any:
    """Build it with another tower of the same output: its real one needs timm."""
    vision = siglip()
    vision.model_args = {"embed_dim": WIDTH}
    config = hf.PerceptionLMConfig(
        text_config=llama(),
        vision_config=vision,
        vision_use_cls_token=False,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return hf.PerceptionLMForConditionalGeneration(config)


def fast_vlm() -> Any:
    """Build it with another convolutional tower: its real one needs timm."""
    vision = hf.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, WIDTH], depths=[1, 1], layer_type="basic"
    )
    vision.hidden_size = WIDTH
    config = hf.FastVlmConfig(text_config=qwen2(), vision_config=vision, **INDEX)
    return hf.FastVlmForConditionalGeneration(config)


def ovis2() -> Any:
    vision = {
        **VISION,
        "image_size": 16,
        "patch_size": 4,
        "vocab_size": 40,
        "num_visual_indicator_tokens": 5,
    }
    config = hf.Ovis2Config(
        text_config=qwen2(),
        vision_config=vision,
        image_token_id=IMAGE,
        visual_indicator_token_ids=[START, END, BREAK, TILE, GLOBAL],
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
    )
    return hf.Ovis2ForConditionalGeneration(config)


def deepseek_vl() -> Any:
    config = hf.DeepseekVLConfig(text_config=llama(), vision_config=siglip(), image_token_id=IMAGE)
    return hf.DeepseekVLForConditionalGeneration(config)


def janus() -> Any:
    vision = {**VISION, "image_size": 16, "patch_size": 4, "projection_dim": WIDTH, "mlp_ratio": 2}
    vision.pop("intermediate_size")
    codes = {
        "embed_dim": 4,
        "num_embeddings": 8,
        "latent_channels": 4,
        "base_channels": 32,
        "channel_multiplier": [1],
        "num_res_blocks": 1,
        "projection_dim": WIDTH,
        "image_token_embed_dim": WIDTH,
    }
    config = hf.JanusConfig(
        text_config=llama(), vision_config=vision, vq_config=codes, image_token_id=IMAGE
    )
    return hf.JanusForConditionalGeneration(config)
