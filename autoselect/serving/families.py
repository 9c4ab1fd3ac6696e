"""The architectures that can be pruned in vLLM.

One is in the list if `tests/serving` finds that its tiny model equals `attach()` on the same
pixels. Every other one is refused when a model's configuration asks for a selector.
"""

from autoselect.config import ConfigError
from autoselect.serving import BLOCK

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

BEFORE_PROJECTOR = ("InternVLForConditionalGeneration", "LlavaForConditionalGeneration")
"""Architectures that can also be pruned before their projector."""


def check_architecture(name: str) -> None:
    """Raise ConfigError if models of a class cannot be pruned in vLLM."""
    if name not in FAMILIES:
        raise ConfigError(
            f"{name} cannot be pruned in vLLM, so {BLOCK} in its configuration is refused; choose "
            f"a model of {', '.join(sorted(FAMILIES))}"
        )


def check_site(site: str, architecture: str | None = None) -> None:
    """Raise ConfigError if vLLM does not give what a selector of a site scores.

    Args:
        site: that of the selector, see `autoselect.vlm.sites`.
        architecture: name of the model's class; None if it is not known yet.
    """
    fitting = site == "before_projector" and architecture in (None, *BEFORE_PROJECTOR)
    if site != "after_projector" and not fitting:
        raise ConfigError(
            f"a selector of site={site} cannot prune {architecture or 'models'} in vLLM; use one "
            "of site=after_projector, or of site=before_projector for "
            f"{' and '.join(BEFORE_PROJECTOR)}"
        )
