"""Choose the samples that a report shows, and mark what the selector keeps of them."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.answers.answering import FULL, Answers, Column, Plan
from autoselect.evaluation.asking.replies import Replies
from autoselect.evaluation.figures.overlays import Overlay, OverlayRow
from autoselect.evaluation.samples import EvaluationSample
from autoselect.evaluation.scores.scoring import Answered, Place, answer_score, places_of


def is_right(sample: Answered, turn: int, text: str) -> bool:
    """Return True if the answer scores more than half."""
    return answer_score(sample, turn, text) > 0.5


def choose_places(
    asked: Sequence[Answered], answers: dict[str, Answers], plan: Plan
) -> list[Place]:
    """Return (image, round) of one question per task and of one that pruning spoils.

    For each task this is the first question that the full model answers correctly, each from
    another image; then the first of a further image that is correct in full and wrong at the
    smallest budget.
    """
    right = right_places(asked, answers[str(Column(FULL, 0))])
    chosen: dict[int, int] = {}
    for task in sorted({task for sample in asked for task in sample.tasks}):
        of_task = (p for p in right if asked[p[0]].tasks[p[1]] == task and p[0] not in chosen)
        chosen.update(itertools.islice(of_task, 1))
    spoilt = (place for place in failed_places(asked, answers, plan) if place[0] not in chosen)
    return [*chosen.items(), *itertools.islice(spoilt, 1)]


def right_places(asked: Sequence[Answered], answers: Answers) -> list[Place]:
    """Return (image, round) of the questions that are answered correctly."""
    return [(i, r) for i, r in places_of(asked) if is_right(asked[i], r, answers[i][r])]


def failed_places(
    asked: Sequence[Answered], answers: dict[str, Answers], plan: Plan
) -> list[Place]:
    """Return (image, round) of what is right in full and wrong at the smallest budget."""
    right = right_places(asked, answers[str(Column(FULL, 0))])
    few = answers[str(Column(SELECTOR, plan.budgets[0]))]
    return [(i, r) for i, r in right if not is_right(asked[i], r, few[i][r])]


def lost_places(replies: dict[str, Replies], plan: Plan, count: int) -> list[tuple[float, Place]]:
    """Return the (image, round) that lose most likelihood by pruning, one per image at most.

    The loss difference is that of the reference answer, its end included, with the selector at the
    smallest budget and with all tokens, in nats per token; the largest comes first. Questions whose
    loss is not finite are left out.
    """
    full, pruned = (
        replies[str(column)] for column in (Column(FULL, 0), Column(SELECTOR, plan.budgets[0]))
    )
    best: dict[int, tuple[float, Place]] = {}
    for image, (whole, few) in enumerate(zip(full, pruned, strict=True)):
        for turn, (before, after) in enumerate(zip(whole, few, strict=True)):
            if before.loss is None or after.loss is None:
                continue
            found = (after.loss - before.loss, (image, turn))
            if math.isfinite(found[0]):
                best[image] = max(best.get(image, found), found, key=lambda one: one[0])
    return sorted(best.values(), key=lambda one: -one[0])[:count]


def audited(
    asked: Sequence[Answered], replies: dict[str, Replies], plan: Plan, count: int
) -> list[dict[str, Any]]:
    """Return the questions of `lost_places` with their answers, as the report lists them."""
    rows = []
    for difference, (image, turn) in lost_places(replies, plan, count):
        columns = {budget: str(Column(SELECTOR, budget)) for budget in plan.budgets}
        rows.append(
            {
                "key": asked[image].key,
                "round": turn,
                "question": asked[image].questions[turn],
                "reference": asked[image].answers[turn][0],
                "full": replies[str(Column(FULL, 0))][image][turn].text,
                "pruned": {str(k): replies[c][image][turn].text for k, c in columns.items()},
                "loss_difference": difference,
            }
        )
    return rows


@torch.inference_mode()
def overlay_rows(
    vlm: Any,
    selector: Any,
    samples: Sequence[EvaluationSample],
    asked: Sequence[Answered],
    answers: dict[str, Answers],
    plan: Plan,
    places: Sequence[Place],
) -> list[OverlayRow]:
    """Return some questions with what the selector keeps, the largest budget first.

    Args:
        vlm: the model.
        selector: the selector.
        samples: images and questions.
        asked: questions and accepted answers without images, so that only shown images are decoded.
        answers: answer texts by column name, image and round.
        plan: methods and budgets.
        places: (image, round) of each question.
    """
    rows = []
    for image, turn in places:
        sample = samples[image]
        visual = vlm.encode_images([sample.image], selector.site)
        full = answers[str(Column(FULL, 0))][image][turn]
        label = f"all {visual.tokens.shape[1]} tokens"
        panels = [Overlay(label, None, full, is_right(asked[image], turn, full))]
        for budget in reversed(plan.budgets):
            _, positions = selector.select(visual.tokens, budget, visual.mask)
            text = answers[str(Column(SELECTOR, budget))][image][turn]
            right = is_right(asked[image], turn, text)
            panels.append(Overlay(f"{budget} tokens", positions[0].tolist(), text, right))
        truth = asked[image].answers[turn][0]
        rows.append(
            OverlayRow(vlm.seen(sample.image), sample.questions[turn], truth, tuple(panels))
        )
    return rows
