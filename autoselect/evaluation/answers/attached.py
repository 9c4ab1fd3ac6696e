"""Evaluation where prompts cannot be put together from embeddings: through `attach`.

M-RoPE, images of many sizes, features for later layers, several images per question: there the
model's own processor writes the prompt and its own `forward` reads it, with each method attached in
turn. Every method encodes the images again, so this costs more than the common path, which it
otherwise equals.

A budget is a share of each image; reports state it in tokens of the first image.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from PIL import Image

from autoselect.config import ConfigError
from autoselect.evaluation.answers.answering import BLIND, FULL, Answers, Column, Plan
from autoselect.evaluation.answers.asking import AskedVLM
from autoselect.evaluation.answers.likelihood import GENERATION
from autoselect.evaluation.methods.attachable import BASELINES, BaselineSelector
from autoselect.evaluation.methods.registry import Method
from autoselect.evaluation.samples import EvaluationSample
from autoselect.pruning.attachment import attach, detach
from autoselect.pruning.selector import Selector

COMMON_PATH = "a model whose images all have the same number of tokens, and one image per sample"


def prompt_lengths(vlm: Any, image: Image.Image, question: str) -> tuple[int, int]:
    """Visual and other tokens of a prompt that the model's own processor writes."""
    asked = AskedVLM(vlm)
    ids = asked.inputs([[image]], [asked.prompt(1, question)])["input_ids"]
    visual = int((ids == vlm.image_token_id).sum())
    return visual, ids.numel() - visual


def check_attached(scoring: str, compiled: bool) -> None:
    """Raise ConfigError where this way of evaluating lacks what is asked for."""
    if compiled:
        raise ConfigError(f"latency_compiled=true needs {COMMON_PATH}; leave it out")
    if scoring != GENERATION:
        raise ConfigError(f"scoring={scoring} needs {COMMON_PATH}; use scoring={GENERATION}")


def is_attachable(method: Method) -> bool:
    """Whether a method is a selector, or can be given to `attach` as scores."""
    return method.selector is not None or method.name in BASELINES


def answering(
    num_tokens: int,
) -> Callable[[Any, Sequence[EvaluationSample], Plan], dict[str, Answers]]:
    """`answer_attached` with budgets in tokens of an image of `num_tokens`."""
    return partial(answer_attached, num_tokens=num_tokens)


@torch.inference_mode()
def answer_attached(
    vlm: Any, samples: Sequence[EvaluationSample], plan: Plan, num_tokens: int
) -> dict[str, Answers]:
    """Answers to every question of some images: column name -> image -> round -> text.

    Args:
        vlm: a `FrozenVLM`.
        samples: the images of one part.
        plan: methods, budgets and sizes.
        num_tokens: of the image in whose tokens the budgets are given.
    """
    places = [(i, r) for i, sample in enumerate(samples) for r in range(len(sample.questions))]
    places.sort(key=lambda place: len(samples[place[0]].questions[place[1]]))
    options = {"max_new_tokens": plan.max_new_tokens, "do_sample": False}
    answers: dict[str, Answers] = {}
    for column in plan.columns():
        texts = [[""] * len(sample.questions) for sample in samples]
        with _attached(vlm, column, plan, num_tokens) as asked:
            for start in range(0, len(places), plan.rows_per_batch):
                batch = places[start : start + plan.rows_per_batch]
                images = [[] if column.method == BLIND else samples[i].images for i, _ in batch]
                questions = [samples[i].asked(r) for i, r in batch]
                given = asked.answer(images, questions, options)
                for (i, r), text in zip(batch, given, strict=True):
                    texts[i][r] = text
        answers[str(column)] = texts
    return answers


@contextmanager
def _attached(vlm: Any, column: Column, plan: Plan, num_tokens: int) -> Iterator[AskedVLM]:
    """The model with the column's method; the untouched model for full and blind."""
    if column.method in (FULL, BLIND):
        yield AskedVLM(vlm)
        return
    share = column.budget / num_tokens
    method = next(method for method in plan.methods if method.name == column.method)
    baseline = None
    if method.selector is None:
        baseline = BaselineSelector(method.name, share, vlm.width, column.seed)
    attach(vlm.model, cast(Selector, baseline or method.selector), share)
    try:
        yield AskedVLM(vlm, baseline)
    finally:
        detach(vlm.model)
