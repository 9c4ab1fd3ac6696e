"""Which samples a report shows, and what the selector keeps of them."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from autoselect.evaluation.answering import FULL, Answers, Column, Plan
from autoselect.evaluation.figures.overlays import Overlay, OverlayRow
from autoselect.evaluation.methods import SELECTOR
from autoselect.evaluation.samples import EvaluationSample
from autoselect.evaluation.scoring import answer_score

Place = tuple[int, int]


def is_right(sample: EvaluationSample, turn: int, text: str) -> bool:
    """Whether an answer counts for more than half."""
    return answer_score(sample, turn, text) > 0.5


def choose_places(
    samples: Sequence[EvaluationSample], answers: dict[str, Answers], plan: Plan
) -> list[Place]:
    """(image, round) of one question per task and of one that pruning spoils.

    The first question of each task that the full model answers rightly, each from another image;
    then the first of yet another image that is right in full and wrong at the smallest budget.
    """
    places: list[Place] = []
    for task in sorted({task for sample in samples for task in sample.tasks}):
        used = {image for image, _ in places}
        for image, turn in _right_in_full(samples, answers):
            if samples[image].tasks[turn] == task and image not in used:
                places.append((image, turn))
                break
    smallest = answers[str(Column(SELECTOR, plan.budgets[0]))]
    used = {image for image, _ in places}
    spoilt = (
        (i, r)
        for i, r in _right_in_full(samples, answers)
        if i not in used and not is_right(samples[i], r, smallest[i][r])
    )
    return [*places, *itertools.islice(spoilt, 1)]


def _right_in_full(
    samples: Sequence[EvaluationSample], answers: dict[str, Answers]
) -> Iterator[Place]:
    full = answers[str(Column(FULL, 0))]
    for i, sample in enumerate(samples):
        for turn in range(len(sample.questions)):
            if is_right(sample, turn, full[i][turn]):
                yield i, turn


@torch.inference_mode()
def overlay_rows(
    vlm: Any,
    selector: Any,
    samples: Sequence[EvaluationSample],
    answers: dict[str, Answers],
    plan: Plan,
) -> list[OverlayRow]:
    """The chosen samples with what the selector keeps at each budget, largest budget first."""
    rows = []
    for image, turn in choose_places(samples, answers, plan):
        sample = samples[image]
        visual = vlm.encode_images([sample.image])
        full = answers[str(Column(FULL, 0))][image][turn]
        label = f"all {visual.tokens.shape[1]} tokens"
        panels = [Overlay(label, None, full, is_right(sample, turn, full))]
        for budget in reversed(plan.budgets):
            _, positions = selector.select(visual.tokens, budget, visual.mask)
            text = answers[str(Column(SELECTOR, budget))][image][turn]
            right = is_right(sample, turn, text)
            panels.append(Overlay(f"{budget} tokens", positions[0].tolist(), text, right))
        truth = sample.answers[turn][0]
        rows.append(OverlayRow(sample.image, sample.questions[turn], truth, tuple(panels)))
    return rows
