"""Check of which methods a model and its data allow."""

import logging
from dataclasses import replace

from autoselect.config import ConfigError
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.evaluation.asking.llm_attention import has_llm_attention
from autoselect.evaluation.methods.context import PATCHES
from autoselect.evaluation.methods.registry import Method
from autoselect.evaluation.samples import EvaluationSet
from autoselect.vlm.sites import SITES

logger = logging.getLogger(__name__)
WITHOUT_CLASS_TOKEN = (
    "this tower has no class token: here the attention that each token receives from all tokens on "
    "average, in the layer whose output the projector takes"
)


def usable_methods(
    asked: AskedVLM, samples: EvaluationSet, methods: tuple[Method, ...], strict: bool
) -> tuple[tuple[Method, ...], dict[str, str]]:
    """Return the methods that this model and data allow, and why others are left out, by name.

    The source of a method says so if it cannot read a class token and uses something else.

    Raises:
        ConfigError: with `strict`, if a method cannot run.
    """
    needs = {need for method in methods for need in method.needs}
    lacking = {need: why for need in sorted(needs) if (why := _lack(asked, samples, need))}
    without_class = False
    if "class_attention" in needs - lacking.keys():
        without_class = asked.encode([samples[0]], attention=True).of_class_token is False
    usable, left_out = [], {}
    for method in methods:
        missing = next((need for need in method.needs if need in lacking), None)
        if missing is None:
            if without_class and "class_attention" in method.needs:
                method = replace(method, source=f"{method.source}; {WITHOUT_CLASS_TOKEN}")
            usable.append(method)
            continue
        if strict:
            raise ConfigError(f"methods={method.name}: {lacking[missing]}; leave it out")
        left_out[method.name] = lacking[missing]
        logger.warning("method %s left out: %s", method.name, lacking[missing])
    return tuple(usable), left_out


def _lack(asked: AskedVLM, samples: EvaluationSet, need: str) -> str:
    """Return why a need of methods cannot be met, or an empty string."""
    try:
        if need == "class_attention":
            asked.encode([samples[0]], attention=True)
        if need == "patches":
            SITES[PATCHES].width(asked.vlm.adapter)
    except ConfigError as error:
        return str(error).partition("; ")[0]
    if need == "llm_attention" and not has_llm_attention(asked.vlm.model):
        return "the attention maps of this language model cannot be read"
    if need == "boxes":
        if not samples.has_boxes:
            return "the samples have no boxes"
        if not samples.one_image_each:
            return "some samples have several images, and boxes do not say of which they are"
        if not asked.encode([samples[0]]).images[0][0].boxes:
            return "the tokens of this model's images are not one raster that boxes could be put on"
    return ""
