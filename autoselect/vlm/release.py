"""Which releases of transformers are supported, and what they call the cache of keys and values."""

import inspect
from collections.abc import Mapping
from typing import Any

import transformers
from packaging.version import Version
from transformers import GenerationMixin

from autoselect.config import ConfigError

OLDEST_TRANSFORMERS, FIRST_TOO_NEW = "5.20", "6"
OLD_NAME, NEW_NAME = "past_key_values", "cache"  # transformers 5.24 renamed it


def _arguments_of_generate() -> Mapping[str, Any]:
    return inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters


CACHE = NEW_NAME if NEW_NAME in _arguments_of_generate() else OLD_NAME


def check_release(model: Any) -> None:
    """Check that a model's `forward` and `generate` have the arguments that are rewritten here.

    Raises:
        ConfigError: transformers is too old, or so new that it calls the cache by another name; or
            the model has another `forward` than transformers' classes of VLMs.
    """
    have = f"transformers=={transformers.__version__}"
    fix = f'pip install "transformers>={OLDEST_TRANSFORMERS},<{FIRST_TOO_NEW}"'
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        if Version(transformers.__version__) >= Version(OLDEST_TRANSFORMERS):
            raise ConfigError(
                f"model={type(model).__name__} ({model.config.model_type}) has a forward without "
                f"the argument mm_encoder_outputs, which the VLMs of {have} have; give a model of "
                "docs/backbones.md in transformers' own class with its own forward, or the part "
                "of an omni model that sees images, such as model.thinker"
            )
        raise ConfigError(
            f"{have} gives {type(model).__name__} no argument mm_encoder_outputs; "
            f"{OLDEST_TRANSFORMERS} or newer is needed: {fix}"
        )
    if CACHE not in _arguments_of_generate():
        raise ConfigError(
            f"{have} calls the cache neither {OLD_NAME} nor {NEW_NAME}, so the cache of a pruned "
            f"prompt would be continued wrongly; an older release is needed: {fix}"
        )


def named_as_now(call: dict[str, Any]) -> dict[str, Any]:
    """Return a call in which a cache under its old name has the name of the installed release.

    A call with both names is returned unchanged: transformers refuses it.
    """
    if CACHE == OLD_NAME or OLD_NAME not in call or CACHE in call:
        return call
    renamed = dict(call)
    renamed[CACHE] = renamed.pop(OLD_NAME)
    return renamed
