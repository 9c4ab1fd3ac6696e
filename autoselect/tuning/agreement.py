"""Agreement with the full model's own answers, their ends included, and the best weights by it.

An answer agrees if its text is the full model's and both end, or neither does, before the token
limit. Among weights with equal agreement, the one under which the full model's answers are the
likeliest is best. No label is read.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoselect.evaluation.asking.replies import Replies, Reply
from autoselect.evaluation.scores.intervals import Resampling, interval
from autoselect.evaluation.scores.scoring import ScoreTable
from autoselect.pruning.diversity import Diversity, DiversityCurve, TunedWeight

AGREEMENT = "agreement"


@dataclass(frozen=True)
class Measured:
    """One weight at one budget, in shares of all questions unless named otherwise.

    Attributes:
        agreement: answers that agree with the full model's.
        ci95: interval of the agreement over images.
        unended: answers that reach the token limit.
        loss: negative log-likelihood of the full model's answers, in nats per token.
    """

    weight: float
    agreement: float
    ci95: tuple[float, float]
    unended: float
    loss: float


@dataclass(frozen=True)
class TunedBudget:
    """What was found at one budget.

    Attributes:
        budget: K.
        share: K / N.
        measured: one entry per weight, in ascending order.
    """

    budget: int
    share: float
    measured: tuple[Measured, ...]

    @property
    def best(self) -> Measured:
        return max(self.measured, key=lambda one: (one.agreement, -one.loss))


def agreement_table(replies: Replies, full: Replies) -> ScoreTable:
    """Return for each image how many answers agree with the full model's."""
    sums = [
        sum(agrees(*pair) for pair in zip(own, whole, strict=True))
        for own, whole in zip(replies, full, strict=True)
    ]
    counts = [len(own) for own in full]
    return ScoreTable(
        (AGREEMENT,), np.array(sums, dtype=float)[:, None], np.array(counts, dtype=float)[:, None]
    )


def agrees(reply: Reply, full: Reply) -> bool:
    return reply.text == full.text and reply.ended == full.ended


def measure(
    columns: Mapping[tuple[int, float], Replies],
    full: Replies,
    num_tokens: int,
    pictures: Sequence[str],
) -> tuple[TunedBudget, ...]:
    """Measure every weight at every budget.

    Args:
        columns: replies by (K, weight).
        full: the full model's replies.
        num_tokens: N of the image that budgets refer to.
        pictures: what each sample shows, see `pictures_of`.
    """
    draws = Resampling.over(pictures)
    found: dict[int, list[Measured]] = {}
    for (budget, weight), replies in sorted(columns.items()):
        every = list(itertools.chain(*replies))
        table = agreement_table(replies, full)
        found.setdefault(budget, []).append(
            Measured(
                weight,
                table.mean(),
                interval(draws.task_means(table)[:, 0]),
                float(np.mean([not reply.ended for reply in every])),
                float(np.mean([reply.loss for reply in every if reply.loss is not None])),
            )
        )
    return tuple(
        TunedBudget(budget, budget / num_tokens, tuple(rows)) for budget, rows in found.items()
    )


def best_diversity(found: Sequence[TunedBudget], others: Sequence[TunedWeight] = ()) -> Diversity:
    """Return the best weight of each budget as a curve, or 0 if hard top-K is best at all.

    `others` are weights at other shares, of an earlier search.
    """
    points = [*others, *(TunedWeight(one.share, one.best.weight) for one in found)]
    return curve_of(points)


def curve_of(points: Sequence[TunedWeight]) -> Diversity:
    """Return weights at different shares as a diversity; 0 if all of them are."""
    if all(point.weight == 0 for point in points):
        return 0.0
    return DiversityCurve(tuple(sorted(points, key=lambda point: point.share)))
