"""Stage 1 of the second reference VLM: train the vision tower on dense labels.

Each patch learns the characters in its left and right half, and the word, the colour and the shape
that cover it.
"""

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from autoselect.reference.corpus import IGNORED, pixels
from autoselect.reference.siglip_qwen2.corpus import MixedCorpus
from autoselect.reference.siglip_qwen2.labels import CHANNELS
from autoselect.reference.siglip_qwen2.optimizers import muon_and_adamw
from autoselect.reference.siglip_qwen2.recipe import MixedTraining
from autoselect.reference.stage import Optimization, Stage, autocast, batch_indices
from autoselect.reference.train_tower import tower_features

logger = logging.getLogger(__name__)
NOTHING_WEIGHT = 0.1


class PatchHeads(nn.Module):
    """Linear heads: one per channel of the dense labels, on every patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, classes) for name, classes in CHANNELS.items()}
        )

    def loss(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the sum of all losses, and the accuracy on labelled patches for the log.

        Args:
            hidden: last hidden state of the tower, [B, N, D].
            labels: class of every channel and patch, [B, C, N].
        """
        total = torch.zeros(())
        accuracy = {}
        for channel, (name, head) in enumerate(self.heads.items()):
            target = labels[:, channel].long()
            logits = head(hidden).float()
            weight = torch.where(target == 0, NOTHING_WEIGHT, 1.0) * (target != IGNORED)
            each = F.cross_entropy(
                logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="none"
            )
            total = total + (each * weight.flatten()).sum() / weight.sum()
            real = (target > 0) & (target != IGNORED)
            hit = (logits.argmax(-1) == target)[real]
            accuracy[name] = round(hit.float().mean().item(), 3)
        return total, accuracy


def train_tower(
    model: LlavaForConditionalGeneration, corpus: MixedCorpus, recipe: MixedTraining, folder: Path
) -> None:
    tower = model.model.vision_tower
    heads = PatchHeads(tower.config.hidden_size)
    module = nn.ModuleDict({"tower": tower, "heads": heads})
    stage = Stage(
        "tower",
        module,
        recipe.tower_steps,
        recipe.tower_learning_rate,
        folder,
        recipe.save_every,
        Optimization(optimizers=muon_and_adamw),
    )
    module.train()
    bar = tqdm(total=stage.steps, initial=stage.step, desc="tower", disable=None)
    while stage.step < stage.steps:
        indices = batch_indices(recipe.seed, recipe.tower_batch, stage.step, len(corpus))
        labels = torch.from_numpy(corpus.labels[indices])
        with autocast():
            loss, accuracy = heads.loss(
                tower_features(model, pixels(corpus.images[indices])), labels
            )
        stage.update(loss)
        bar.update()
        if stage.step % 50 == 0:
            logger.info("tower step %d loss %.3f %s", stage.step, loss.item(), accuracy)
