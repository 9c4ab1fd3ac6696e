"""Which methods a model and its data allow."""

import logging
from typing import Any

from autoselect.config import ConfigError
from autoselect.evaluation.answers.attached import is_attachable
from autoselect.evaluation.methods.llm_attention import has_llm_attention
from autoselect.evaluation.methods.registry import Method
from autoselect.evaluation.samples import EvaluationSet

logger = logging.getLogger(__name__)


def usable_methods(
    vlm: Any, samples: EvaluationSet, methods: tuple[Method, ...], strict: bool, common: bool = True
) -> tuple[Method, ...]:
    """The methods that this model and data allow.

    Args:
        vlm: the model.
        samples: the data; boxes must be known for every sample when a method needs them.
        methods: the wanted ones.
        strict: refuse what cannot run instead of leaving it out with a log line.
        common: prompts are put together from embeddings; otherwise methods are attached.

    Raises:
        ConfigError: `strict`, and a method cannot run.
    """
    if not common:
        return _attachable(methods, strict)
    lacking = {
        "class_attention": not _has_class_attention(vlm, samples),
        "llm_attention": not has_llm_attention(vlm),
        "boxes": not samples.has_boxes,
        "question": False,
    }
    usable = []
    for method in methods:
        missing = [need for need in method.needs if lacking[need]]
        if not missing:
            usable.append(method)
        elif strict:
            raise ConfigError(
                f"methods={method.name} needs {missing[0]}, which this model or data does not "
                "give; leave it out"
            )
        else:
            logger.warning("method %s left out: there is no %s", method.name, missing[0])
    return tuple(usable)


def _attachable(methods: tuple[Method, ...], strict: bool) -> tuple[Method, ...]:
    """The methods that `attach` can use; arguments and errors as `usable_methods`."""
    left_out = [method.name for method in methods if not is_attachable(method)]
    reason = "the model's own processor writes these prompts, so that tokens can only be removed"
    if left_out and strict:
        raise ConfigError(f"methods={left_out[0]}: {reason}; leave it out")
    for name in left_out:
        logger.warning("method %s left out: %s", name, reason)
    return tuple(method for method in methods if is_attachable(method))


def _has_class_attention(vlm: Any, samples: EvaluationSet) -> bool:
    try:
        visual = vlm.encode_images([samples[0].image], class_attention=True)
    except ConfigError:
        return False
    attention = visual.class_attention
    return attention is not None and attention.shape == visual.tokens.shape[:2]
