"""Tiny models with random weights of families with a layout of their own, see `tiny_newer`."""

from typing import Any

import transformers as hf

from tests.vlm.tiny_models import GLM_IDS, GLM_VISION, MROPE, TEXT, VISION
from tests.vlm.tiny_newer import EXPERTS, HUNYUAN_VISION
from tests.vlm.tiny_newest import BOTH_IDS, CODES
from tests.vlm.tiny_prompts import END, GLOBAL, IMAGE, START, TILE, VOCABULARY, WIDTH
from tests.vlm.tiny_recent import LATENT, TWO_STEPS

SHORT_CONVOLUTIONS: dict[str, Any] = {
    "layer_types": ["hybrid_sliding", "hybrid"],
    "head_dim": 8,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "sliding_window_size": 256,
    "d_rel": 4,
    "rel_extent": 256,
    "conv_kernel_size": 3,
    "n_routed_experts": 4,
    **EXPERTS,
}


def glm5_next() -> Any:
    text = {
        **TEXT,
        **LATENT,
        "qk_rope_head_dim": 0,
        "layer_types": ["linear_attention", "indexed_attention"],
        "indexer_types": ["full", "full"],
        "mlp_layer_types": ["dense", "sparse"],
        "index_topk": 256,
        "index_kpool": 4,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "linear_conv_kernel_dim": 3,
        "hc_mult": 2,
    }
    config = hf.Glm5NextConfig(
        text_config=text,
        vision_config={**GLM_VISION, "projection_intermediate_size": 64},
        **GLM_IDS,
    )
    return hf.Glm5NextForConditionalGeneration(config)


def molmo2() -> Any:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    config = hf.Molmo2Config(
        text_config={**TEXT, "head_dim": 8, "additional_vocab_size": 0},
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            **heads,
            "image_size": [16, 16],
            "patch_size": 4,
            "initializer_range": 0.1,
        },
        adapter_config={
            "vision_feature_layer": [1, 0],
            "hidden_size": WIDTH,
            "intermediate_size": 64,
            "text_hidden_size": WIDTH,
            "initializer_range": 0.1,
            **heads,
        },
        image_patch_id=IMAGE,
        image_start_token_id=START,
        low_res_image_start_token_id=GLOBAL,
        image_end_token_id=END,
        frame_start_token_id=TILE,
        frame_end_token_id=END,
    )
    return hf.Molmo2ForConditionalGeneration(config)


def llama4(vision_width: int = WIDTH) -> Any:
    """Build it with vectors of `vision_width` channels before its projector."""
    text = {
        **TEXT,
        "intermediate_size_mlp": 64,
        "head_dim": 8,
        "num_local_experts": 4,
        "moe_layers": [1],
        "no_rope_layers": [1, 0],
        "attention_chunk_size": 256,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 4,
        "projector_input_dim": vision_width,
        "projector_output_dim": vision_width,
        "vision_output_dim": vision_width,
    }
    config = hf.Llama4Config(
        text_config=text,
        vision_config=vision,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    )
    model = hf.Llama4ForConditionalGeneration(config)
    model.language_model.register_forward_hook(with_image_outputs)
    return model


def with_image_outputs(module: Any, arguments: Any, output: Any) -> Any:
    """Add what Llama 4 of transformers 5.24 reads and its language model does not give."""
    output.image_outputs = None
    return output


def inkling_mm_model() -> Any:
    text = {**TEXT, **SHORT_CONVOLUTIONS, "mlp_layer_types": ["dense", "sparse"]}
    vision = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "patch_size": 4,
        "temporal_patch_size": 2,
    }
    config = hf.InklingConfig(
        text_config={
            **text,
            "n_shared_experts": 1,
            "logits_mup_width_multiplier": 2.0,
            "initializer_range": 0.1,
        },
        vision_config=vision,
        audio_config={"n_mel_bins": 8, "mel_vocab_size": 4},
        image_token_id=IMAGE,
        audio_token_id=14,
    )
    return hf.InklingForConditionalGeneration(config)


def inkling2() -> Any:
    text = {name: value for name, value in TEXT.items() if name != "intermediate_size"}
    vision = {
        **VISION,
        "patch_size": 2,
        "posemb_grid_size": 4,
        "projection_hidden_dim": 64,
        "text_hidden_size": WIDTH,
    }
    config = hf.Inkling2Config(
        text_config={**text, **SHORT_CONVOLUTIONS, "unpadded_vocab_size": VOCABULARY},
        vision_config=vision,
        image_token_id=IMAGE,
    )
    return hf.Inkling2ForConditionalGeneration(config)


def nemotron_h_omni() -> Any:
    text = {
        **{name: value for name, value in TEXT.items() if name != "num_hidden_layers"},
        **EXPERTS,
        "model_type": "nemotron_h",
        "layer_types": ["linear_attention", "moe", "full_attention", "mlp"],
        "head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "conv_kernel": 3,
        "chunk_size": 16,
        "n_routed_experts": 4,
        "moe_shared_expert_intermediate_size": 32,
        "initializer_range": 0.1,
    }
    vision = {
        "model_type": "radio",
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 4,
        "max_img_size": 32,
        "num_cls_tokens": 2,
        "num_registers": 1,
        "video_temporal_patch_size": 2,
    }
    config = hf.NemotronH_Omni_Reasoning_V3_Config(
        text_config=text,
        vision_config=vision,
        projector_hidden_size=64,
        vision_hidden_size=WIDTH,
        **BOTH_IDS,
    )
    return hf.NemotronH_Omni_Reasoning_V3(config)


def unlimited_ocr() -> Any:
    text = {
        **TEXT,
        **EXPERTS,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "mlp_layer_types": ["dense", "sparse"],
        "sliding_window": 256,
    }
    config = hf.UnlimitedOcrConfig(
        text_config=text,
        vision_config={
            "sam_config": {**TWO_STEPS, "initializer_range": 0.02},
            "encoder_config": {**VISION, "image_size": 16, "patch_size": 4},
        },
        image_token_id=IMAGE,
    )
    return hf.UnlimitedOcrForConditionalGeneration(config)


def inkling2_loop() -> Any:
    own = inkling2().config
    text = {
        **own.text_config.to_dict(),
        "n_layers_per_attn_res_block": 1,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 2,
        "loop_num_passes": 2,
        "loop_gate_rank": 4,
    }
    config = hf.Inkling2LoopConfig(
        text_config={name: value for name, value in text.items() if name != "model_type"},
        vision_config=own.vision_config,
        image_token_id=IMAGE,
    )
    return hf.Inkling2LoopForConditionalGeneration(config)


def hy_v4_vl() -> Any:
    text = {
        **TEXT,
        **LATENT,
        "index_topk": 256,
        "indexer_types": ["full", "full"],
        "rope_parameters": MROPE,
        "initializer_range": 0.1,
    }
    config = hf.HYV4VLConfig(text_config=text, vision_config=HUNYUAN_VISION, **BOTH_IDS)
    return hf.HYV4VLForConditionalGeneration(config)


def apertus1p5() -> Any:
    audio = {
        "model_type": "wavtokenizer_encoder",
        "num_filters": 4,
        "upsampling_ratios": [2, 2],
        "num_lstm_layers": 1,
        "hidden_size": 8,
        "codebook_dim": 8,
        "codebook_size": 4,
    }
    config = hf.Apertus1p5Config(
        text_config=TEXT,
        vision_config={**CODES, "codebook_size": 16},
        audio_config=audio,
        image_token_id=IMAGE,
        image_token_offset=40,
        audio_token_id=14,
        audio_token_offset=56,
    )
    return hf.Apertus1p5ForConditionalGeneration(config)
