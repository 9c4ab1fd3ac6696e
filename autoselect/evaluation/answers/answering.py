"""Answers of one batch of images under every method and budget; each image is encoded once.

For every column: choose what stays of each image, prune the prompts, generate.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from autoselect.evaluation.answers.fixed_choices import ImageChoices, blind_choices, other_choices
from autoselect.evaluation.asking.asked_vlm import Encoded, Prompts
from autoselect.evaluation.asking.choices import ANSWERS, GENERATION, GREEDY
from autoselect.evaluation.asking.likelihood import answers_of, candidates
from autoselect.evaluation.asking.replies import Generated, Replies, Reply
from autoselect.evaluation.methods.choice import Choice, choose, pruned_call
from autoselect.evaluation.methods.registry import Method
from autoselect.evaluation.samples import EvaluationSample
from autoselect.evaluation.scores.scoring import Place, places_of
from autoselect.pruning.budget import budget_to_tokens

FULL, BLIND, OTHER = "full", "blind", "other_image"
BOUNDS = (FULL, BLIND, OTHER)
ROWS_PER_BATCH = 160
Answers = list[list[str]]


@dataclass(frozen=True)
class Column:
    """One evaluated column: a method at a budget with a seed; or full, blind, or another image."""

    method: str
    budget: int
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.method}@{self.budget}#{self.seed}"


@dataclass(frozen=True)
class Plan:
    """Methods, budgets and sizes of an evaluation.

    Attributes:
        methods: ways to keep tokens.
        budgets: tokens kept of an image with `num_tokens`; the same share stays of any other image.
        num_tokens: N, visual tokens of the image that budgets refer to.
        images_per_part: images encoded together; also the unit of restart and of distribution.
        rows_per_batch: questions answered together.
        max_new_tokens: longest answer in tokens.
        scoring: way of answering, see `autoselect/evaluation/asking/likelihood.py`.
        reference: `answers` if the data's answers are right, `model` if the full model's own are.
        others: whether samples show different images, so that a column can show those of another.
    """

    methods: tuple[Method, ...]
    budgets: tuple[int, ...]
    num_tokens: int
    images_per_part: int = 32
    rows_per_batch: int = ROWS_PER_BATCH
    max_new_tokens: int = 16
    scoring: str = GENERATION
    reference: str = ANSWERS
    others: bool = False

    def bounds(self) -> list[Column]:
        """Return the columns without a method: full first, then what the model knows unseen."""
        names = BOUNDS if self.others else (FULL, BLIND)
        return [Column(name, 0) for name in names]

    def columns(self) -> list[Column]:
        """Return every column, full first."""
        return self.bounds() + [
            Column(method.name, budget, seed)
            for method in self.methods
            for budget in self.budgets
            for seed in method.seeds
        ]

    def kept_tokens(self, budget: int, image_tokens: int) -> int:
        """Return K of an image: `budget`, or the same share of an image of another size."""
        if image_tokens == self.num_tokens:
            return budget
        return budget_to_tokens(budget / self.num_tokens, image_tokens)


@torch.inference_mode()
def answer_part(
    asked: Any,
    samples: Sequence[EvaluationSample],
    plan: Plan,
    others: Sequence[EvaluationSample] = (),
) -> dict[str, Replies]:
    """Return the replies to every question of some images: column name -> image -> round -> reply.

    Questions are batched in the order of their length, to reduce padding.

    Args:
        asked: an `AskedVLM`.
        samples: images and questions.
        plan: what is asked, and how.
        others: for each sample one with other images, if the plan has a column for them.
    """
    attention = any("class_attention" in method.needs for method in plan.methods)
    sites = {method.site for method in plan.methods} - {"after_projector"}
    encoded = asked.encode(samples, attention, sorted(sites))
    by_image = dict(_image_choices(encoded, plan))
    if plan.others:
        by_image[Column(OTHER, 0)] = other_choices(encoded, asked.encode(others))
    by_image[Column(BLIND, 0)] = blind_choices(encoded)
    replies = {
        str(column): [[Reply("")] * len(sample.questions) for sample in samples]
        for column in plan.columns()
    }
    for places in question_batches(samples, plan.rows_per_batch):
        batch = _Batch(asked, samples, encoded, places, plan)
        by_question = dict(_question_choices(asked, encoded, batch.prompts, plan))
        for column in plan.columns():
            chosen = by_question.get(column)
            if chosen is None and column in by_image:
                chosen = [choice for i, _ in places for choice in by_image[column][i]]
            for (image, turn), reply in zip(places, batch.replies(chosen), strict=True):
                replies[str(column)][image][turn] = reply
    return replies


class _Batch:
    """Questions that are answered together, once per column; the full model goes first."""

    def __init__(
        self,
        asked: Any,
        samples: Sequence[EvaluationSample],
        encoded: Encoded,
        places: Sequence[Place],
        plan: Plan,
    ) -> None:
        self.asked, self.encoded, self.plan = asked, encoded, plan
        self.samples, self.places = samples, places
        self.prompts: Prompts = asked.prompts(samples, encoded, places)
        scoring = plan.scoring
        self.options = [
            candidates(samples[i].questions[r], samples[i].answers[r], scoring) for i, r in places
        ]
        self.references: list[list[int]] | None = None
        if plan.reference == ANSWERS:
            self.references = [
                asked.answer_ids(
                    len(samples[i].images), samples[i].asked(r), samples[i].answers[r][0]
                )
                for i, r in places
            ]

    def replies(self, chosen: Sequence[Choice] | None) -> list[Reply]:
        """Return one reply per question; `chosen` is what stays of each image, None for all."""
        call, kept = pruned_call(self.asked, self.prompts, self.encoded, chosen)
        given = answers_of(self.asked, call, kept, self.options, self.plan.max_new_tokens)
        if self.references is None:
            self.references = [one.ids for one in given]
        losses = self._losses(given, chosen)
        return [
            Reply(one.text, len(one.ids) or None, one.ended if one.ids else None, loss)
            for one, loss in zip(given, losses, strict=True)
        ]

    def _losses(
        self, given: Sequence[Generated], chosen: Sequence[Choice] | None
    ) -> list[float | None]:
        """Return the loss of each reference; those that were not generated take a forward pass."""
        assert self.references is not None
        pairs = list(zip(given, self.references, strict=True))
        losses = [one.loss if one.ids == reference else None for one, reference in pairs]
        rest = [row for row, loss in enumerate(losses) if loss is None]
        if not rest:
            return losses
        places = [self.places[row] for row in rest]
        prompts = self.asked.prompts(self.samples, self.encoded, places)
        if chosen is not None:
            ends = list(itertools.accumulate(len(self.encoded.images[i]) for i, _ in self.places))
            begins = [0, *ends]
            chosen = [choice for row in rest for choice in chosen[begins[row] : ends[row]]]
        call, kept = pruned_call(self.asked, prompts, self.encoded, chosen)
        found = self.asked.losses(call, kept, [self.references[row] for row in rest])
        for row, loss in zip(rest, found, strict=True):
            losses[row] = loss
        return losses


def answer_sequences(
    asked: Any,
    samples: Sequence[EvaluationSample],
    encoded: Encoded,
    sequences: Mapping[str, ImageChoices | None],
    max_new_tokens: int,
) -> dict[str, Replies]:
    """Return the replies of some images to given visual tokens: name -> image -> round -> reply.

    `sequences` names what the model sees of every image; None for the untouched model.
    """
    options = {"max_new_tokens": max_new_tokens, **GREEDY}
    replies = {
        name: [[Reply("")] * len(sample.questions) for sample in samples] for name in sequences
    }
    for places in question_batches(samples, ROWS_PER_BATCH):
        prompts = asked.prompts(samples, encoded, places)
        for name, choices in sequences.items():
            chosen = None
            if choices is not None:
                chosen = [choice for i, _ in places for choice in choices[i]]
            call, kept = pruned_call(asked, prompts, encoded, chosen)
            given = asked.generated(call, kept, options)
            for (image, turn), one in zip(places, given, strict=True):
                replies[name][image][turn] = Reply(one.text, len(one.ids), one.ended)
    return replies


def _image_choices(encoded: Encoded, plan: Plan) -> Iterator[tuple[Column, ImageChoices]]:
    """Choose by every method that looks at images only."""
    images = [image for own in encoded.images for image in own]
    for method in plan.methods:
        if method.per_question:
            continue
        for seed in method.seeds:
            for budget in plan.budgets:
                chosen = iter(choose(method, images, partial(plan.kept_tokens, budget), seed))
                by_sample = [[next(chosen) for _ in own] for own in encoded.images]
                yield Column(method.name, budget, seed), by_sample


def _question_choices(
    asked: Any, encoded: Encoded, prompts: Prompts, plan: Plan
) -> Iterator[tuple[Column, list[Choice]]]:
    """Choose by every method that looks at the questions too; one choice per image of a batch."""
    methods = [method for method in plan.methods if method.per_question]
    needs = {need for method in methods for need in method.needs}
    questions = asked.question_embeddings(prompts) if "question" in needs else None
    attention = asked.llm_attention(prompts, encoded) if "llm_attention" in needs else None
    for method in methods:
        for budget in plan.budgets:
            chosen = choose(
                method,
                prompts.images,
                partial(plan.kept_tokens, budget),
                questions=questions,
                attention=attention,
            )
            yield Column(method.name, budget), chosen


def question_batches(
    samples: Sequence[EvaluationSample], rows_per_batch: int
) -> Iterator[list[Place]]:
    """Yield all questions about some images in batches, shortest first."""
    places = sorted(places_of(samples), key=lambda at: len(samples[at[0]].questions[at[1]]))
    for start in range(0, len(places), rows_per_batch):
        yield places[start : start + rows_per_batch]
