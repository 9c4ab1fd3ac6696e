"""Stage 1 of the second reference VLM: train the vision tower on dense labels.

Each patch learns the characters in its left and right half, and the word, the colour and the shape
that cover it.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from autoselect.reference.corpus import Corpus, pixels
from autoselect.reference.siglip_qwen2.labels import CHANNELS
from autoselect.reference.siglip_qwen2.optimizers import muon_and_adamw
from autoselect.reference.siglip_qwen2.recipe import MixedTraining
from autoselect.reference.stage import Optimization, Stage, autocast, batch_indices
from autoselect.reference.train_tower import labelled_loss, tower_features

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
            weight = torch.where(target == 0, NOTHING_WEIGHT, 1.0)
            loss, accuracy[name] = labelled_loss(head(hidden).float(), target, weight)
            total = total + loss
        return total, accuracy


def train_tower(
    model: LlavaForConditionalGeneration, corpus: Corpus, recipe: MixedTraining, folder: Path
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

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        indices = batch_indices(recipe.seed, recipe.tower_batch, step, len(corpus))
        labels = torch.from_numpy(corpus.labels[indices])
        with autocast():
            return heads.loss(tower_features(model, pixels(corpus.images[indices])), labels)

    stage.train(loss_of, every=50)
