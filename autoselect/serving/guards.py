"""Checks of a configuration that asks for a selector, before vLLM loads the model.

vLLM calls a class by architecture (`MODELS_CONFIG_MAP`) when it has read a model's configuration,
and again when it knows all its own settings. The classes here do that for every architecture, so a
family that cannot be pruned is refused instead of being served whole.
"""

from typing import Any

from autoselect.config import ConfigError
from autoselect.config.extras import extra
from autoselect.pruning.hub import other_model
from autoselect.serving.families import check_architecture, check_site
from autoselect.serving.settings import BLOCK, BUDGET_ARGUMENT, ServingSettings

with extra("serving"):
    from vllm import ModelRegistry
    from vllm.logger import init_logger
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
    from vllm.transformers_utils.config import uses_mrope

logger = init_logger("vllm.autoselect")
EXTENDABLE = ("default", "linear", "llama3", "mrope")
"""Kinds of rotary embeddings whose table may be longer without other values."""

FIXED = ("yarn",)
"""Kinds whose table has one length."""


def guard_configurations() -> None:
    """Put a `ConfigurationGuard` before the checks that vLLM has for an architecture."""
    for name in ModelRegistry.get_supported_archs():
        own = MODELS_CONFIG_MAP.get(name, VerifyAndUpdateConfig)
        if not issubclass(own, ConfigurationGuard):
            MODELS_CONFIG_MAP[name] = type(f"Guarded{own.__name__}", (ConfigurationGuard, own), {})


class ConfigurationGuard(VerifyAndUpdateConfig):
    """Mixin before an architecture's own class of `MODELS_CONFIG_MAP`."""

    @classmethod
    def verify_and_update_model_config(cls, model_config: Any) -> None:
        """Check the settings and declare M-RoPE, so that vLLM asks the model for positions."""
        super().verify_and_update_model_config(model_config)
        settings = ServingSettings.of(model_config.hf_config)
        if settings is None:
            return
        check_architecture(model_config.architecture)
        check_selector(settings, model_config)
        if not uses_mrope(model_config.hf_config.get_text_config()):
            model_config.hf_config.mrope_section = [1, 1, 1]

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        """Refuse modes of the engine that are not right with pruning; extend the rope table."""
        super().verify_and_update_config(vllm_config)
        if ServingSettings.of(vllm_config.model_config.hf_config) is None:
            return
        for flag, reason in refused_modes(vllm_config):
            raise ConfigError(f"{flag} does not work with {BLOCK}: {reason}")
        extend_rope_table(vllm_config.model_config)


def check_selector(settings: ServingSettings, model_config: Any) -> None:
    """Load the selector; refuse one of another site or width, and warn of one for another model.

    The width before the projector is known when the model is built, see `model.check_width`.

    Raises:
        ConfigError: it cannot be loaded, or selects at another site or for another width.
    """
    selector, width = settings.load(), model_config.hf_text_config.hidden_size
    check_site(selector.site, model_config.architecture)
    if selector.site == "after_projector":
        selector.check_width(width, str(model_config.model), settings.shown)
    if warning := other_model(selector.metadata, model_config.model):
        logger.warning_once(warning)


def refused_modes(vllm_config: Any) -> list[tuple[str, str]]:
    """Return what is switched on in vLLM's settings that pruning does not support, and why."""
    parallel, lora = vllm_config.parallel_config, vllm_config.lora_config
    multimodal = vllm_config.model_config.multimodal_config
    offsets = "positions of kept tokens are known on the rank alone that embeds images"
    modes = [
        (parallel.pipeline_parallel_size > 1, "--pipeline-parallel-size", offsets),
        (
            getattr(parallel, "prefill_context_parallel_size", 1) > 1,
            "--prefill-context-parallel-size",
            "it divides a prompt after its images are embedded",
        ),
        (
            getattr(parallel, "use_ubatching", False),
            "--enable-dbo",
            "micro-batches share the positions of one step",
        ),
        (
            vllm_config.speculative_config is not None,
            "--speculative-config",
            "drafters read embeddings and positions of their own",
        ),
        (
            lora is not None and lora.enable_tower_connector_lora,
            "--enable-tower-connector-lora",
            "it counts the tokens that stay, not those that are encoded",
        ),
        (
            getattr(vllm_config.compilation_config, "cudagraph_mm_encoder", False),
            "cudagraph_mm_encoder",
            "captured encoders bypass the selector",
        ),
        (
            multimodal is not None and multimodal.video_pruning_rate,
            "--video-pruning-rate",
            "it removes tokens itself; take one of the two",
        ),
        (
            multimodal is not None and multimodal.enable_mm_embeds,
            "--enable-mm-embeds",
            "embeddings of users have no block of tokens to choose from",
        ),
        (
            multimodal is not None and BUDGET_ARGUMENT in (multimodal.mm_processor_kwargs or {}),
            f"{BUDGET_ARGUMENT} in --mm-processor-kwargs",
            f"it is for single requests; write the budget of all into {BLOCK}.budget",
        ),
        (
            multimodal is not None and multimodal.mm_encoder_only,
            "--mm-encoder-only",
            "without a language model nothing is answered",
        ),
    ]
    return [(flag, reason) for is_on, flag, reason in modes if is_on]


def extend_rope_table(model_config: Any) -> None:
    """Let generated tokens continue after the positions that a pruned prompt ends with.

    vLLM stops at `max_model_len` tokens of the pruned sequence. Its positions go as far as the
    longest prompt before pruning and the tokens generated after it.

    Raises:
        ConfigError: the rotary embedding depends on the length of the sequence.
    """
    text = model_config.hf_text_config
    kinds = {own.get("rope_type", "default") for own in rope_parameters(text)}
    if unfit := sorted(kinds - set(EXTENDABLE) - set(FIXED)):
        raise ConfigError(
            f"rope_type={unfit[0]} of {model_config.model} depends on the length of the sequence, "
            f"which pruning changes; choose a model with one of {', '.join(EXTENDABLE + FIXED)}"
        )
    model_config.hf_config.autoselect_positions = text.max_position_embeddings
    if not kinds & set(FIXED):
        text.max_position_embeddings += model_config.max_model_len


def rope_parameters(text: Any) -> list[dict[str, Any]]:
    """Return the rotary parameters of each kind of layer; most models have one set for all."""
    parameters = getattr(text, "rope_parameters", None) or {}
    return [own for own in parameters.values() if isinstance(own, dict)] or [parameters]
