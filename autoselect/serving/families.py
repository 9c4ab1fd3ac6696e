"""The vLLM classes that can be pruned, and what each has in common with `attach`.

A family is in the list if `tests/serving` has found its tiny model equal to `attach()` on the same
pixels. Every other architecture is refused when a model's configuration asks for a selector.
"""

FAMILIES = {
    "LlavaForConditionalGeneration": "llava",
}
"""Architectures with their modules in `vllm.model_executor.models`."""
