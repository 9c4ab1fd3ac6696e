"""Training of the reference VLM: `autoselect reference train`.

Stage 1, tower: every patch learns the shape, colour or character that covers it, a patch at an
object's centre learns that it is one, and the class token learns what the image contains. Stage 2,
language: the tower is frozen, its features are cached, and projector and language model learn to
answer. In most steps a uniformly random subset of the visual tokens, of random size, is removed and
the original positions are kept: the VLM is robust to removal and no selector is favoured. Stage 3,
uneven: the same, but half of the images lose tokens at a rate that differs from region to region,
at random, because that is how any selector that looks at the image removes them.

One image prefix carries eight independent questions: each sees the prefix and itself, and its
positions start where the prefix ends, so it is the same function as eight separate prompts.
"""

import logging
import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AttentionInterface, LlavaForConditionalGeneration

from autoselect.config import ConfigError
from autoselect.reference.corpus import (
    IGNORED,
    QUESTIONS_PER_IMAGE,
    SLOT_TOKENS,
    Corpus,
    build_corpus,
)
from autoselect.reference.recipe import ReferenceTraining
from autoselect.reference.scenes import COLOURS, PLATE_CHARACTERS, SHAPES
from autoselect.reference.vlm import (
    GRID,
    NUM_VISUAL_TOKENS,
    SPECIAL_TOKENS,
    build_model,
    save_vlm,
)

logger = logging.getLogger(__name__)

PREFIX = ("<s>", "<user>")
KEPT_COUNTS = (NUM_VISUAL_TOKENS, NUM_VISUAL_TOKENS, 96, 64, 48, 32, 24, 16, 0)
KEPT_WEIGHTS = (0.2, 0.15, 0.15, 0.15, 0.12, 0.1, 0.05, 0.05, 0.03)
UNEVEN_COUNTS = (NUM_VISUAL_TOKENS, 96, 64, 48, 32, 24, 16, 12, 8, 0)
UNEVEN_WEIGHTS = (0.25, 0.12, 0.12, 0.12, 0.1, 0.08, 0.08, 0.06, 0.05, 0.02)


class DenseHeads(nn.Module):
    """Linear read-outs of stage 1: shape, colour, character, centre per patch; content of image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shape = nn.Linear(width, len(SHAPES) + 1)
        self.colour = nn.Linear(width, len(COLOURS) + 1)
        self.character = nn.Linear(width, len(PLATE_CHARACTERS) + 1)
        self.centre = nn.Linear(width, 1)
        self.content = nn.Linear(width, len(SHAPES) * len(COLOURS) + len(PLATE_CHARACTERS))

    def loss(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Sum of the dense losses and, for the log, accuracy on labelled patches.

        Args:
            hidden: last hidden state with the class token first, [B, 1 + N, D].
            labels: shape, colour, character and centre of each patch, [B, 4, N].
        """
        patches = hidden[:, 1:]
        total = torch.zeros(())
        accuracy = {}
        for row, head in enumerate((self.shape, self.colour, self.character)):
            logits, target = head(patches).float(), labels[:, row].long()
            weight = torch.where(labels[:, 3] == 1, 4.0, 1.0)
            weight = weight * torch.where(target == 0, 0.15, 1.0) * (target != IGNORED)
            each = F.cross_entropy(
                logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="none"
            )
            total = total + (each * weight.flatten()).sum() / weight.sum()
            real = (target > 0) & (target != IGNORED)
            hit = (logits.argmax(-1) == target)[real]
            accuracy[("shape", "colour", "character")[row]] = hit.float().mean().item()
        is_centre = (labels[:, 3] == 1).float()
        centre_logits = self.centre(patches).float()[..., 0]
        total = total + F.binary_cross_entropy_with_logits(
            centre_logits, is_centre, pos_weight=torch.tensor(4.0)
        )
        accuracy["centre"] = ((centre_logits > 0) == (is_centre == 1)).float().mean().item()
        content = self.content(hidden[:, 0]).float()
        total = total + F.binary_cross_entropy_with_logits(content, image_content(labels))
        return total, accuracy


def image_content(labels: Tensor) -> Tensor:
    """Which (shape, colour) pairs and plate characters an image holds, multi-hot `[B, C]`."""
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


def pixels(corpus: Corpus, indices: np.ndarray) -> Tensor:
    """Normalised images `[B, 3, 96, 96]`, as the processor makes them."""
    images = torch.from_numpy(corpus.images[indices]).permute(0, 3, 1, 2)
    return images.float() / 127.5 - 1.0


def matmul_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention as two matrix products, all in the inputs' dtype.

    On CPUs the stock implementations are slow in bfloat16, or go through float32. Heads are
    `[B, H, L, D / H]`.
    """
    weights = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        weights = weights + attention_mask.to(weights.dtype)
    mixed = torch.matmul(torch.softmax(weights, dim=-1, dtype=weights.dtype), value)
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register("reference_matmul", matmul_attention)


def packed_mask(prefix: int) -> Tensor:
    """Additive mask `[1, 1, L, L]`: a causal prefix, then independent causal question slots."""
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
    """Logits at the answers of packed questions.

    Args:
        model: the reference VLM.
        features: tower features of all patches, [B, N, D].
        kept: positions of the visual tokens that stay, ascending, [B, K].
        tokens: question slots, [B, Q, S].
        starts: where each answer begins inside its slot, [B, Q].

    Returns:
        logits [A, V], targets [A] and, for each of the A answer tokens, its question's row in
        the flattened [B * Q].
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
    slot_positions = len(PREFIX) + NUM_VISUAL_TOKENS + torch.arange(slots) % SLOT_TOKENS
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


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 3 % of the steps, then a cosine to 2 % of the peak."""
    warmup = max(1, int(0.03 * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def batch_indices(recipe: ReferenceTraining, step: int, size: int) -> np.ndarray:
    """Images of one update: an epoch-wise permutation, a pure function of seed and step."""
    per_epoch = size // recipe.batch_size
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([recipe.seed, 7, epoch]).permutation(size)
    return np.sort(order[place * recipe.batch_size : (place + 1) * recipe.batch_size])


class Stage:
    """One resumable stage: parameters, optimiser, step counter and their file."""

    def __init__(
        self, name: str, module: nn.Module, steps: int, peak: float, folder: Path, save_every: int
    ) -> None:
        self.name, self.module, self.steps, self.peak = name, module, steps, peak
        self.path, self.save_every, self.step = folder / f"{name}.pt", save_every, 0
        matrices = [p for p in module.parameters() if p.requires_grad and p.ndim == 2]
        others = [p for p in module.parameters() if p.requires_grad and p.ndim != 2]
        groups = [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0}]
        self.optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
            logger.info("%s resumes at step %d of %d", name, self.step, steps)

    def update(self, loss: Tensor) -> None:
        """One optimiser step; saves every `save_every` steps and at the end."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.peak)
        self.optimizer.step()
        self.step += 1
        if self.step % self.save_every == 0 or self.step == self.steps:
            self.save()

    def save(self) -> None:
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)


def autocast() -> torch.autocast:
    """bfloat16 matrix products, about three times as fast as float32 on recent CPUs."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


def train_tower(
    model: LlavaForConditionalGeneration, corpus: Corpus, recipe: ReferenceTraining, folder: Path
) -> None:
    """Stage 1: dense supervision of the vision tower."""
    tower = model.model.vision_tower
    heads = DenseHeads(tower.config.hidden_size)
    module = nn.ModuleDict({"tower": tower, "heads": heads})
    stage = Stage(
        "tower", module, recipe.tower_steps, recipe.tower_learning_rate, folder, recipe.save_every
    )
    module.train()
    bar = tqdm(total=stage.steps, initial=stage.step, desc="tower", disable=None)
    while stage.step < stage.steps:
        indices = batch_indices(recipe, stage.step, len(corpus))
        labels = torch.from_numpy(corpus.labels[indices])
        with autocast():
            hidden = tower(pixels(corpus, indices), output_hidden_states=True).hidden_states[-1]
            loss, accuracy = heads.loss(hidden, labels)
        stage.update(loss)
        bar.update()
        if stage.step % 100 == 0:
            logger.info("tower step %d loss %.3f %s", stage.step, loss.item(), rounded(accuracy))


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


@torch.no_grad()
def cache_features(model: LlavaForConditionalGeneration, corpus: Corpus, folder: Path) -> Tensor:
    """Tower features of the whole corpus, bfloat16 `[M, N, D]`, memory-mapped."""
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
                hidden = tower(pixels(corpus, indices), output_hidden_states=True).hidden_states[-1]
            features[indices] = hidden[:, 1:].bfloat16()
        finished.touch()
    return features


def draw_kept(rng: np.random.Generator, batch: int, uneven: bool = False) -> Tensor:
    """Random positions that stay, the same number for the batch, ascending `[B, K]`.

    Args:
        rng: source of all choices.
        batch: B.
        uneven: in half of the images some regions, at random, keep more than others.
    """
    if uneven:
        count = int(rng.choice(UNEVEN_COUNTS, p=UNEVEN_WEIGHTS))
        keys = -rng.gumbel(size=(batch, NUM_VISUAL_TOKENS)) - uneven_density(rng, batch)
    else:
        count = int(rng.choice(KEPT_COUNTS, p=KEPT_WEIGHTS))
        keys = rng.random((batch, NUM_VISUAL_TOKENS))
    return torch.from_numpy(keys).argsort(dim=1)[:, :count].sort(dim=1).values


def uneven_density(rng: np.random.Generator, batch: int) -> np.ndarray:
    """Random fields of log-density `[B, N]`, zero for half of the images.

    They know nothing of the image. A selector keeps many tokens here and none there; a model that
    only saw even removal misjudges how much it sees, above all when it counts.
    """
    fields = np.zeros((batch, GRID, GRID))
    for row in range(batch):
        if rng.random() < 0.5:
            continue
        cells = int(rng.choice((2, 3, 4, 6, GRID)))
        coarse = rng.normal(size=(cells, cells)) * rng.choice((1.0, 2.0, 4.0))
        fields[row] = coarse.repeat(GRID // cells, axis=0).repeat(GRID // cells, axis=1)
        fields[row] = np.roll(fields[row], rng.integers(GRID, size=2), axis=(0, 1))
    return fields.reshape(batch, NUM_VISUAL_TOKENS)


def train_language(
    model: LlavaForConditionalGeneration,
    corpus: Corpus,
    features: Tensor,
    stage: Stage,
    seed: int,
    recipe: ReferenceTraining,
    uneven: bool,
) -> None:
    """Stages 2 and 3: projector and language model on cached features, tokens removed at random."""
    stage.module.train()
    bar = tqdm(total=stage.steps, initial=stage.step, desc=stage.name, disable=None)
    started, first = time.monotonic(), stage.step
    while stage.step < stage.steps:
        indices = batch_indices(recipe, stage.step, len(corpus))
        rng = np.random.default_rng([recipe.seed, seed, stage.step])
        kept = draw_kept(rng, len(indices), uneven)
        tokens = torch.from_numpy(corpus.tokens[indices]).long()
        starts = torch.from_numpy(corpus.starts[indices]).long()
        with autocast():
            inputs = features[indices].float()
            logits, targets, _ = answer_logits(model, inputs, kept, tokens, starts)
        loss = F.cross_entropy(logits, targets)
        stage.update(loss)
        bar.update()
        if stage.step % 50 == 0:
            pace = (time.monotonic() - started) / (stage.step - first)
            logger.info(
                "%s step %d kept %d loss %.3f, %.2f s per step",
                stage.name,
                stage.step,
                kept.shape[1],
                loss.item(),
                pace,
            )


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
    stages = (
        ("language", recipe.language_steps, recipe.language_learning_rate, 11, False),
        ("uneven", recipe.uneven_steps, recipe.uneven_learning_rate, 13, True),
    )
    for name, steps, peak, seed, uneven in stages:
        stage = Stage(name, module, steps, peak, work, recipe.save_every)
        train_language(model, corpus, features, stage, seed, recipe, uneven)
    save_vlm(model.eval(), output)
    logger.info("reference VLM written to %s", output)
