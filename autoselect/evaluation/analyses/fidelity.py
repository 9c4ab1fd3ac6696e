"""Compare noise gating with hard removal: figure 5's random score maps, and the learned scores.

Training fills dropped tokens with noise and inference removes them. Under random scores the two may
agree and under learned ones not, because a trained selector drops what noise still replaces: tokens
that the model needs besides the objects. So both are measured, on samples that were not trained on.

Tokens are treated at one of the sites of a gate; what follows the site then sees noise, or fewer
tokens. Before the projector, removal is that behind it, because a projector maps each token alone.

Noise is drawn per channel, near to the paper's isotropic noise on normalised tokens, and also with
the full covariance of the tokens. The latter looks like tokens of other images, so a VLM may see
objects that are not there.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoselect.config import GateSite
from autoselect.evaluation.answers.answering import answer_sequences
from autoselect.evaluation.answers.fixed_choices import ImageChoices, whole_choices
from autoselect.evaluation.asking.replies import Replies, texts_of
from autoselect.evaluation.methods.choice import Choice, context_of
from autoselect.evaluation.methods.context import PATCHES, SelectionContext
from autoselect.evaluation.methods.ranking import random_tokens
from autoselect.evaluation.samples import EvaluationSample, encode_samples
from autoselect.evaluation.scores.intervals import Resampling, interval
from autoselect.evaluation.scores.scoring import known_mean, pictures_of, score_answers
from autoselect.method.removal import LARGEST_GAP
from autoselect.method.statistics import TokenStatistics, calibrate
from autoselect.ops.noise import NoiseKey
from autoselect.ops.noise_gate import noise_gate

logger = logging.getLogger(__name__)
REMOVAL, NOISE, ZEROS = "hard removal", "noise gating", "zero filling"
COVARIANCE = "covariance noise"
TREATMENTS = (REMOVAL, NOISE, COVARIANCE, ZEROS)
NOISE_RANK = 64

Keep = Callable[[SelectionContext, int], Tensor]
"""Returns the positions of the K tokens that are not dropped, [B, K]."""

CALIBRATION_IMAGES = 256


@dataclass(frozen=True)
class Noises:
    """Statistics of both kinds of noise that replace dropped tokens at a site."""

    site: GateSite
    per_channel: TokenStatistics
    covariance: TokenStatistics


def token_noises(
    vlm: Any, samples: Sequence[EvaluationSample], site: GateSite = "after_projector"
) -> Noises:
    """Calibrate both kinds of noise on the features at a site of at most the first 256 images."""
    tokens = []
    for start in range(0, min(CALIBRATION_IMAGES, len(samples)), 32):
        batch = samples[start : start + 32]
        visual = encode_samples(vlm, batch, site)
        tokens.append(visual.tokens.flatten(0, 1).float())
    return Noises(site, calibrate(tokens, None), calibrate(tokens, NOISE_RANK))


def random_positions(context: SelectionContext, budget: int) -> Tensor:
    """Return the positions of the K largest random scores, as in the paper's figure 5."""
    return random_tokens(context, budget).positions


def learned_positions(selector: Any) -> Keep:
    """Return the choice of a trained selector at its site, its diversity included."""
    return lambda context, budget: selector.select(context.scored(selector.site), budget)[1]


def warn_of_gap(found: dict[str, Any]) -> None:
    """Log a warning if removal under the learned scores loses more than noise gating does."""
    row = max(found["gaps"], key=lambda row: row["gap"])
    if row["gap"] > LARGEST_GAP:
        logger.warning(
            "with %d tokens under the learned scores, hard removal is %.1f points below noise "
            "gating (limit %.1f): training did not see what inference does; keep tokens that "
            "differ more (autoselect tune finds how much), or more of them",
            row["budget"],
            100 * row["gap"],
            100 * LARGEST_GAP,
        )


@torch.inference_mode()
def gating_fidelity(
    asked: Any,
    samples: Sequence[EvaluationSample],
    budgets: Sequence[int],
    noises: Noises,
    max_new_tokens: int,
    keep: Keep = random_positions,
    images_per_batch: int = 32,
) -> dict[str, Any]:
    """Measure accuracy with dropped tokens removed, replaced by noise, or set to zero.

    Args:
        asked: an `AskedVLM`.
        noises: site at which tokens are treated, and the statistics of its noise.
        max_new_tokens: longest answer in tokens.
        keep: chooses the tokens that are not dropped.

    Raises:
        ConfigError: the model does not have the site.

    Returns:
        `budgets`, `curves` (accuracy by treatment), `unended` (share of answers that reach the
        token limit, by treatment), `gaps` (noise gating minus removal at each
        budget, with its paired 95 % interval) and `mean_gap`.
    """
    answers: dict[str, Replies] = {}
    for start in range(0, len(samples), images_per_batch):
        chosen = list(samples[start : start + images_per_batch])
        encoded = asked.encode(chosen, sites={noises.site} - {"after_projector"})
        context = context_of([image for own in encoded.images for image in own])
        sequences: dict[str, ImageChoices | None] = {
            f"{treatment}@{budget}": sequence
            for budget in budgets
            for treatment, sequence in treated(
                context, keep(context, budget), noises, start
            ).items()
        }
        found = answer_sequences(asked, chosen, encoded, sequences, max_new_tokens)
        for place, replies in found.items():
            answers.setdefault(place, []).extend(replies)
    return _compare(samples, budgets, answers)


def treated(
    context: SelectionContext, positions: Tensor, noises: Noises, first: int
) -> dict[str, ImageChoices]:
    """Return what the LLM sees of every image if all but `positions` [B, K] are dropped."""
    site = noises.site
    features, onward = context.scored(site), context.onward.get(site, lambda tokens: tokens)
    gates = torch.zeros(features.shape[:2], device=features.device).scatter(1, positions, 1.0)
    ids = torch.arange(first, first + len(features), device=features.device)

    def noisy(statistics: TokenStatistics) -> ImageChoices:
        statistics = statistics.to(features.device)
        return whole_choices(onward(noise_gate(features, gates, statistics, NoiseKey(0, 0, ids))))

    left = context.encoded(positions) if site == PATCHES else context.at(positions)
    rows = torch.arange(len(features), device=features.device)[:, None]
    tokens = context.tokens.index_put((rows, left.positions), left.tokens)
    return {
        REMOVAL: [[Choice(kept, own)] for kept, own in zip(left.positions, tokens, strict=True)],
        NOISE: noisy(noises.per_channel),
        COVARIANCE: noisy(noises.covariance),
        ZEROS: whole_choices(onward(features * gates[..., None].to(features.dtype))),
    }


def unended(replies: Replies) -> float:
    """Return the share of generated answers that reach the token limit."""
    every = [reply.ended for own in replies for reply in own]
    return every.count(False) / len(every)


def _compare(
    samples: Sequence[EvaluationSample],
    budgets: Sequence[int],
    answers: dict[str, Replies],
) -> dict[str, Any]:
    tables = {
        (treatment, budget): score_answers(samples, texts_of(answers[f"{treatment}@{budget}"]))
        for treatment in TREATMENTS
        for budget in budgets
    }
    draws = Resampling.over(pictures_of(samples))
    gaps: list[dict[str, Any]] = []
    for budget in budgets:
        noise, removal = (draws.task_means(tables[t, budget]) for t in (NOISE, REMOVAL))
        low, high = interval(known_mean(noise - removal))
        gap = tables[NOISE, budget].mean() - tables[REMOVAL, budget].mean()
        gaps.append({"budget": budget, "gap": gap, "ci95": [low, high]})
    return {
        "budgets": list(budgets),
        "curves": {t: [tables[t, b].mean() for b in budgets] for t in TREATMENTS},
        "unended": {t: [unended(answers[f"{t}@{b}"]) for b in budgets] for t in TREATMENTS},
        "gaps": gaps,
        "mean_gap": sum(abs(row["gap"]) for row in gaps) / len(gaps),
    }
