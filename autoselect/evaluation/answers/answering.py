"""Answers of one batch of images under every method and budget; each image is encoded once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from autoselect.evaluation.answers.likelihood import GENERATION, Candidate, answers_of, candidates
from autoselect.evaluation.methods.context import Kept, SelectionContext
from autoselect.evaluation.methods.llm_attention import visual_attention
from autoselect.evaluation.methods.registry import Method
from autoselect.evaluation.samples import EvaluationSample

FULL, BLIND = "full", "blind"
Answers = list[list[str]]
VisualSequence = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Column:
    """One thing that is evaluated: a method at a budget with a seed; full, or blind."""

    method: str
    budget: int
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.method}@{self.budget}#{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What is evaluated.

    Attributes:
        methods: ways to keep tokens.
        budgets: tokens kept, each in 1..N.
        images_per_part: images encoded together; also the unit of restart and of distribution.
        rows_per_batch: questions answered together.
        max_new_tokens: longest answer in tokens.
        scoring: how answers are found, see `autoselect/evaluation/answers/likelihood.py`.
    """

    methods: tuple[Method, ...]
    budgets: tuple[int, ...]
    images_per_part: int = 32
    rows_per_batch: int = 160
    max_new_tokens: int = 16
    scoring: str = GENERATION

    def columns(self) -> list[Column]:
        """Every column, full and blind first."""
        return [Column(FULL, 0), Column(BLIND, 0)] + [
            Column(method.name, budget, seed)
            for method in self.methods
            for budget in self.budgets
            for seed in method.seeds
        ]


@dataclass(frozen=True)
class QuestionBatch:
    """Rows answered together.

    Attributes:
        prompt: of `vlm.prompt`.
        owner: the image row that each belongs to, [R].
        places: (image, round) of each row.
        candidates: possible answers of each row, where they are known.
    """

    prompt: dict[str, Tensor]
    owner: Tensor
    places: list[tuple[int, int]]
    candidates: list[tuple[Candidate, ...]]


@torch.inference_mode()
def answer_part(vlm: Any, samples: Sequence[EvaluationSample], plan: Plan) -> dict[str, Answers]:
    """Answers to every question of some images: column name -> image -> round -> text.

    Questions are batched in the order of their length, so that a batch needs little padding.

    Args:
        vlm: a `FrozenVLM`.
        samples: the images of one part.
        plan: methods, budgets and sizes.
    """
    context = image_context(vlm, samples, plan.methods)
    answers = {
        str(column): [[""] * len(sample.questions) for sample in samples]
        for column in plan.columns()
    }
    image_kept = dict(_image_choices(context, plan))
    for batch in question_batches(
        vlm, samples, plan.rows_per_batch, context.tokens.device, plan.scoring
    ):
        question_kept = dict(_question_choices(vlm, context, batch, plan))
        for column in plan.columns():
            if column.method == FULL:
                prefix = vlm.prefix(batch.prompt, context.tokens[batch.owner], None)
            elif column.method == BLIND:
                nothing = context.tokens[batch.owner, :0]
                prefix = vlm.prefix(batch.prompt, nothing, batch.owner.new_zeros(len(nothing), 0))
            else:
                kept = question_kept.get(column)
                if kept is None:
                    chosen = image_kept[column]
                    kept = Kept(chosen.tokens[batch.owner], chosen.positions[batch.owner])
                prefix = vlm.prefix(batch.prompt, kept.tokens, kept.positions)
            texts = answers_of(vlm, prefix, batch.candidates, plan.max_new_tokens)
            for (image, turn), text in zip(batch.places, texts, strict=True):
                answers[str(column)][image][turn] = text
    return answers


def answer_sequences(
    vlm: Any,
    samples: Sequence[EvaluationSample],
    sequences: Mapping[str, VisualSequence],
    max_new_tokens: int,
    rows_per_batch: int = 160,
) -> dict[str, Answers]:
    """Answers of some images to given visual tokens: name -> image -> round -> text.

    Args:
        vlm: a `FrozenVLM`.
        samples: the images.
        sequences: by name, tokens [B, K, D] and their positions [B, K]; None for every position.
        max_new_tokens: longest answer in tokens.
        rows_per_batch: questions answered together.
    """
    answers = {name: [[""] * len(sample.questions) for sample in samples] for name in sequences}
    for batch in question_batches(vlm, samples, rows_per_batch, vlm.device):
        for name, (tokens, positions) in sequences.items():
            where = None if positions is None else positions[batch.owner]
            prefix = vlm.prefix(batch.prompt, tokens[batch.owner], where)
            texts = vlm.generate(prefix, max_new_tokens)
            for (image, turn), text in zip(batch.places, texts, strict=True):
                answers[name][image][turn] = text
    return answers


def image_context(
    vlm: Any, samples: Sequence[EvaluationSample], methods: Sequence[Method]
) -> SelectionContext:
    """Encode some images once, with everything about them that the methods need."""
    wants_attention = any("class_attention" in method.needs for method in methods)
    visual = vlm.encode_images([s.image for s in samples], class_attention=wants_attention)
    boxes = tuple(
        tuple(
            (
                left / s.image.width,
                top / s.image.height,
                right / s.image.width,
                bottom / s.image.height,
            )
            for regions in s.boxes
            for left, top, right, bottom in regions
        )
        for s in samples
    )
    return SelectionContext(
        tokens=visual.tokens,
        keys=tuple(s.key for s in samples),
        mask=visual.mask,
        grid=visual.grid,
        class_attention=visual.class_attention,
        boxes=boxes if all(boxes) and visual.grid is not None else None,
    )


def question_embedding(vlm: Any, prompt: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Mean input embedding of each prompt's text, template included, [R, D]; no padding."""
    prefix = vlm.prefix(prompt, tokens[:, :0], torch.zeros_like(tokens[:, :0, 0], dtype=torch.long))
    weights = prefix["attention_mask"][..., None].to(tokens.dtype)
    return (prefix["inputs_embeds"] * weights).sum(dim=1) / weights.sum(dim=1)


def _image_choices(context: SelectionContext, plan: Plan) -> Iterator[tuple[Column, Kept]]:
    for method in plan.methods:
        if method.per_question:
            continue
        for seed in method.seeds:
            seeded = replace(context, seed=seed)
            for budget in plan.budgets:
                yield Column(method.name, budget, seed), method.keep(seeded, budget)


def _question_choices(
    vlm: Any, context: SelectionContext, batch: QuestionBatch, plan: Plan
) -> Iterator[tuple[Column, Kept]]:
    methods = [method for method in plan.methods if method.per_question]
    if not methods:
        return
    rows = context.rows(batch.owner)
    if any("question" in method.needs for method in methods):
        rows = replace(rows, question=question_embedding(vlm, batch.prompt, rows.tokens))
    if any("llm_attention" in method.needs for method in methods):
        attention = visual_attention(vlm, batch.prompt, rows.tokens)
        rows = replace(rows, llm_attention=attention)
    for method in methods:
        for budget in plan.budgets:
            yield Column(method.name, budget, 0), method.keep(rows, budget)


def question_batches(
    vlm: Any,
    samples: Sequence[EvaluationSample],
    rows_per_batch: int,
    device: torch.device,
    scoring: str = GENERATION,
) -> Iterator[QuestionBatch]:
    """All questions about some images, shortest first, so that a batch needs little padding."""
    places = [(i, r) for i, sample in enumerate(samples) for r in range(len(sample.questions))]
    places.sort(key=lambda place: len(samples[place[0]].questions[place[1]]))
    for start in range(0, len(places), rows_per_batch):
        chosen = places[start : start + rows_per_batch]
        prompt = vlm.prompt([samples[i].questions[r] for i, r in chosen])
        owner = torch.tensor([i for i, _ in chosen], device=device)
        known = [
            candidates(samples[i].questions[r], samples[i].answers[r], scoring) for i, r in chosen
        ]
        yield QuestionBatch(prompt, owner, chosen, known)
