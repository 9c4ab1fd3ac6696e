"""Tables of an evaluation's questions, to be browsed and filtered in the dashboard."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.answers.answering import FULL, Answers, Column, Plan
from autoselect.evaluation.figures.overlays import patch_overlays
from autoselect.evaluation.figures.style import save
from autoselect.evaluation.report.examples import failed_places, is_right, overlay_rows
from autoselect.evaluation.report.files import Evaluation
from autoselect.evaluation.scores.scoring import Answered, places_of

MOST_QUESTIONS = 2000
MOST_DRAWN = 12
DPI = 80
Table = tuple[dict[str, list[Any]], tuple[str, ...]]
"""Columns by name, and the names of those that hold paths of pictures."""


def question_columns(
    asked: Sequence[Answered], answers: dict[str, Answers], plan: Plan
) -> dict[str, list[Any]]:
    """Return a table with one row per question: both answers, and whether they are right.

    Questions that pruning spoils at the smallest budget come first.
    """
    spoilt = failed_places(asked, answers, plan)
    first = set(spoilt)
    others = [place for place in places_of(asked) if place not in first]
    chosen = [*spoilt, *others][:MOST_QUESTIONS]
    columns: dict[str, list[Any]] = {
        "image": [asked[i].key for i, _ in chosen],
        "task": [asked[i].tasks[r] for i, r in chosen],
        "question": [asked[i].questions[r] for i, r in chosen],
        "right answer": [asked[i].answers[r][0] for i, r in chosen],
    }
    named = {"full": Column(FULL, 0)}
    named |= {f"{budget} tokens": Column(SELECTOR, budget) for budget in plan.budgets}
    for name, column in named.items():
        texts = answers[str(column)]
        columns[f"{name}: answer"] = [texts[i][r] for i, r in chosen]
        columns[f"{name}: correct"] = [is_right(asked[i], r, texts[i][r]) for i, r in chosen]
    return columns


def question_tables(result: Evaluation, folder: Path) -> dict[str, Table]:
    """Return all questions, and failed ones with what was kept, drawn into `folder`.

    The tables go by the names of their files, each with the columns that are pictures.
    """
    asked, answers, plan = result.asked, result.answers, result.plan
    tables: dict[str, Table] = {"questions.json": (question_columns(asked, answers, plan), ())}
    failed = failed_places(asked, answers, plan)[:MOST_DRAWN]
    if (grid := result.grid) is None or not failed:
        return tables
    rows = overlay_rows(result.vlm, result.selector, result.samples, asked, answers, plan, failed)
    pictures = [folder / f"failed-{number:02d}.png" for number in range(len(rows))]
    for row, path in zip(rows, pictures, strict=True):
        save(patch_overlays([row], grid), path, DPI)
    columns: dict[str, list[Any]] = {
        "overlay": [str(path) for path in pictures],
        "question": [row.question for row in rows],
        "right answer": [row.truth for row in rows],
        "full answer": [row.panels[0].answer for row in rows],
        "pruned answer": [row.panels[-1].answer for row in rows],
        "correct": [bool(row.panels[-1].is_right) for row in rows],
    }
    return {**tables, "failed.json": (columns, ("overlay",))}
