"""Still more tiny models with random weights of families that people use, see `tiny_newer`."""

from typing import Any

import transformers as hf
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tests.vlm.tiny_models import MROPE, SAM, TEXT, VISION
from tests.vlm.tiny_newer import EXPERTS, LINEAR
from tests.vlm.tiny_newest import BOTH_IDS, TWO_KINDS
from tests.vlm.tiny_prompts import BREAK, END, GLOBAL, IMAGE, START, TILE, WIDTH

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


TWO_STEPS = {**SAM, "downsample_channels": [16, WIDTH]}


def deepseek_ocr2() -> Any:
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
        vision_config={"sam_config": TWO_STEPS, "encoder_config": encoder},
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


def minicpmv4_7() -> Any:
    marks = {
        "image_start_id": START,
        "image_end_id": END,
        "slice_start_id": TILE,
        "slice_end_id": GLOBAL,
        "newline_id": BREAK,
    }
    return hf.MiniCPMV4_7ForConditionalGeneration(hf.MiniCPMV4_7Config(**minicpm(**marks)))


VIEWS = [[32, 32], [32, 64], [64, 32]]


def granite4_vision() -> Any:
    vision = hf.SiglipVisionConfig(
        **{**VISION, "hidden_size": 64, "num_attention_heads": 2}, image_size=32, patch_size=4
    )
    config = hf.Granite4VisionConfig(
        text_config={**TEXT, "num_hidden_layers": 5, "logits_scaling": 4.0},
        vision_config=vision,
        qformer_config={
            "model_type": "blip_2_qformer",
            "num_hidden_layers": 1,
            "intermediate_size": 64,
            "vocab_size": 8,
        },
        vision_feature_select_strategy="full",
        image_grid_pinpoints=VIEWS,
        downsample_rate="2/4",
        deepstack_layer_map=[[1, 0]],
        spatial_target_layers=[1, 2, 3, 4],
        image_token_index=IMAGE,
    )
    return hf.Granite4VisionForConditionalGeneration(config)


def granite_docling() -> Any:
    scales = {
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 8**-0.5,
        "logits_scaling": 4.0,
    }
    config = hf.GraniteDoclingConfig(
        text_config={**TEXT, **scales},
        vision_config={
            **VISION,
            "image_size": 32,
            "patch_size": 4,
            "out_hidden_size": WIDTH,
            "scale_factor": 2,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=IMAGE,
        pad_token_id=0,
    )
    return hf.GraniteDoclingForConditionalGeneration(config)


def gemma4_unified() -> Any:
    text = {
        **TEXT,
        "head_dim": 8,
        "final_logit_softcapping": 30.0,
        "global_head_dim": 8,
        "sliding_window": 256,
        "layer_types": TWO_KINDS,
    }
    vision = {
        "patch_size": 2,
        "pooling_kernel_size": 2,
        "mm_embed_dim": WIDTH,
        "mm_posemb_size": 16,
        "output_proj_dims": WIDTH,
    }
    config = hf.Gemma4UnifiedConfig(
        text_config=text,
        vision_config=vision,
        audio_config={"audio_embed_dim": 8},
        audio_token_id=14,
        **BOTH_IDS,
    )
    return hf.Gemma4UnifiedForConditionalGeneration(config)


def emu3() -> Any:
    codes = {
        "codebook_size": 16,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "hidden_size": 32,
    }
    words = {f"<|visual token {code:06d}|>": 40 + code for code in range(16)}
    config = hf.Emu3Config(
        text_config=TEXT,
        vq_config=codes,
        vocabulary_map={**words, "<image>": IMAGE, "<|extra_200|>": 60},
    )
    return hf.Emu3ForConditionalGeneration(config)


class PlainTowerConfig(hf.Gemma3nVisionConfig):
    model_type = "plain_tower"


class PlainTower(hf.PreTrainedModel):
    """Returns a grid of 1/8 of the picture, as timm's MobileNet does."""

    config_class = PlainTowerConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.inside = hf.ResNetModel(
            hf.ResNetConfig(
                embedding_size=16, hidden_sizes=[16, WIDTH], depths=[1, 1], layer_type="basic"
            )
        )
        self.post_init()

    def forward(self, pixel_values, do_pooling=False, **more):
        return BaseModelOutputWithPooling(self.inside(pixel_values).last_hidden_state)


hf.AutoModel.register(PlainTowerConfig, PlainTower)


def gemma3n() -> Any:
    """Build it with another convolutional tower: its real one needs timm."""
    text = {
        **TEXT,
        "head_dim": 8,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "sliding_window": 256,
        "layer_types": 2 * TWO_KINDS,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 96,
        "altup_num_inputs": 2,
        "laurel_rank": 8,
    }
    audio = {
        "hidden_size": 16,
        "vocab_size": 8,
        "vocab_offset": 104,
        "input_feat_size": 16,
        "conf_num_attention_heads": 2,
        "conf_num_hidden_layers": 1,
        "sscp_conv_channel_size": [8, 8],
    }
    config = hf.Gemma3nConfig(
        text_config=text,
        vision_config=PlainTowerConfig(hidden_size=WIDTH, vocab_size=8, vocab_offset=96),
        audio_config=audio,
        vision_soft_tokens_per_image=16,
        image_token_id=IMAGE,
        audio_token_id=14,
    )
    return hf.Gemma3nForConditionalGeneration(config)
