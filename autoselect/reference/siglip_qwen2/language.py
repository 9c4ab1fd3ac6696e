"""Stages 2 and 3 of the second reference VLM: train projector and language model.

The tower is frozen. The loss is the cross-entropy of every answer token and of the end token. In
the variant with removal, half of the steps keep a uniformly random subset of the visual tokens at
their original positions. The removal depends neither on the image nor on any selector.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from autoselect.reference.corpus import Corpus, pixels
from autoselect.reference.siglip_qwen2.optimizers import muon_and_adamw
from autoselect.reference.siglip_qwen2.recipe import MixedTraining
from autoselect.reference.siglip_qwen2.vlm import NUM_VISUAL_TOKENS
from autoselect.reference.stage import Optimization, Schedule, Stage, autocast, batch_indices
from autoselect.reference.train_language import answer_logits, language_module
from autoselect.reference.train_tower import tower_features

FEWEST_KEPT = 12


def constant(step: int, steps: int, peak: float) -> float:
    """Return a learning rate that rises over 50 steps and then stays, whatever `steps` is.

    A finished stage can therefore be trained on with more steps.
    """
    return peak * min(1.0, (step + 1) / 50)


def falling(step: int, steps: int, peak: float) -> float:
    """Return a learning rate that falls linearly from the peak to zero."""
    return peak * (1 - step / steps)


def draw_removal(rng: np.random.Generator, batch: int) -> Tensor:
    """Draw the positions of kept visual tokens, ascending, [B, K], with one K per batch.

    Half of the calls keep all. In the others K is log-uniform and each image has its own uniformly
    random subset.
    """
    count = NUM_VISUAL_TOKENS
    if rng.random() < 0.5:
        share = rng.uniform(np.log(FEWEST_KEPT), np.log(NUM_VISUAL_TOKENS))
        count = int(np.exp(share))
    keys = torch.from_numpy(rng.random((batch, NUM_VISUAL_TOKENS)))
    return keys.argsort(dim=1)[:, :count].sort(dim=1).values


def all_kept(batch: int) -> Tensor:
    """Return the positions of all visual tokens, [B, N]."""
    return torch.arange(NUM_VISUAL_TOKENS).expand(batch, -1)


def language_stage(
    name: str,
    model: LlavaForConditionalGeneration,
    steps: int,
    schedule: Schedule,
    recipe: MixedTraining,
    folder: Path,
) -> Stage:
    """Return a stage of projector and language model, resumed if `folder` has its state."""
    peak, optimization = recipe.language_learning_rate, Optimization(schedule, muon_and_adamw)
    module = language_module(model)
    return Stage(name, module, steps, peak, folder, recipe.save_every, optimization)


def train_language(
    model: LlavaForConditionalGeneration,
    corpus: Corpus,
    recipe: MixedTraining,
    stage: Stage,
    first: int,
    removal: bool,
) -> None:
    """Run the remaining steps of a stage.

    Args:
        model: the VLM; its projector and language model are trained.
        corpus: training images with their questions.
        recipe: batch size and seed.
        stage: a new or resumed stage.
        first: number of updates before the first step of this stage, for the order of images.
        removal: if True, half of the steps remove visual tokens.
    """
    model.model.vision_tower.eval().requires_grad_(False)
    stage.module.train()

    def loss_of(step: int) -> tuple[Tensor, dict[str, Any]]:
        indices = batch_indices(recipe.seed, recipe.language_batch, first + step, len(corpus))
        rng = np.random.default_rng([recipe.seed, 31, step])
        kept = draw_removal(rng, len(indices)) if removal else all_kept(len(indices))
        tokens = torch.from_numpy(corpus.tokens[indices].astype(np.int64))
        starts = torch.from_numpy(corpus.starts[indices].astype(np.int64))
        with autocast():
            with torch.no_grad():
                features = tower_features(model, pixels(corpus.images[indices]))
            logits, targets, _ = answer_logits(model, features.float(), kept, tokens, starts)
        right = (logits.argmax(-1) == targets).float().mean().item()
        named = {"kept": kept.shape[1], "tokens right": round(right, 3)}
        return F.cross_entropy(logits, targets), named

    stage.train(loss_of, every=25)
