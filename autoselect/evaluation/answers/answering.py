"""Answers of one batch of images under every method and budget; each image is encoded once.

For every column: choose what stays of each image, prune the prompts, generate.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from autoselect.evaluation.answers.asking import Encoded, Place, Prompts
from autoselect.evaluation.answers.likelihood import GENERATION, answers_of, candidates
from autoselect.evaluation.methods.choice import Choice, choose
from autoselect.evaluation.methods.registry import Method
from autoselect.evaluation.samples import EvaluationSample
from autoselect.pruning.budget import budget_to_tokens

FULL, BLIND = "full", "blind"
Answers = list[list[str]]
ImageChoices = list[list[Choice]]
"""What stays of every image of every sample."""


@dataclass(frozen=True)
class Column:
    """One evaluated column: a method at a budget with a seed; or full, or blind."""

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
        scoring: way of answering, see `autoselect/evaluation/answers/likelihood.py`.
    """

    methods: tuple[Method, ...]
    budgets: tuple[int, ...]
    num_tokens: int
    images_per_part: int = 32
    rows_per_batch: int = 160
    max_new_tokens: int = 16
    scoring: str = GENERATION

    def columns(self) -> list[Column]:
        """Return every column, full and blind first."""
        return [Column(FULL, 0), Column(BLIND, 0)] + [
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
def answer_part(asked: Any, samples: Sequence[EvaluationSample], plan: Plan) -> dict[str, Answers]:
    """Return the answers to every question of some images: column name -> image -> round -> text.

    Questions are batched in the order of their length, to reduce padding. `asked` is an `AskedVLM`.
    """
    attention = any("class_attention" in method.needs for method in plan.methods)
    encoded = asked.encode(samples, attention)
    answers = {
        str(column): [[""] * len(sample.questions) for sample in samples]
        for column in plan.columns()
    }
    by_image = dict(_image_choices(encoded, plan))
    for places in question_batches(samples, plan.rows_per_batch):
        prompts = asked.prompts(samples, encoded, places)
        by_question = dict(_question_choices(asked, encoded, prompts, plan))
        options = [
            candidates(samples[i].questions[r], samples[i].answers[r], plan.scoring)
            for i, r in places
        ]
        for column in plan.columns():
            features, kept = prompts.features(), None
            if column.method == BLIND:
                kept = [nothing(tokens) for tokens in features]
            elif column.method != FULL:
                chosen = by_question.get(column)
                if chosen is None:
                    chosen = [choice for i, _ in places for choice in by_image[column][i]]
                features = [choice.features for choice in chosen]
                kept = [choice.positions for choice in chosen]
            call = asked.call(prompts, encoded, features)
            texts = answers_of(asked, call, kept, options, plan.max_new_tokens)
            for (image, turn), text in zip(places, texts, strict=True):
                answers[str(column)][image][turn] = text
    return answers


def nothing(tokens: Tensor) -> Tensor:
    """Return the positions of a blind answer: none, int64, [0]."""
    return torch.zeros(0, dtype=torch.long, device=tokens.device)


def blind_choices(encoded: Encoded) -> ImageChoices:
    """Return what a blind answer sees: no token of any image."""
    return [
        [Choice(nothing(image.features), image.features) for image in own] for own in encoded.images
    ]


def whole_choices(features: Tensor) -> ImageChoices:
    """Keep all tokens of samples of one image each, replaced by `features` [B, N, C]."""
    everything = torch.arange(features.shape[1], device=features.device)
    return [[Choice(everything, own)] for own in features]


def answer_sequences(
    asked: Any,
    samples: Sequence[EvaluationSample],
    encoded: Encoded,
    sequences: Mapping[str, ImageChoices | None],
    max_new_tokens: int,
    rows_per_batch: int = 160,
) -> dict[str, Answers]:
    """Return the answers of some images to given visual tokens: name -> image -> round -> text.

    `sequences` names what the model sees of every image; None for the untouched model.
    """
    options = {"max_new_tokens": max_new_tokens, "do_sample": False}
    answers = {name: [[""] * len(sample.questions) for sample in samples] for name in sequences}
    for places in question_batches(samples, rows_per_batch):
        prompts = asked.prompts(samples, encoded, places)
        for name, choices in sequences.items():
            features, kept = None, None
            if choices is not None:
                chosen = [choice for i, _ in places for choice in choices[i]]
                features = [choice.features for choice in chosen]
                kept = [choice.positions for choice in chosen]
            texts = asked.generate(asked.call(prompts, encoded, features), kept, options)
            for (image, turn), text in zip(places, texts, strict=True):
                answers[name][image][turn] = text
    return answers


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
    places = [(i, r) for i, sample in enumerate(samples) for r in range(len(sample.questions))]
    places.sort(key=lambda place: len(samples[place[0]].questions[place[1]]))
    for start in range(0, len(places), rows_per_batch):
        yield places[start : start + rows_per_batch]
