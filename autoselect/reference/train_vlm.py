"""Training of the reference VLM: `autoselect reference train`.

Stage 1, tower: dense supervision of the vision tower, which is frozen from then on. Stage 2,
language: projector and language model learn to answer. In most steps a uniformly random subset of
the visual tokens, of random size, is removed and the original positions are kept: the VLM is robust
to removal and no selector is favoured. Stage 3, uneven: the same, but half of the images lose
tokens at a rate that differs from region to region, at random, because that is how any selector
that looks at the image removes them. Stage 4, visible: the same, but a region may be a thing that
is seen there, and questions about presence and number are answered from what is left, see
`visible.py`.
"""

import logging
from dataclasses import asdict
from pathlib import Path

from torch import nn

from autoselect.config import ConfigError
from autoselect.reference.corpus import build_corpus
from autoselect.reference.recipe import ReferenceTraining
from autoselect.reference.stage import Stage
from autoselect.reference.train_language import train_language
from autoselect.reference.train_tower import cache_features, train_tower
from autoselect.reference.visible import VisibleAnswers
from autoselect.reference.vlm import build_model, build_tokenizer, save_vlm

logger = logging.getLogger(__name__)


def train_reference_vlm(output: Path, work: Path, recipe: ReferenceTraining) -> None:
    """Train the reference VLM and write it as a hub folder.

    Args:
        output: folder of the finished model.
        work: folder of corpus, features and resumable states; keep it to resume.
        recipe: sizes and rates.

    Raises:
        ConfigError: `work` was made with another recipe.
    """
    work.mkdir(parents=True, exist_ok=True)
    recorded = work / "recipe.txt"
    described = repr(sorted(asdict(recipe).items()))
    if recorded.exists() and recorded.read_text() != described:
        raise ConfigError(
            f"work={work} belongs to another recipe; choose an empty folder or the same settings"
        )
    recorded.write_text(described)
    corpus = build_corpus(work, recipe.images, recipe.seed)
    model = build_model(recipe.seed)
    model.set_attn_implementation("reference_matmul")
    train_tower(model, corpus, recipe, work)
    features = cache_features(model, corpus, work)
    module = nn.ModuleDict(
        {"projector": model.model.multi_modal_projector, "language": model.model.language_model}
    )
    visible = VisibleAnswers(build_tokenizer())
    stages = (
        ("language", recipe.language_steps, recipe.language_learning_rate, 11, False, None),
        ("uneven", recipe.uneven_steps, recipe.uneven_learning_rate, 13, True, None),
        ("visible", recipe.visible_steps, recipe.visible_learning_rate, 17, True, visible),
    )
    for name, steps, peak, seed, uneven, answers in stages:
        stage = Stage(name, module, steps, peak, work, recipe.save_every)
        train_language(model, corpus, features, stage, seed, recipe, uneven, answers)
    save_vlm(model.eval(), output)
    logger.info("reference VLM written to %s", output)
