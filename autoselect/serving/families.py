"""The architectures that can be pruned in vLLM.

One is in the list if `tests/serving` finds that its tiny model equals `attach()` on the same
pixels. Every other one is refused when a model's configuration asks for a selector.
"""

FAMILIES = {
    "Glm4vForConditionalGeneration": "glm4v",
    "Gemma3ForConditionalGeneration": "gemma3",
    "Idefics3ForConditionalGeneration": "idefics3",
    "InternVLForConditionalGeneration": "internvl",
    "LlavaForConditionalGeneration": "llava",
    "LlavaNextForConditionalGeneration": "llava_next",
    "LlavaOnevisionForConditionalGeneration": "llava_onevision",
    "Mistral3ForConditionalGeneration": "mistral3",
    "Qwen2VLForConditionalGeneration": "qwen2_vl",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "SmolVLMForConditionalGeneration": "smolvlm",
}
"""Architectures with their model types."""
