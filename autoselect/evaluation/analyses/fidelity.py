"""Figure 5: noise gating loses as much as hard removal under the same random score maps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autoselect.calibration import TokenStatistics, calibrate
from autoselect.evaluation.answering import Answers, image_context, question_batches
from autoselect.evaluation.context import SelectionContext
from autoselect.evaluation.intervals import Resampling, interval
from autoselect.evaluation.ranking import random_scores
from autoselect.evaluation.samples import EvaluationSample
from autoselect.evaluation.scoring import score_answers
from autoselect.ops.hard_top_k import hard_top_k
from autoselect.ops.noise_gate import NoiseKey, noise_gate

REMOVAL, NOISE, ZEROS = "hard removal", "noise gating", "zero filling"
NOISE_RANK = 64
CALIBRATION_IMAGES = 256


def token_statistics(
    vlm: Any, samples: Sequence[EvaluationSample], rank: int | None = NOISE_RANK
) -> TokenStatistics:
    """Statistics of the visual tokens of the first images, for the noise.

    Args:
        vlm: a `FrozenVLM`.
        samples: at most the first 256 are used.
        rank: of the covariance factor; None for noise per channel.
    """

    def batches():
        for start in range(0, min(CALIBRATION_IMAGES, len(samples)), 32):
            images = [sample.image for sample in samples[start : start + 32]]
            yield vlm.encode_images(images).tokens.flatten(0, 1).float()

    return calibrate(batches(), rank)


@torch.inference_mode()
def gating_fidelity(
    vlm: Any,
    samples: Sequence[EvaluationSample],
    budgets: Sequence[int],
    statistics: TokenStatistics,
    images_per_batch: int = 32,
    rows_per_batch: int = 160,
    max_new_tokens: int = 4,
) -> dict[str, Any]:
    """Accuracy under random score maps with dropped tokens removed, replaced by noise, or by zero.

    Args:
        vlm: a `FrozenVLM`.
        samples: what is asked.
        budgets: tokens kept.
        statistics: of the noise that takes the place of dropped tokens.
        images_per_batch: images encoded together.
        rows_per_batch: questions answered together.
        max_new_tokens: longest answer in tokens.

    Returns:
        `budgets`, `curves` (accuracy by treatment), `gaps` (noise gating minus removal at each
        budget, with its paired 95 % interval) and `mean_gap`.
    """
    answers: dict[tuple[str, int], Answers] = {
        (treatment, budget): [] for treatment in (REMOVAL, NOISE, ZEROS) for budget in budgets
    }
    for start in range(0, len(samples), images_per_batch):
        chosen = list(samples[start : start + images_per_batch])
        context = image_context(vlm, chosen, ())
        inputs = {
            (treatment, budget): sequence
            for budget in budgets
            for treatment, sequence in _treated(context, budget, statistics, start).items()
        }
        for place in inputs:
            answers[place] += [[""] * len(sample.questions) for sample in chosen]
        for batch in question_batches(vlm, chosen, rows_per_batch, context.tokens.device):
            for place, (tokens, positions) in inputs.items():
                where = None if positions is None else positions[batch.owner]
                prefix = vlm.prefix(batch.prompt, tokens[batch.owner], where)
                texts = vlm.generate(prefix, max_new_tokens)
                for (image, turn), text in zip(batch.places, texts, strict=True):
                    answers[place][start + image][turn] = text
    return _compare(samples, budgets, answers)


def _treated(
    context: SelectionContext, budget: int, statistics: TokenStatistics, first: int
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """What the LLM sees of the visual tokens under each treatment; None means every position."""
    tokens = context.tokens
    positions = hard_top_k(random_scores(context), budget)
    gates = torch.zeros(tokens.shape[:2], device=tokens.device).scatter(1, positions, 1.0)
    ids = torch.arange(first, first + len(tokens), device=tokens.device)
    statistics = statistics.to(tokens.device)
    noisy = noise_gate(
        tokens, gates, statistics.mean, statistics.std, NoiseKey(0, 0, ids), statistics.factor
    )
    kept = context.at(positions)
    return {
        REMOVAL: (kept.tokens, kept.positions),
        NOISE: (noisy, None),
        ZEROS: (tokens * gates[..., None].to(tokens.dtype), None),
    }


def _compare(
    samples: Sequence[EvaluationSample],
    budgets: Sequence[int],
    answers: dict[tuple[str, int], Answers],
) -> dict[str, Any]:
    tables = {place: score_answers(samples, texts) for place, texts in answers.items()}
    draws = Resampling.of(len(samples))
    gaps: list[dict[str, Any]] = []
    for budget in budgets:
        noise, removal = (draws.task_means(tables[t, budget]) for t in (NOISE, REMOVAL))
        low, high = interval((noise - removal).mean(axis=1))
        gap = tables[NOISE, budget].mean() - tables[REMOVAL, budget].mean()
        gaps.append({"budget": budget, "gap": gap, "ci95": [low, high]})
    return {
        "budgets": list(budgets),
        "curves": {t: [tables[t, b].mean() for b in budgets] for t in (REMOVAL, NOISE, ZEROS)},
        "gaps": gaps,
        "mean_gap": sum(abs(row["gap"]) for row in gaps) / len(gaps),
    }
