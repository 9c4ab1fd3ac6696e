"""Compare removal with noise filling as in training, under the same kept tokens.

Training replaces what it drops by noise, which the Denoiser then repairs; inference removes it. If
the full model's answers survive the first and not the second, training did not see what inference
does.

Dimension letters: I images, N visual tokens, K tokens that stay, C channels at the gate's site.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autoselect.evaluation.analyses.leak import TrainedGate, load_gate
from autoselect.evaluation.answers.answering import ImageChoices, Plan, answer_sequences
from autoselect.evaluation.answers.replies import Replies, Reply
from autoselect.evaluation.methods.choice import Choice
from autoselect.evaluation.samples import EvaluationSample
from autoselect.evaluation.scores.intervals import Resampling, interval
from autoselect.evaluation.scores.scoring import ScoreTable
from autoselect.ops.noise import NoiseKey
from autoselect.ops.noise_gate import noise_gate
from autoselect.pruning.selector import Selector
from autoselect.tuning.agreement import agreement_table
from autoselect.vlm.sites import SITES

logger = logging.getLogger(__name__)
LARGEST_GAP = 0.02
"""Gap above which training warns, as a share of the answers."""
SCORES, SELECTED = "scores", "selected"


@torch.inference_mode()
def measure_gaps(
    asked: Any,
    samples: Sequence[EvaluationSample],
    full: Replies,
    selector: Selector,
    plan: Plan,
    run: str,
) -> list[dict[str, Any]]:
    """Return the gap at each budget: agreement with noise filling minus that with removal.

    Args:
        asked: an `AskedVLM`.
        samples: images and questions; those of several images are left out.
        full: the full model's replies.
        selector: the selector as it is used; its scores alone are compared too.
        plan: budgets and sizes.
        run: output folder of the training.

    Returns:
        one row per budget and selection: by `scores` alone, or as `selected` with diversity. Each
        has both agreements, `gap` and its paired interval `ci95`.
    """
    gate = load_gate(run, asked.vlm)
    hard = Selector(selector.scorer, selector.metadata, 0.0)
    selectors = {SCORES: hard, SELECTED: selector}
    single = [i for i, sample in enumerate(samples) if len(sample.images) == 1]
    answers: dict[str, list[list[str]]] = {}
    for start in range(0, len(single), plan.images_per_part):
        part = [samples[i] for i in single[start : start + plan.images_per_part]]
        encoded = asked.encode(part)
        sequences: dict[str, ImageChoices | None] = {}
        for name, own in selectors.items():
            for budget in plan.budgets:
                kept = [
                    [
                        own.select(image.tokens[None], plan.kept_tokens(budget, len(image)))[1][0]
                        for image in images
                    ]
                    for images in encoded.images
                ]
                removed = [
                    [
                        Choice(*pair)
                        for pair in zip(positions, [i.features for i in images], strict=True)
                    ]
                    for positions, images in zip(kept, encoded.images, strict=True)
                ]
                sequences[f"{name}@{budget}:removal"] = removed
                sequences[f"{name}@{budget}:noise"] = filled(asked, gate, part, kept, start)
        given = answer_sequences(
            asked, part, encoded, sequences, plan.max_new_tokens, plan.rows_per_batch
        )
        for name, texts in given.items():
            answers.setdefault(name, []).extend(texts)
    return _compare(answers, [full[i] for i in single], plan.budgets)


def filled(
    asked: Any,
    gate: TrainedGate,
    samples: Sequence[EvaluationSample],
    kept: Sequence[Sequence[Tensor]],
    first: int,
) -> ImageChoices:
    """Return all tokens of some images, those not kept filled with noise and repaired.

    Args:
        asked: an `AskedVLM`.
        gate: gate, Denoiser and statistics of the training.
        samples: samples of one image each.
        kept: positions that stay of every block of every sample, [K] each.
        first: number of the first sample, which keys the noise.
    """
    visual = asked.vlm.encode_images([sample.image for sample in samples], gate.site)
    positions = [own for blocks in kept for own in blocks]
    gates = torch.zeros(visual.gated.shape[:2], device=visual.gated.device)
    for row, own in enumerate(positions):
        gates[row, own] = 1.0
    ids = torch.arange(first, first + len(gates), device=gates.device)
    gated = noise_gate(visual.gated, gates, gate.statistics, NoiseKey(0, 0, ids))
    own, later = gated[..., : visual.width], gated[..., visual.width :]
    repaired = own if gate.denoiser is None else gate.denoiser(own)
    finished = SITES[gate.site].finish(asked.vlm.adapter, repaired)
    features = torch.cat([finished, later], dim=-1)
    choices: ImageChoices = [[] for _ in samples]
    for block, row in zip(visual.blocks, features, strict=True):
        everything = torch.arange(len(block), device=row.device)
        choices[block.row].append(Choice(everything, row[: len(block)]))
    return choices


def _compare(
    answers: dict[str, list[list[str]]], full: Replies, budgets: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the gaps; only texts are compared, because both sides have the same token limit."""
    texts = [[Reply(reply.text) for reply in own] for own in full]
    draws = Resampling.of(len(full))

    def table(name: str) -> ScoreTable:
        return agreement_table([[Reply(text) for text in own] for own in answers[name]], texts)

    rows: list[dict[str, Any]] = []
    for budget in budgets:
        for name in (SCORES, SELECTED):
            removal, noise = (table(f"{name}@{budget}:{way}") for way in ("removal", "noise"))
            difference = draws.task_means(noise) - draws.task_means(removal)
            rows.append(
                {
                    "budget": budget,
                    "selection": name,
                    "removal": removal.mean(),
                    "noise": noise.mean(),
                    "gap": noise.mean() - removal.mean(),
                    "ci95": interval(difference[:, 0]),
                }
            )
    return rows


def warn_of_gap(gaps: Sequence[dict[str, Any]]) -> None:
    """Warn if removal as selected loses more than `LARGEST_GAP` against noise filling."""
    worst = max((row for row in gaps if row["selection"] == SELECTED), key=lambda row: row["gap"])
    if worst["gap"] <= LARGEST_GAP:
        return
    low, high = worst["ci95"]
    logger.warning(
        "with %d tokens, removal loses %.1f points (%.1f to %.1f) of agreement with the full model "
        "against filling the other tokens with noise, as training does (limit %.1f): the selector "
        "drops what the model needs besides the objects; train with --gate.removal per_image, or "
        "keep more tokens",
        worst["budget"],
        100 * worst["gap"],
        100 * low,
        100 * high,
        100 * LARGEST_GAP,
    )
