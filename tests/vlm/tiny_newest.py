"""More tiny models with random weights of families that need no entry, see `tiny_newer`."""

from typing import Any

import transformers as hf

from tests.vlm.tiny_models import INDEX, MROPE, QWEN_IDS, TEXT, VISION, siglip
from tests.vlm.tiny_newer import (
    EXPERTS,
    GRID_TEXT,
    LINEAR,
    QWEN2_5_VISION,
    QWEN3_VISION,
)
from tests.vlm.tiny_prompts import IMAGE, VIDEO, WIDTH

DEEPSTACK: dict[str, Any] = {**QWEN3_VISION, "deepstack_visual_indexes": [0, 1]}
TWO_KINDS = ["sliding_attention", "full_attention"]
BOTH_IDS: dict[str, Any] = {"image_token_id": IMAGE, "video_token_id": VIDEO}


def shieldgemma2() -> Any:
    text = hf.Gemma3TextConfig(
        **TEXT, head_dim=8, query_pre_attn_scalar=8, sliding_window=256, layer_types=TWO_KINDS
    )
    config = hf.ShieldGemma2Config(
        text_config=text, vision_config=siglip(32), mm_tokens_per_image=16, **INDEX
    )
    return hf.Gemma3ForConditionalGeneration(config)


def cosmos3_omni() -> Any:
    config = hf.Cosmos3OmniConfig(
        text_config={**GRID_TEXT, "model_type": "qwen3_vl_text"},
        vision_config={**DEEPSTACK, "model_type": "qwen3_vl_vision"},
        **QWEN_IDS,
    )
    return hf.Cosmos3OmniForConditionalGeneration(config)


def cohere_compass() -> Any:
    text = {**TEXT, "head_dim": 8, "sliding_window": 256, "layer_types": TWO_KINDS}
    text["logit_scale"] = 0.5
    text["rope_parameters"] = dict.fromkeys(TWO_KINDS, MROPE)
    config = hf.CohereCompassConfig(text_config=text, vision_config=DEEPSTACK, **QWEN_IDS)
    return hf.CohereCompassForConditionalGeneration(config)


def hyperclovax_vision_v2() -> Any:
    config = hf.HyperCLOVAXVisionV2Config(
        text_config={**TEXT, "head_dim": 8, "logits_scaling": 0.5, "model_type": "hyperclovax"},
        vision_config={**QWEN2_5_VISION, "model_type": "qwen2_5_vl_vision"},
        **BOTH_IDS,
    )
    return hf.HyperCLOVAXVisionV2ForConditionalGeneration(config)


def qwen4_exp() -> Any:
    text = {
        **GRID_TEXT,
        **LINEAR,
        **EXPERTS,
        "layer_types": ["linear_attention", "indexed_attention"],
        "num_experts": 4,
        "shared_expert_intermediate_size": 32,
        "hc_count": 2,
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 256,
        "indexer_compress_ratio": 1,
        "ngram_vocab_size_base": 64,
        "ple_embed_dim": 32,
    }
    config = hf.Qwen4ExpConfig(text_config=text, vision_config=QWEN3_VISION, **QWEN_IDS)
    return hf.Qwen4ExpForConditionalGeneration(config)


def kimi_k25() -> Any:
    text = {
        **TEXT,
        **EXPERTS,
        "num_key_value_heads": 4,
        "first_k_dense_replace": 0,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "n_group": 1,
        "topk_group": 1,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "model_type": "deepseek_v3",
    }
    config = hf.Kimi_K25Config(
        text_config=text,
        vision_config={**VISION, "patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8},
        projection_hidden_size=WIDTH,
        **BOTH_IDS,
    )
    return hf.Kimi_K25ForConditionalGeneration(config)


def qianfan_ocr() -> Any:
    config = hf.QianfanOCRConfig(
        text_config={**TEXT, "head_dim": 8, "model_type": "qwen3"},
        vision_config={**VISION, "image_size": [32, 32], "patch_size": [4, 4]},
        image_token_id=IMAGE,
        image_seq_length=16,
    )
    return hf.QianfanOCRForConditionalGeneration(config)


def muse(text: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return arguments that both Muse configurations share."""
    vision = {
        **VISION,
        "patch_size": 4,
        "patch_temporal": 2,
        "merge_size": 2,
        "layer_types": ["window_attention", "full_attention"],
        "pos_emb_height": 8,
        "pos_emb_width": 8,
        "max_position_embeddings": 64,
    }
    shared = {"head_dim": 8, "sliding_window": 256, "layer_types": TWO_KINDS}
    return {
        "text_config": {**TEXT, **shared, "layer_rope_theta": [10000.0, 0], **text},
        "vision_config": vision,
        "out_hidden_size": 4 * WIDTH,
        "projector_hidden_size": WIDTH,
        **BOTH_IDS,
    }


def muse_glimmer() -> Any:
    return hf.MuseGlimmerForConditionalGeneration(hf.MuseGlimmerConfig(**muse({}, "glimmer")))


def muse_spark() -> Any:
    text = {
        "mlp_layer_types": ["sparse", "dense"],
        "moe_hidden_size": WIDTH,
        "moe_intermediate_size": 32,
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
    }
    audio = {
        "depths": [1, 1],
        "hidden_sizes": [8, 16],
        "patch_sizes": [4, 4],
        "num_hidden_layers": 2,
        "out_hidden_size": WIDTH,
    }
    config = hf.MuseSparkConfig(**muse(text, "spark"), audio_config=audio, audio_token_id=14)
    return hf.MuseSparkForConditionalGeneration(config)


def lfm3_vl() -> Any:
    text = {**TEXT, "head_dim": 8, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3}
    config = hf.Lfm3VlConfig(
        text_config={**text, "model_type": "lfm3"},
        vision_config={**VISION, "num_key_value_heads": 4, "patch_size": 4},
        projector_hidden_size=64,
        **BOTH_IDS,
    )
    return hf.Lfm3VlForConditionalGeneration(config)


def cosmos3_edge() -> Any:
    config = hf.Cosmos3EdgeConfig(
        text_config=GRID_TEXT,
        vision_config={**VISION, "patch_size": 4, "num_patches": 64, "spatial_merge_size": 2},
        projector_hidden_size=64,
        **QWEN_IDS,
    )
    return hf.Cosmos3EdgeForConditionalGeneration(config)


def minimax_m3_vl() -> Any:
    text = {
        **TEXT,
        "head_dim": 8,
        "rotary_dim": 8,
        "dense_intermediate_size": 64,
        "index_head_dim": 8,
        "index_n_heads": 2,
        "mlp_layer_types": ["dense", "sparse"],
        "layer_types": ["full_attention", "full_attention"],
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
    }
    config = hf.MiniMaxM3VLConfig(
        text_config=text,
        vision_config={**VISION, "image_size": 32, "patch_size": 4},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        projector_hidden_size=WIDTH,
        merged_hidden_size=4 * WIDTH,
    )
    return hf.MiniMaxM3SparseForConditionalGeneration(config)


def fuyu() -> Any:
    config = hf.FuyuConfig(
        text_config={**TEXT, "num_key_value_heads": 4, "model_type": "persimmon"},
        image_size=16,
        patch_size=4,
        image_token_id=IMAGE,
    )
    return hf.FuyuForCausalLM(config)


CODES: dict[str, Any] = {
    "embed_dim": 8,
    "latent_channels": 8,
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
    "resolution": 8,
    "attn_resolutions": [],
}


def chameleon() -> Any:
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    words = {f"IMGIMG{str(code).translate(letters)}Z": 40 + code for code in range(16)}
    config = hf.ChameleonConfig(
        **TEXT,
        vq_config={**CODES, "num_embeddings": 16},
        vocabulary_map={**words, "<image>": IMAGE},
        swin_norm=False,
    )
    return hf.ChameleonForConditionalGeneration(config)


def gemma4() -> Any:
    text = {
        **TEXT,
        "head_dim": 8,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 96,
        "final_logit_softcapping": 30.0,
        "sliding_window": 256,
        "layer_types": TWO_KINDS,
    }
    vision = {**VISION, "patch_size": 4, "head_dim": 8, "pooling_kernel_size": 2}
    vision["num_key_value_heads"] = 4
    config = hf.Gemma4Config(text_config=text, vision_config=vision, **BOTH_IDS)
    return hf.Gemma4ForConditionalGeneration(config)
