"""Still more tiny models with random weights of families that people use, see `tiny_newer`."""

from typing import Any

import transformers as hf

from tests.vlm.tiny_models import MROPE, TEXT, VISION
from tests.vlm.tiny_newer import EXPERTS, LINEAR
from tests.vlm.tiny_newest import BOTH_IDS, TWO_KINDS
from tests.vlm.tiny_prompts import IMAGE, WIDTH

LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "index_head_dim": 8,
    "index_n_heads": 2,
    **EXPERTS,
}


def step3p7() -> Any:
    text = {
        **TEXT,
        **EXPERTS,
        "head_dim": 8,
        "sliding_window": 256,
        "layer_types": TWO_KINDS,
        "mlp_layer_types": ["dense", "sparse"],
        "n_routed_experts": 4,
        "share_expert_dim": 32,
    }
    config = hf.Step3p7Config(
        text_config=text,
        vision_config={**VISION, "image_size": 64, "patch_size": 4, "mlp_ratio": 2.0},
        image_token_id=IMAGE,
    )
    return hf.Step3p7ForConditionalGeneration(config)


def deepseek_ocr2() -> Any:
    sam = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "output_channels": 16,
        "downsample_channels": [16, WIDTH],
        "mlp_dim": 64,
        "image_size": 64,
        "patch_size": 4,
        "window_size": 4,
        "global_attn_indexes": [1],
    }
    encoder = {**TEXT, "max_position_embeddings": 64}
    text = {
        **TEXT,
        **EXPERTS,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "mlp_layer_types": ["dense", "sparse"],
    }
    config = hf.DeepseekOcr2Config(
        text_config=text,
        vision_config={"sam_config": sam, "encoder_config": encoder},
        image_token_id=IMAGE,
    )
    return hf.DeepseekOcr2ForConditionalGeneration(config)


def mistral_large4() -> Any:
    text = {**TEXT, **LATENT, "index_topk": 256, "first_k_dense_replace": 1}
    config = hf.MistralLarge4Config(
        text_config=text,
        vision_config={
            **VISION,
            "image_size": 32,
            "patch_size": 4,
            "head_dim": 8,
            "model_type": "pixtral",
        },
        image_token_index=IMAGE,
    )
    return hf.MistralLarge4ForConditionalGeneration(config)


def dots3_note() -> Any:
    sliding = {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "head_dim": 16,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    }
    text = {
        **TEXT,
        **LATENT,
        "head_dim": 16,
        "index_topk": 256,
        "sliding_window": 256,
        "layer_types": ["sliding_attention", "indexed_attention"],
        "shared_experts_intermediate_size": 32,
        **{f"swa_{name}": value for name, value in sliding.items()},
    }
    vision = {
        **VISION,
        "patch_size": 4,
        "moe_intermediate_size": 32,
        "num_local_experts": 4,
        "mlp_layer_types": ["dense", "sparse"],
        "adapter_in_dim": WIDTH,
        "adapter_out_dim": WIDTH,
    }
    audio = {
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "feature_size": 8,
        "downsample_hidden_size": 8,
        "adapter_input_size": WIDTH,
        "adapter_out_dim": WIDTH,
    }
    config = hf.Dots3NoteConfig(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        audio_token_id=14,
        **BOTH_IDS,
    )
    return hf.Dots3NoteForConditionalGeneration(config)


def minicpm(**more: Any) -> dict[str, Any]:
    """Return arguments that the MiniCPM-V configurations share."""
    vision = {**VISION, "image_size": 32, "patch_size": 4}
    text = {**TEXT, **LINEAR, "head_dim": 8, "rope_parameters": MROPE}
    return {
        "text_config": {**text, "model_type": "qwen3_5_text"},
        "vision_config": vision,
        "insert_layer_id": 0,
        **BOTH_IDS,
        **more,
    }


def minicpmv4_6() -> Any:
    return hf.MiniCPMV4_6ForConditionalGeneration(hf.MiniCPMV4_6Config(**minicpm()))


def minicpm_ocr() -> Any:
    return hf.MiniCPMOcrForConditionalGeneration(hf.MiniCPMOcrConfig(**minicpm()))
