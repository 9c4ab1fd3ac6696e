"""Train the second reference VLM: `autoselect reference train --recipe siglip-qwen2`.

1. tower: the vision tower learns dense labels and is frozen afterwards.
2. language: projector and language model learn to answer from all visual tokens.
3. two variants start from there: `removal` removes random visual tokens in half of its steps,
   `never_removed` keeps all.
"""

import copy
import logging
from pathlib import Path

from autoselect.reference.siglip_qwen2.corpus import build_mixed_corpus
from autoselect.reference.siglip_qwen2.dense import train_tower
from autoselect.reference.siglip_qwen2.language import (
    constant,
    falling,
    language_stage,
    train_language,
)
from autoselect.reference.siglip_qwen2.recipe import MixedTraining
from autoselect.reference.siglip_qwen2.vlm import build_model, save_vlm
from autoselect.reference.stage import claim_work

logger = logging.getLogger(__name__)
VARIANTS = {"removal": True, "never_removed": False}
FIXED = ("images", "tower_batch", "tower_learning_rate", "seed")


def train_mixed_vlm(output: Path, work: Path, recipe: MixedTraining) -> None:
    """Train both variants and write each as a hub folder inside `output`.

    `work` holds corpus and saved states; keep it to resume, or to train on with more steps.

    Raises:
        ConfigError: `work` was made with other values of the settings in `FIXED`.
    """
    fixed = {name: getattr(recipe, name) for name in FIXED}
    claim_work(work, fixed, f"values of {', '.join(FIXED)}")
    corpus = build_mixed_corpus(work, recipe.images, recipe.seed)
    model = build_model(recipe.seed)
    model.set_attn_implementation("reference_matmul")
    train_tower(model, corpus, recipe, work)
    name = f"language-{recipe.tower_steps}"
    stage = language_stage(name, model, recipe.language_steps, constant, recipe, work)
    train_language(model, corpus, recipe, stage, first=0, removal=False)
    for variant, removal in VARIANTS.items():
        own = copy.deepcopy(model)
        name = f"{variant}-{recipe.tower_steps}-{recipe.language_steps}"
        stage = language_stage(name, own, recipe.variant_steps, falling, recipe, work)
        train_language(own, corpus, recipe, stage, recipe.language_steps, removal)
        save_vlm(own.eval(), output / variant)
        logger.info("variant %s written to %s", variant, output / variant)
