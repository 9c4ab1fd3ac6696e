"""Stages 2 to 4 of the reference VLM: train projector and language model on cached features.

Visual tokens are removed at random and the others keep their positions (see `draw_kept`). One
sequence holds the image prefix and eight independent questions. Each question sees the prefix and
itself, and its positions start after the prefix: the result equals that of eight separate prompts.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, LlavaForConditionalGeneration

from autoselect.reference.corpus import SLOT_TOKENS, Corpus
from autoselect.reference.questions import QUESTIONS_PER_IMAGE
from autoselect.reference.recipe import ReferenceTraining
from autoselect.reference.stage import Stage, autocast, batch_indices
from autoselect.reference.visible import VisibleAnswers, segments
from autoselect.reference.vlm import GRID, NUM_VISUAL_TOKENS, SPECIAL_TOKENS

PREFIX = ("<s>", "<user>")
KEPT_COUNTS = (NUM_VISUAL_TOKENS, NUM_VISUAL_TOKENS, 96, 64, 48, 32, 24, 16, 0)
KEPT_WEIGHTS = (0.2, 0.15, 0.15, 0.15, 0.12, 0.1, 0.05, 0.05, 0.03)
UNEVEN_COUNTS = (NUM_VISUAL_TOKENS, 96, 64, 48, 32, 24, 16, 12, 8, 0)
UNEVEN_WEIGHTS = (0.25, 0.12, 0.12, 0.12, 0.1, 0.08, 0.08, 0.06, 0.05, 0.02)
SPREADS = (1.0, 2.0, 4.0)


def matmul_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Compute attention as two matrix products in the dtype of the inputs.

    On CPUs the stock implementations are slow in bfloat16 or convert to float32. Query, key and
    value are [B, H, L, D / H]; keys and values may have fewer heads, each of which then serves a
    group of queries.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    weights = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        weights = weights + attention_mask.to(weights.dtype)
    mixed = torch.matmul(torch.softmax(weights, dim=-1, dtype=weights.dtype), value)
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register("reference_matmul", matmul_attention)


def packed_mask(prefix: int) -> Tensor:
    """Return an additive mask [1, 1, L, L]: a causal prefix, then independent causal slots."""
    slots = QUESTIONS_PER_IMAGE * SLOT_TOKENS
    owner = torch.cat([torch.full((prefix,), -1), torch.arange(slots) // SLOT_TOKENS])
    order = torch.arange(prefix + slots)
    seen = (owner[None, :] == -1) | (owner[None, :] == owner[:, None])
    seen &= order[None, :] <= order[:, None]
    return torch.zeros(seen.shape).masked_fill(~seen, -1e4)[None, None]


def answer_logits(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    kept: Tensor,
    tokens: Tensor,
    starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the logits at the answers of packed questions.

    Args:
        features: tower features of all patches, [B, N, D].
        kept: positions of the kept visual tokens, ascending, [B, K].
        tokens: question slots, [B, Q, S].
        starts: start of each answer in its slot, [B, Q].

    Returns:
        logits [A, V], targets [A], and for each of the A answer tokens the index of its question
        in the flattened [B * Q].
    """
    language = model.model.language_model
    batch, slots = len(tokens), QUESTIONS_PER_IMAGE * SLOT_TOKENS
    gathered = features.gather(1, kept[..., None].expand(-1, -1, features.shape[-1]))
    visual = model.model.multi_modal_projector(gathered)
    prefix_ids = torch.tensor([SPECIAL_TOKENS.index(t) for t in PREFIX]).expand(batch, -1)
    embed = language.embed_tokens
    inputs = torch.cat(
        [embed(prefix_ids), visual.to(embed.weight.dtype), embed(tokens.flatten(1))], dim=1
    )
    prefix = len(PREFIX) + kept.shape[1]
    slot_positions = len(PREFIX) + features.shape[1] + torch.arange(slots) % SLOT_TOKENS
    positions = torch.cat(
        [
            torch.arange(len(PREFIX)).expand(batch, -1),
            len(PREFIX) + kept,
            slot_positions.expand(batch, -1),
        ],
        dim=1,
    )
    hidden = language(
        inputs_embeds=inputs,
        attention_mask=packed_mask(prefix),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state[:, prefix:]
    flat = tokens.flatten(1)
    inside = torch.arange(slots) % SLOT_TOKENS
    begins = starts.repeat_interleave(SLOT_TOKENS, dim=1)
    is_target = (inside >= begins) & (flat != 0)
    predicts = torch.zeros_like(is_target)
    predicts[:, :-1] = is_target[:, 1:]
    rows = torch.arange(batch * QUESTIONS_PER_IMAGE).repeat_interleave(SLOT_TOKENS)
    logits = model.lm_head(hidden[predicts]).float()
    return logits, flat[is_target], rows.view(batch, slots)[is_target]


def draw_kept(
    rng: np.random.Generator, batch: int, uneven: bool = False, labels: np.ndarray | None = None
) -> Tensor:
    """Draw the positions of kept visual tokens, ascending, [B, K], with one K per batch.

    Args:
        uneven: if True, half of the images keep more tokens in some random regions.
        labels: patch labels, [B, 4, N]; if given, the regions are objects, characters and
            background in half of the images.
    """
    if uneven:
        count = int(rng.choice(UNEVEN_COUNTS, p=UNEVEN_WEIGHTS))
        density = uneven_density(rng, batch)
        if labels is not None:
            density = segment_density(rng, density, labels)
        keys = -rng.gumbel(size=(batch, NUM_VISUAL_TOKENS)) - density
    else:
        count = int(rng.choice(KEPT_COUNTS, p=KEPT_WEIGHTS))
        keys = rng.random((batch, NUM_VISUAL_TOKENS))
    return torch.from_numpy(keys).argsort(dim=1)[:, :count].sort(dim=1).values


def uneven_density(rng: np.random.Generator, batch: int) -> np.ndarray:
    """Draw random log-densities of kept tokens, [B, N], independent of the images.

    They are zero for half of the images. A selector keeps many tokens in some regions and none in
    others. A model trained with even removal only misjudges how much it sees, mostly when it
    counts.
    """
    fields = np.zeros((batch, GRID, GRID))
    for row in range(batch):
        if rng.random() < 0.5:
            continue
        cells = int(rng.choice((2, 3, 4, 6, GRID)))
        coarse = rng.normal(size=(cells, cells)) * rng.choice(SPREADS)
        fields[row] = coarse.repeat(GRID // cells, axis=0).repeat(GRID // cells, axis=1)
        fields[row] = np.roll(fields[row], rng.integers(GRID, size=2), axis=(0, 1))
    return fields.reshape(batch, NUM_VISUAL_TOKENS)


def segment_density(
    rng: np.random.Generator, density: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Replace the density in half of the images by one value per object, character and background.

    All values come from one symmetric distribution: sometimes only objects are left, sometimes only
    background, so no kind of token is favoured. A model that never saw an image without background
    takes a larger share of object tokens for more objects.

    Args:
        density: log-densities from `uneven_density`, [B, N]; not modified.
        labels: patch labels, [B, 4, N].
    """
    density = density.copy()
    for row in range(len(density)):
        if rng.random() < 0.5:
            things = segments(labels[row])
            own = rng.normal(size=things.max() + 1) * rng.choice(SPREADS)
            density[row] = own[things]
    return density


def language_module(model: LlavaForConditionalGeneration) -> nn.ModuleDict:
    """Return projector and language model, which are trained after the tower."""
    return nn.ModuleDict(
        {"projector": model.model.multi_modal_projector, "language": model.model.language_model}
    )


@dataclass(frozen=True)
class Removal:
    """How a training stage removes visual tokens.

    Attributes:
        seed: seed of the random choices; every stage has its own.
        uneven: if True, some regions keep more tokens than others.
        visible: rewrites answers to match the kept tokens, and lets each object keep tokens at its
            own rate; None trains on the true answers.
    """

    seed: int
    uneven: bool = False
    visible: VisibleAnswers | None = None


def train_language(
    model: LlavaForConditionalGeneration,
    corpus: Corpus,
    features: Tensor,
    stage: Stage,
    recipe: ReferenceTraining,
    removal: Removal,
) -> None:
    """Train projector and language model on cached tower features [M, N, D]."""
    visible = removal.visible
    stage.module.train()

    def loss_of(step: int) -> tuple[Tensor, dict[str, Any]]:
        indices = batch_indices(recipe.seed, recipe.batch_size, step, len(corpus))
        rng = np.random.default_rng([recipe.seed, removal.seed, step])
        labels = corpus.labels[indices] if visible is not None else None
        kept = draw_kept(rng, len(indices), removal.uneven, labels)
        slots, begins = corpus.tokens[indices], corpus.starts[indices]
        if visible is not None and labels is not None:
            slots = visible.rewrite(slots, begins, labels, kept.numpy())
        tokens, starts = torch.from_numpy(slots).long(), torch.from_numpy(begins).long()
        with autocast():
            inputs = features[indices].float()
            logits, targets, _ = answer_logits(model, inputs, kept, tokens, starts)
        return F.cross_entropy(logits, targets), {"kept": kept.shape[1]}

    stage.train(loss_of, every=50)
