"""Tiny models with random weights of families that need no entry in `autoselect.vlm.families`."""

from typing import Any

import transformers as hf

from tests.vlm.tiny_models import (
    GLM_IDS,
    GLM_ROPE,
    GLM_VISION,
    INDEX,
    MROPE,
    QWEN2_5_VISION,
    QWEN3_VISION,
    QWEN_IDS,
    QWEN_VISION,
    SAM,
    TEXT,
    VISION,
    siglip,
)
from tests.vlm.tiny_prompts import END, IMAGE, START, TILE, VIDEO, WIDTH

GRID_TEXT: dict[str, Any] = {**TEXT, "head_dim": 8, "rope_parameters": MROPE}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def qwen3_5() -> Any:
    config = hf.Qwen3_5Config(
        text_config={**GRID_TEXT, **LINEAR}, vision_config=QWEN3_VISION, **QWEN_IDS
    )
    return hf.Qwen3_5ForConditionalGeneration(config)


def qwen3_5_moe() -> Any:
    text = {
        **GRID_TEXT,
        **LINEAR,
        **EXPERTS,
        "num_experts": 4,
        "shared_expert_intermediate_size": 32,
    }
    config = hf.Qwen3_5MoeConfig(text_config=text, vision_config=QWEN3_VISION, **QWEN_IDS)
    return hf.Qwen3_5MoeForConditionalGeneration(config)


def qwen3_vl_moe() -> Any:
    config = hf.Qwen3VLMoeConfig(
        text_config={**GRID_TEXT, **EXPERTS, "num_local_experts": 4},
        vision_config={**QWEN3_VISION, "deepstack_visual_indexes": [0, 1]},
        **QWEN_IDS,
    )
    return hf.Qwen3VLMoeForConditionalGeneration(config)


def qwen2_5_omni_thinker() -> Any:
    config = hf.Qwen2_5OmniThinkerConfig(
        text_config=GRID_TEXT,
        vision_config=QWEN2_5_VISION,
        audio_config=AUDIO,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_token_index=14,
        vision_start_token_id=START,
        audio_start_token_id=15,
        audio_end_token_id=16,
    )
    return hf.Qwen2_5OmniThinkerForConditionalGeneration(config)


AUDIO: dict[str, Any] = {
    "d_model": WIDTH,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "encoder_layers": 1,
    "num_mel_bins": 8,
    "output_dim": WIDTH,
}


def qwen3_omni_moe_thinker() -> Any:
    config = hf.Qwen3OmniMoeThinkerConfig(
        text_config={**GRID_TEXT, **EXPERTS, "num_experts": 4},
        vision_config={**QWEN3_VISION, "deepstack_visual_indexes": [0, 1]},
        audio_config={**AUDIO, "downsample_hidden_size": 8},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=14,
        vision_start_token_id=START,
        audio_start_token_id=15,
    )
    return hf.Qwen3OmniMoeThinkerForConditionalGeneration(config)


def glm46v(kind: Any = hf.Glm46VConfig) -> Any:
    text = {**TEXT, "rope_parameters": GLM_ROPE, "model_type": "glm4v_text"}
    config = kind(
        text_config=text, vision_config={**GLM_VISION, "model_type": "glm4v_vision"}, **GLM_IDS
    )
    return hf.Glm46VForConditionalGeneration(config)


def glmga() -> Any:
    return glm46v(hf.GlmgaConfig)


def glm4v_moe() -> Any:
    text = {
        **TEXT,
        **EXPERTS,
        "head_dim": 8,
        "rope_parameters": GLM_ROPE,
        "n_routed_experts": 4,
        "first_k_dense_replace": 1,
    }
    config = hf.Glm4vMoeConfig(text_config=text, vision_config=GLM_VISION, **GLM_IDS)
    return hf.Glm4vMoeForConditionalGeneration(config)


def glm_ocr() -> Any:
    text = {**TEXT, "head_dim": 8, "rope_parameters": GLM_ROPE}
    config = hf.GlmOcrConfig(text_config=text, vision_config=GLM_VISION, **GLM_IDS)
    return hf.GlmOcrForConditionalGeneration(config)


def ernie4_5_vl_moe() -> Any:
    text = {
        **TEXT,
        "rope_parameters": {**MROPE, "mrope_section": [1, 1, 2]},
        "mlp_layer_types": ["dense", "sparse"],
        "moe_intermediate_size": [32, 16],
        "moe_k": 2,
        "moe_num_experts": 4,
        "moe_num_shared_experts": 1,
    }
    vision = {**QWEN_VISION, "hidden_size": WIDTH, "intermediate_size": 64}
    vision = {n: v for n, v in vision.items() if n != "temporal_patch_size"}
    config = hf.Ernie4_5_VLMoeConfig(
        text_config=text,
        vision_config={**vision, "temporal_merge_size": 2},
        **GLM_IDS,
    )
    return hf.Ernie4_5_VLMoeForConditionalGeneration(config)


def paddleocr_vl() -> Any:
    config = hf.PaddleOCRVLConfig(
        text_config=GRID_TEXT,
        vision_config={**VISION, "image_size": 32, "patch_size": 4, "spatial_merge_size": 2},
        **QWEN_IDS,
    )
    return hf.PaddleOCRVLForConditionalGeneration(config)


def video_llama_3() -> Any:
    config = hf.VideoLlama3Config(
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config={**VISION, "patch_size": 4},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return hf.VideoLlama3ForConditionalGeneration(config)


HUNYUAN_VISION: dict[str, Any] = {
    **VISION,
    "num_key_value_heads": 4,
    "out_hidden_size": WIDTH,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "max_image_size": 32,
}


def hunyuan_vl() -> Any:
    config = hf.HunYuanVLConfig(
        text_config=GRID_TEXT,
        vision_config={**HUNYUAN_VISION, "text_hidden_size": WIDTH},
        image_token_id=IMAGE,
        im_start_id=START,
        im_end_id=END,
        im_newline_id=TILE,
    )
    return hf.HunYuanVLForConditionalGeneration(config)


def exaone4_5() -> Any:
    text = {
        **TEXT,
        "model_type": "exaone4",
        "sliding_window": 256,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    config = hf.Exaone4_5_Config(
        text_config=text,
        vision_config={**QWEN2_5_VISION, "num_key_value_heads": 2},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return hf.Exaone4_5_ForConditionalGeneration(config)


def aria() -> Any:
    text = hf.AriaTextConfig(**TEXT, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
    config = hf.AriaConfig(
        text_config=text,
        vision_config={
            **VISION,
            "image_size": 16,
            "patch_size": 4,
            "model_type": "idefics3_vision",
        },
        projector_patch_to_query_dict={16: 8},
        **INDEX,
    )
    return hf.AriaForConditionalGeneration(config)


def deepseek_vl_hybrid() -> Any:
    config = hf.DeepseekVLHybridConfig(
        text_config=hf.LlamaConfig(**TEXT),
        vision_config=siglip(),
        high_res_vision_config=SAM,
        image_token_id=IMAGE,
    )
    return hf.DeepseekVLHybridForConditionalGeneration(config)


def pp_chart2table() -> Any:
    config = hf.PPChart2TableConfig(
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config=SAM,
        **INDEX,
    )
    return hf.GotOcr2ForConditionalGeneration(config)


def lighton_ocr() -> Any:
    config = hf.LightOnOcrConfig(
        text_config={**TEXT, "model_type": "qwen3", "head_dim": 8},
        vision_config={
            **VISION,
            "image_size": 32,
            "patch_size": 4,
            "head_dim": 8,
            "model_type": "pixtral",
        },
        image_token_id=IMAGE,
        spatial_merge_size=2,
    )
    return hf.LightOnOcrForConditionalGeneration(config)
