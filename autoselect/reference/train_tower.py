"""Stage 1 of the reference VLM: train the vision tower on patch labels, then cache its features.

Each patch learns the shape, colour or character that covers it and if it is the centre of an
object. The class token learns which objects and characters the image contains.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from autoselect.reference.corpus import IGNORED, Corpus, pixels
from autoselect.reference.recipe import ReferenceTraining
from autoselect.reference.scenes import COLOURS, PLATE_CHARACTERS, SHAPES
from autoselect.reference.stage import Stage, autocast, batch_indices
from autoselect.reference.vlm import NUM_VISUAL_TOKENS


class DenseHeads(nn.Module):
    """Linear heads: shape, colour, character and centre per patch, and content per image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shape = nn.Linear(width, len(SHAPES) + 1)
        self.colour = nn.Linear(width, len(COLOURS) + 1)
        self.character = nn.Linear(width, len(PLATE_CHARACTERS) + 1)
        self.centre = nn.Linear(width, 1)
        self.content = nn.Linear(width, len(SHAPES) * len(COLOURS) + len(PLATE_CHARACTERS))

    def loss(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the sum of all losses, and the accuracy on labelled patches for the log.

        Args:
            hidden: last hidden state with the class token first, [B, 1 + N, D].
            labels: shape, colour, character and centre of each patch, [B, 4, N].
        """
        patches = hidden[:, 1:]
        total = torch.zeros(())
        accuracy = {}
        for row, head in enumerate((self.shape, self.colour, self.character)):
            target = labels[:, row].long()
            weight = torch.where(labels[:, 3] == 1, 4.0, 1.0)
            weight = weight * torch.where(target == 0, 0.15, 1.0)
            loss, right = labelled_loss(head(patches).float(), target, weight)
            total = total + loss
            accuracy[("shape", "colour", "character")[row]] = right
        is_centre = (labels[:, 3] == 1).float()
        centre_logits = self.centre(patches).float()[..., 0]
        total = total + F.binary_cross_entropy_with_logits(
            centre_logits, is_centre, pos_weight=torch.tensor(4.0)
        )
        right = ((centre_logits > 0) == (is_centre == 1)).float().mean().item()
        accuracy["centre"] = round(right, 3)
        content = self.content(hidden[:, 0]).float()
        total = total + F.binary_cross_entropy_with_logits(content, image_content(labels))
        return total, accuracy


def labelled_loss(logits: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, float]:
    """Return the weighted mean loss of patches, and the accuracy on those that show something.

    Args:
        logits: [B, N, classes].
        target: class of each patch, [B, N]; 0 is nothing, and `IGNORED` ones do not count.
        weight: weight of each patch, [B, N].
    """
    weight = weight * (target != IGNORED)
    each = F.cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="none"
    )
    real = (target > 0) & (target != IGNORED)
    hit = (logits.argmax(-1) == target)[real]
    loss = (each * weight.flatten()).sum() / weight.sum()
    return loss, round(hit.float().mean().item(), 3)


def image_content(labels: Tensor) -> Tensor:
    """Return the (shape, colour) pairs and characters in each image, multi-hot [B, C]."""
    centre = labels[:, 3] == 1
    shape, colour, character = (labels[:, row].long() for row in range(3))
    pair = (shape - 1) * len(COLOURS) + colour - 1
    pairs = torch.zeros(len(labels), len(SHAPES) * len(COLOURS) + 1)
    is_object = centre & (shape > 0) & (shape != IGNORED)
    pairs.scatter_(1, torch.where(is_object, pair, pairs.shape[1] - 1), 1.0)
    letters = torch.zeros(len(labels), len(PLATE_CHARACTERS) + 1)
    is_letter = centre & (character > 0) & (character != IGNORED)
    letters.scatter_(1, torch.where(is_letter, character - 1, letters.shape[1] - 1), 1.0)
    return torch.cat([pairs[:, :-1], letters[:, :-1]], dim=1)


def tower_features(model: LlavaForConditionalGeneration, images: Tensor) -> Tensor:
    """Return the tower's last hidden state, the input of the projector, [B, N, D]."""
    tower = model.model.vision_tower
    return tower(images, output_hidden_states=True).hidden_states[-1]


def train_tower(
    model: LlavaForConditionalGeneration, corpus: Corpus, recipe: ReferenceTraining, folder: Path
) -> None:
    tower = model.model.vision_tower
    heads = DenseHeads(tower.config.hidden_size)
    module = nn.ModuleDict({"tower": tower, "heads": heads})
    stage = Stage(
        "tower", module, recipe.tower_steps, recipe.tower_learning_rate, folder, recipe.save_every
    )
    module.train()

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        indices = batch_indices(recipe.seed, recipe.batch_size, step, len(corpus))
        labels = torch.from_numpy(corpus.labels[indices])
        with autocast():
            hidden = tower_features(model, pixels(corpus.images[indices]))
            return heads.loss(hidden, labels)

    stage.train(loss_of, every=100)


@torch.no_grad()
def cache_features(model: LlavaForConditionalGeneration, corpus: Corpus, folder: Path) -> Tensor:
    """Return the tower features of the corpus, bfloat16 [M, N, D], memory-mapped."""
    tower = model.model.vision_tower.eval()
    shape = (len(corpus), NUM_VISUAL_TOKENS, tower.config.hidden_size)
    path, finished = folder / "features.bin", folder / "features.done"
    features = torch.from_file(
        str(path), shared=True, size=int(np.prod(shape)), dtype=torch.bfloat16
    ).view(shape)
    if not finished.exists():
        for start in tqdm(range(0, len(corpus), 256), desc="features", disable=None):
            indices = np.arange(start, min(start + 256, len(corpus)))
            with autocast():
                hidden = tower_features(model, pixels(corpus.images[indices]))
            features[indices] = hidden[:, 1:].bfloat16()
        finished.touch()
    return features
