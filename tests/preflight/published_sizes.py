"""Folders with the configuration of published models, without weights."""

from pathlib import Path

from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig


def llava(folder: Path, name: str) -> str:
    """Write the configuration of LLaVA-1.5 (7b, 13b) or of a 70b model, without weights."""
    sizes = {
        "7b": (4096, 11008, 32, 32, 32),
        "13b": (5120, 13824, 40, 40, 40),
        "70b": (8192, 28672, 80, 64, 8),
    }
    width, mlp, layers, heads, key_heads = sizes[name]
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        tie_word_embeddings=False,
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=32000, image_seq_length=576
    ).save_pretrained(folder)
    assert isinstance(AutoConfig.from_pretrained(folder), LlavaConfig)
    return str(folder)
