"""Check of which methods a model and its data allow."""

import logging

from autoselect.config import ConfigError
from autoselect.evaluation.answers.asking import AskedVLM
from autoselect.evaluation.methods.llm_attention import has_llm_attention
from autoselect.evaluation.methods.registry import Method
from autoselect.evaluation.samples import EvaluationSet

logger = logging.getLogger(__name__)


def usable_methods(
    asked: AskedVLM, samples: EvaluationSet, methods: tuple[Method, ...], strict: bool
) -> tuple[tuple[Method, ...], dict[str, str]]:
    """Return the methods that this model and data allow, and why others are left out, by name.

    Raises:
        ConfigError: with `strict`, if a method cannot run.
    """
    needs = {need for method in methods for need in method.needs}
    lacking = {need: why for need in sorted(needs) if (why := _lack(asked, samples, need))}
    usable, left_out = [], {}
    for method in methods:
        missing = next((need for need in method.needs if need in lacking), None)
        if missing is None:
            usable.append(method)
            continue
        if strict:
            raise ConfigError(f"methods={method.name}: {lacking[missing]}; leave it out")
        left_out[method.name] = lacking[missing]
        logger.warning("method %s left out: %s", method.name, lacking[missing])
    return tuple(usable), left_out


def _lack(asked: AskedVLM, samples: EvaluationSet, need: str) -> str:
    """Return why a need of methods cannot be met, or an empty string."""
    if need == "class_attention":
        try:
            asked.encode([samples[0]], attention=True)
        except ConfigError as error:
            return str(error).partition("; ")[0]
    elif need == "llm_attention" and not has_llm_attention(asked.vlm.model):
        return "the attention maps of this language model cannot be read"
    elif need == "boxes":
        if not samples.has_boxes:
            return "the samples have no boxes"
        if not asked.encode([samples[0]]).images[0][0].boxes:
            return "the tokens of this model's images are not one raster that boxes could be put on"
    return ""
