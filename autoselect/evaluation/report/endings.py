"""What pruning does to the answers themselves: do they end, how long are they, are they likely.

A model that sees few tokens may say the right word and not stop. Accuracy alone shows that as wrong
answers, first-word accuracy alone hides it; these numbers stand beside both.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoselect.evaluation.answers.answering import Answers
from autoselect.evaluation.asking.replies import Reply, texts_of
from autoselect.evaluation.scores.intervals import retention
from autoselect.evaluation.scores.metrics import exact_match
from autoselect.evaluation.scores.scoring import (
    Answered,
    ScoreTable,
    average,
    exact_score,
    first_word_score,
    score_answers,
)


@dataclass(frozen=True)
class Endings:
    """How the answers of one column are, averaged over seeds.

    Attributes:
        unended: share of the generated answers that reach the token limit; NaN if none is
            generated.
        tokens: their mean length in tokens, the end token included; NaN if none is generated.
        loss: mean over questions of the reference answer's negative log-likelihood, its end
            included, in nats per token.
        agreement: share of the answers that are the full model's.
        exact: score of whole answers.
        first_word: score of first words.
    """

    unended: float
    tokens: float
    loss: float
    agreement: float
    exact: ScoreTable
    first_word: ScoreTable

    @classmethod
    def of(
        cls, samples: Sequence[Answered], replies: Sequence[Sequence[Reply]], full: Answers
    ) -> "Endings":
        """Measure one column; `full` holds the full model's texts by image and round."""
        every = [reply for own in replies for reply in own]
        generated = [reply for reply in every if reply.tokens is not None]
        texts = texts_of(replies)
        given, whole = (list(itertools.chain(*own)) for own in (texts, full))
        return cls(
            _mean([float(not reply.ended) for reply in generated]),
            _mean([float(reply.tokens or 0) for reply in generated]),
            _mean([reply.loss for reply in every if reply.loss is not None]),
            _mean([exact_match(*pair) for pair in zip(given, whole, strict=True)]),
            score_answers(samples, texts, exact_score),
            score_answers(samples, texts, first_word_score),
        )

    @staticmethod
    def mean(found: Sequence["Endings"]) -> "Endings":
        """Average the columns of several seeds."""
        numbers = {
            name: _mean([getattr(one, name) for one in found])
            for name in ("unended", "tokens", "loss", "agreement")
        }
        return Endings(
            **numbers,
            exact=average([one.exact for one in found]),
            first_word=average([one.first_word for one in found]),
        )


def measured_endings(own: Endings, full: Endings) -> dict[str, float]:
    """Return the numbers of one column beside the full model's, as the report holds them."""
    return {
        "unended": own.unended,
        "tokens": own.tokens,
        "length_ratio": own.tokens / full.tokens if full.tokens else math.nan,
        "loss": own.loss,
        "loss_difference": own.loss - full.loss,
        "agreement": own.agreement,
        "exact": own.exact.mean(),
        "exact_retention": retention(own.exact, full.exact),
        "first_word": own.first_word.mean(),
        "first_word_retention": retention(own.first_word, full.first_word),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
