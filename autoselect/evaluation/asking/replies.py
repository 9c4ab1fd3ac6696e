"""What is recorded of every answer: its text, its length, its end and a reference's likelihood."""

from collections.abc import Sequence
from dataclasses import dataclass

from autoselect.evaluation.scores.scoring import Answered, AnsweredSample


@dataclass(frozen=True)
class Generated:
    """One answer as the model gives it.

    Attributes:
        text: the answer without special tokens.
        ids: its token ids up to the end token, which is included; empty for a chosen candidate.
        ended: False if the token limit came before the end token.
        loss: negative log-likelihood of `ids` in nats per token; None if it was not asked for.
    """

    text: str
    ids: list[int]
    ended: bool
    loss: float | None = None


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        text: what the model said, without special tokens.
        tokens: generated tokens, the end token included; None if a candidate was chosen instead.
        ended: False if the token limit came before the end; None if a candidate was chosen.
        loss: negative log-likelihood of the reference answer and its end, in nats per token.
    """

    text: str
    tokens: int | None = None
    ended: bool | None = None
    loss: float | None = None


Replies = list[list[Reply]]
"""Replies by image and round."""


def texts_of(replies: Sequence[Sequence[Reply]]) -> list[list[str]]:
    """Return the texts alone, by image and round."""
    return [[reply.text for reply in own] for own in replies]


def answered_by(
    samples: Sequence[Answered], replies: Sequence[Sequence[Reply]]
) -> list[AnsweredSample]:
    """Return samples whose only accepted answer is the given one.

    With the full model's replies, the score of another column is its agreement with the full model.
    """
    return [
        AnsweredSample(
            sample.key,
            list(sample.questions),
            [[reply.text] for reply in own],
            list(sample.tasks),
            sample.image_digest,
        )
        for sample, own in zip(samples, replies, strict=True)
    ]
