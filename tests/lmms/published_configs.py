"""Architectures of public checkpoints, copied by hand from `config.json` on the hub.

They hold only the fields that determine sizes; everything else has the default of its class.
"""

CLIP_L_336 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
SIGLIP_SO400M = {
    "model_type": "smolvlm_vision",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "image_size": 384,
    "patch_size": 14,
}
VICUNA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32064,
}
VICUNA_13B = VICUNA_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}
QWEN2_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 151674,
}
LLAVA = {
    "model_type": "llava",
    "image_token_index": 32000,
    "image_seq_length": 576,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vision_config": CLIP_L_336,
}

# Name of the preset: configuration, and parameters in billions as the model's page says them.
PUBLISHED = {
    "llava-1.5-7b": (LLAVA | {"text_config": VICUNA_7B}, 7.06),
    "llava-1.5-13b": (LLAVA | {"text_config": VICUNA_13B}, 13.35),
    "llava-next-7b": (
        {
            "model_type": "llava_next",
            "image_token_index": 32000,
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
            "text_config": VICUNA_7B,
            "vision_config": CLIP_L_336,
        },
        7.06,
    ),
    "qwen2.5-vl-7b": (
        {
            "model_type": "qwen2_5_vl",
            "text_config": {
                "model_type": "qwen2_5_vl_text",
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "vocab_size": 152064,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1000000.0,
                    "mrope_section": [16, 24, 24],
                },
            },
            "vision_config": {
                "model_type": "qwen2_5_vl",
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
        },
        8.29,
    ),
    "internvl3-8b": (
        {
            "model_type": "internvl",
            "image_seq_length": 256,
            "downsample_ratio": 0.5,
            "tie_word_embeddings": False,
            "text_config": QWEN2_7B,
            "vision_config": {
                "model_type": "internvl_vision",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
                "image_size": [448, 448],
                "patch_size": [14, 14],
            },
        },
        7.94,
    ),
    "smolvlm": (
        {
            "model_type": "smolvlm",
            "scale_factor": 3,
            "image_token_id": 49190,
            "text_config": {
                "model_type": "llama",
                "hidden_size": 2048,
                "intermediate_size": 8192,
                "num_hidden_layers": 24,
                "num_attention_heads": 32,
                "vocab_size": 49280,
            },
            "vision_config": SIGLIP_SO400M,
        },
        2.25,
    ),
}
