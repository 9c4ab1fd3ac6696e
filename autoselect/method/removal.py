"""What hard removal does to a frozen model's answers, beside noise filling and all tokens.

Most gates fill closed tokens with noise in training (`GateConfig.fills`), and inference removes
them. A trained selector may drop tokens whose noise still serves the model, and then answers do not
end although training never saw that. The measures here force the reference answers (no generation),
so they cost three forward passes per batch; a removed token is hidden from attention, which is the
same as leaving it out.

Dimension letters: I images, N visual tokens of one image, K that stay, M visual tokens of a batch,
B rows, T text tokens, V vocabulary.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoselect.method.gating import open_at
from autoselect.method.model import AutoSelect
from autoselect.ops.hard_top_k import hard_top_k
from autoselect.ops.noise import NoiseKey
from autoselect.ops.noise_gate import noise_gate
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.batches.batch import TrainBatch
from autoselect.vlm.forward import text_hidden
from autoselect.vlm.head import head_logits
from autoselect.vlm.sites import SITES, VisualTokens
from autoselect.vlm.text.tokens import IGNORED_LABEL, end_ids

Choose = Callable[[Tensor, Tensor, int, Tensor | None], Tensor]
"""Returns positions [I, K] from scores [I, N], tokens [I, N, D], K and mask; -1 for nothing."""

LARGEST_GAP = 0.02
"""Difference of shares, noise filling minus removal, above which `RemovalGap` warns."""


@dataclass(frozen=True)
class Outcome:
    """How a model predicts given answers, as sums over some batches.

    Attributes:
        loss_sum: next-token loss over all answer tokens, in nats.
        tokens: how many there are.
        answers: number of answers.
        right: answers all of whose tokens, the end included, are the likeliest.
        ended: answers whose end is the likeliest token behind the right answer.
    """

    loss_sum: float = 0.0
    tokens: int = 0
    answers: int = 0
    right: int = 0
    ended: int = 0

    def __add__(self, other: "Outcome") -> "Outcome":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Outcome(*(one + more for one, more in pairs))

    def numbers(self) -> dict[str, float]:
        """Return `loss` in nats per token, and `right` and `unended` as shares of the answers."""
        answers = max(1, self.answers)
        return {
            "loss": self.loss_sum / max(1, self.tokens),
            "right": self.right / answers,
            "unended": 1 - self.ended / answers,
        }


@torch.no_grad()
def forced_outcome(
    vlm: FrozenVLM,
    batch: TrainBatch,
    outputs: Mapping[str, Any],
    kept: Tensor | None = None,
) -> Outcome:
    """Return how the model predicts the answers of a batch.

    Args:
        vlm: the frozen model.
        batch: rows with answers, on the model's device.
        outputs: encoder outputs with M features, see `VisualAdapter.replace`.
        kept: false at visual tokens that are removed, in order of appearance, [M]; None for none.
    """
    adapter, log_weights = vlm.adapter, None
    if kept is not None and not bool(kept.all()):
        lowest = torch.finfo(adapter.model.dtype).min / 2
        log_weights = torch.zeros(len(kept), device=kept.device).masked_fill(~kept, lowest)
    hidden = text_hidden(adapter, batch, outputs, log_weights=log_weights)
    is_answer = batch.labels != IGNORED_LABEL
    logits = head_logits(adapter.model, hidden[is_answer]).float()
    labels = batch.labels[is_answer]
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    likeliest = logits.argmax(dim=-1) == labels
    ends = torch.tensor(end_ids(adapter.model, vlm.processor.tokenizer), device=labels.device)
    right = ended = 0
    pieces = answer_lengths(batch.labels, batch.segments)
    for own, ids in zip(likeliest.split(pieces), labels.split(pieces), strict=True):
        places = torch.isin(ids, ends).nonzero()
        end = int(places[0]) if len(places) else len(ids) - 1
        right += int(own[: end + 1].all())
        ended += int(own[end])
    return Outcome(float(losses), len(labels), len(pieces), right, ended)


def answer_lengths(labels: Tensor, segments: Tensor) -> list[int]:
    """Return the number of labels of each answer, row by row.

    An answer is a run of labels in one row and one segment; both are [B, T].
    """
    is_answer = labels != IGNORED_LABEL
    before = torch.nn.functional.pad(is_answer[:, :-1], (1, 0))
    changed = torch.nn.functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    starts = (is_answer & (~before | changed))[is_answer]
    return starts.cumsum(dim=0).bincount()[1:].tolist() if len(starts) else []


def kept_places(gates: Tensor, visual: VisualTokens) -> Tensor:
    """Return the positions at which gates [I, N] of real tokens are 1, image after image, int64."""
    real = gates > 0 if visual.mask is None else (gates > 0) & visual.mask
    return real.nonzero()[:, 1]


@dataclass(frozen=True)
class RemovalGap:
    """Hard removal beside noise filling, under the learned scores.

    Attributes:
        budget: K.
        full: with all tokens.
        removed: with the K chosen tokens alone.
        filled: with noise in place of the others, repaired by the Denoiser as in training.
    """

    budget: int
    full: Outcome
    removed: Outcome
    filled: Outcome

    @property
    def gap(self) -> float:
        """Share of right answers with noise filling minus that with removal."""
        return self.filled.numbers()["right"] - self.removed.numbers()["right"]

    @property
    def ending_gap(self) -> float:
        """Share of unended answers with removal minus that with noise filling."""
        return self.removed.numbers()["unended"] - self.filled.numbers()["unended"]

    def metrics(self) -> dict[str, float]:
        """Return all numbers by name, such as `removal/removed/loss` and `removal/gap`."""
        named = {"full": self.full, "removed": self.removed, "filled": self.filled}
        found = {
            f"removal/{name}/{key}": value
            for name, outcome in named.items()
            for key, value in outcome.numbers().items()
        }
        return found | {"removal/gap": self.gap, "removal/ending_gap": self.ending_gap}

    def warning(self, limit: float = LARGEST_GAP) -> str | None:
        """Return what to do if removal is worse than noise filling by more than `limit`."""
        if max(self.gap, self.ending_gap) <= limit:
            return None
        return (
            f"with {self.budget} tokens, removal gives {100 * self.gap:.1f} points fewer right "
            f"answers and {100 * self.ending_gap:.1f} points more unended ones than noise filling "
            f"(limit {100 * limit:.1f}): the selector drops tokens that the model needs; keep "
            "tokens that differ more (autoselect tune), or more of them, or train with "
            "--gate.coverage 0.5"
        )


@torch.no_grad()
def removal_gaps(
    model: AutoSelect,
    batches: Iterable[TrainBatch],
    budgets: Sequence[int],
    choices: Mapping[str, Choose],
) -> dict[str, list[RemovalGap]]:
    """Measure the gap of each choice at each budget on batches that were not trained on.

    The gate of the training must fill closed tokens with noise (`GateConfig.fills`): no other
    Denoiser has seen what it repairs here.

    Images are encoded and scored once, and the full model answers once, for all of them.

    Args:
        model: Scorer, Denoiser and frozen model.
        batches: rows with images, on the model's device; those without are skipped.
        budgets: numbers K; images with fewer tokens keep all.
        choices: by name, what chooses as at inference, such as `Selector.choose`.
    """
    full = Outcome()
    cells = [(name, budget) for name in choices for budget in budgets]
    removed = dict.fromkeys(cells, Outcome())
    filled = dict.fromkeys(cells, Outcome())
    for step, batch in enumerate(batches):
        if not batch.num_images:
            continue
        pixels = model.vlm.to_device(batch.pixels)
        visual = model.site.read(model.adapter, pixels, batch.input_ids, batch.tokens_per_image)
        scores = model.scorer(visual.tokens, visual.mask).float()
        key = NoiseKey(0, step, batch.image_ids)
        everything = kept_places(torch.ones_like(scores), visual)
        outputs = model.site.pruned(model.adapter, visual.outputs, everything, visual.counts)
        full += forced_outcome(model.vlm, batch, outputs)
        for name, budget in cells:
            count = min(budget, scores.shape[1])
            positions = choices[name](scores, visual.tokens, count, visual.mask)
            gates = open_at(positions, scores.shape[1])
            kept = visual.real(gates).bool()
            counts = [int(own) for own in gates.sum(dim=1)]
            places = kept_places(gates, visual)
            outputs = model.site.pruned(model.adapter, visual.outputs, places, counts)
            removed[name, budget] += forced_outcome(model.vlm, batch, outputs, kept)
            tokens = model.statistics.fitted(visual.gated)
            noisy = noise_gate(tokens, gates, model.statistics, key)
            replaced = model.repaired(visual, noisy)
            filled[name, budget] += forced_outcome(model.vlm, batch, replaced)
    return {
        name: [RemovalGap(k, full, removed[name, k], filled[name, k]) for k in budgets]
        for name in choices
    }


@torch.no_grad()
def random_removal(
    vlm: FrozenVLM, batches: Iterable[TrainBatch], budgets: Sequence[int], seed: int = 0
) -> dict[int | None, Outcome]:
    """Return how a model predicts answers if a random subset of K tokens of each image stays.

    Args:
        vlm: the frozen model.
        batches: rows with images, on the model's device; those without are skipped.
        budgets: numbers K.
        seed: draws the subsets.

    Returns:
        the outcome by K, and with all tokens as None.
    """
    site = SITES["after_projector"]
    generator = torch.Generator().manual_seed(seed)
    found: dict[int | None, Outcome] = {budget: Outcome() for budget in (None, *budgets)}
    for batch in batches:
        if not batch.num_images:
            continue
        pixels = vlm.to_device(batch.pixels)
        visual = site.read(vlm.adapter, pixels, batch.input_ids, batch.tokens_per_image)
        found[None] += forced_outcome(vlm, batch, visual.outputs)
        scores = torch.rand(visual.tokens.shape[:2], generator=generator).to(visual.tokens.device)
        for budget in budgets:
            positions = hard_top_k(scores, min(budget, scores.shape[1]), visual.mask)
            kept = visual.real(open_at(positions, scores.shape[1])).bool()
            found[budget] += forced_outcome(vlm, batch, visual.outputs, kept)
    return found
