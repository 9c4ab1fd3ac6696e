"""Train the reference VLM in four stages: `autoselect reference train`.

1. tower: the vision tower learns patch labels and is frozen afterwards.
2. language: projector and language model learn to answer. Most steps remove a uniformly random
   subset of the visual tokens and keep the original positions, so the VLM tolerates removal without
   favouring any selector.
3. uneven: in half of the images the removal rate differs between random regions, because every
   selector that looks at the image removes tokens unevenly.
4. visible: a region may also be an object, a character or the background. Questions about presence
   and number are answered from the objects that are still visible (see `visible.py`).
"""

import logging
from dataclasses import asdict
from pathlib import Path

from autoselect.reference.corpus import build_corpus
from autoselect.reference.recipe import ReferenceTraining
from autoselect.reference.stage import Stage, claim_work
from autoselect.reference.train_language import Removal, language_module, train_language
from autoselect.reference.train_tower import cache_features, train_tower
from autoselect.reference.visible import VisibleAnswers
from autoselect.reference.vlm import build_model, build_tokenizer, save_vlm

logger = logging.getLogger(__name__)


def train_reference_vlm(output: Path, work: Path, recipe: ReferenceTraining) -> None:
    """Train the reference VLM and write it as a hub folder.

    `work` holds corpus, features and saved states; keep it to resume.

    Raises:
        ConfigError: `work` was made with other settings.
    """
    claim_work(work, asdict(recipe), "settings")
    corpus = build_corpus(work, recipe.images, recipe.seed)
    model = build_model(recipe.seed)
    model.set_attn_implementation("reference_matmul")
    train_tower(model, corpus, recipe, work)
    features = cache_features(model, corpus, work)
    module = language_module(model)
    visible = VisibleAnswers(build_tokenizer())
    stages = (
        ("language", recipe.language_steps, recipe.language_learning_rate, Removal(11)),
        ("uneven", recipe.uneven_steps, recipe.uneven_learning_rate, Removal(13, uneven=True)),
        (
            *("visible", recipe.visible_steps, recipe.visible_learning_rate),
            Removal(17, uneven=True, visible=visible),
        ),
    )
    for name, steps, peak, removal in stages:
        stage = Stage(name, module, steps, peak, work, recipe.save_every)
        train_language(model, corpus, features, stage, recipe, removal)
    save_vlm(model.eval(), output)
    logger.info("reference VLM written to %s", output)
