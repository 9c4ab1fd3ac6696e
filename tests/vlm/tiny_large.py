"""Tiny models with random weights of families with a layout of their own, see `tiny_newer`."""

from typing import Any

import transformers as hf

from tests.vlm.tiny_models import TEXT
from tests.vlm.tiny_newer import GLM_IDS, GLM_VISION
from tests.vlm.tiny_prompts import END, GLOBAL, IMAGE, START, TILE, WIDTH
from tests.vlm.tiny_recent import LATENT


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
    return hf.Llama4ForConditionalGeneration(config)
