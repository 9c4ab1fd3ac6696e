"""Build the report of an evaluation as JSON values."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from autoselect.evaluation.answers.answering import BLIND, FULL, OTHER, Plan
from autoselect.evaluation.answers.replies import Replies, texts_of
from autoselect.evaluation.methods.names import SELECTOR
from autoselect.evaluation.report.endings import Endings, ending_warnings, measured_endings
from autoselect.evaluation.scores.intervals import (
    Resampling,
    interval,
    retention,
    task_retentions,
)
from autoselect.evaluation.scores.scoring import (
    Answered,
    ScoreTable,
    average,
    score_answers,
    task_details,
)

Place = tuple[str, int]
Details = dict[str, dict[str, float]]
Found = TypeVar("Found")


def build_report(
    samples: Sequence[Answered],
    replies: dict[str, Replies],
    plan: Plan,
    model: str,
    num_tokens: int,
    latency: dict[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the report: scores as fractions, times in milliseconds, NaN as null.

    Args:
        samples: questions and accepted answers; their images are not needed.
        replies: replies by column name, image and round.
        num_tokens: visual tokens of one image.
        latency: measured times, for all tokens and for each budget.
        extra: further keys of the report, such as `environment` and `digests`. `left_out` maps
            methods that were not evaluated to the reason; it becomes a list of rows.
    """
    answers = {column: texts_of(own) for column, own in replies.items()}
    tables = _by_place(plan, lambda column: score_answers(samples, answers[column]), average)
    details = _by_place(plan, lambda column: task_details(samples, answers[column]), _mean_details)
    endings = _by_place(
        plan,
        lambda column: Endings.of(samples, replies[column], answers[str(plan.bounds()[0])]),
        Endings.mean,
    )
    full = tables[FULL, 0]
    draws = Resampling.of(len(samples))
    retained = {p: draws.retention(t, full) for p, t in tables.items() if p != (FULL, 0)}

    def scores(place: Place) -> dict[str, Any]:
        table = tables[place]
        found = {"mean": table.mean(), "tasks": table.task_means(), "details": details[place]}
        found["answers"] = measured_endings(endings[place], endings[FULL, 0])
        if place != (FULL, 0):
            found["retention"] = retention(table, full)
            found["retention_ci95"] = list(interval(retained[place]))
        return found

    rows = [
        {
            "method": method.name,
            "budget": budget,
            **scores((method.name, budget)),
            "retention_tasks": task_retentions(tables[method.name, budget], full),
            "retention_tasks_ci95": _task_intervals(draws, tables[method.name, budget], full),
        }
        for budget in plan.budgets
        for method in plan.methods
    ]
    more = dict(extra or {})
    left_out = more.pop("left_out", {})
    report = {
        "model": model,
        "num_tokens": num_tokens,
        "full": scores((FULL, 0)),
        "blind": scores((BLIND, 0)),
        **({"other_image": scores((OTHER, 0))} if plan.others else {}),
        "reference": plan.reference,
        "rows": rows,
        "left_out": [{"method": name, "reason": why} for name, why in left_out.items()],
        "intervals": _differences(rows, retained, plan),
        "latency": latency,
        "images": len(samples),
        "questions": sum(len(sample.questions) for sample in samples),
        "methods": {method.name: method.source for method in plan.methods},
        **more,
    }
    report["warnings"] = [*more.get("warnings", []), *ending_warnings(report)]
    return dict(_without_nan(report))


def _by_place(
    plan: Plan, measure: Callable[[str], Found], merge: Callable[[Sequence[Found]], Found]
) -> dict[Place, Found]:
    """Measure every column and merge its seeds; full and blind stand at budget 0."""
    seeds: dict[Place, list[Found]] = {}
    for column in plan.columns():
        seeds.setdefault((column.method, column.budget), []).append(measure(str(column)))
    return {place: merge(found) for place, found in seeds.items()}


def _mean_details(found: Sequence[Details]) -> Details:
    return {
        task: {key: sum(d[task][key] for d in found) / len(found) for key in numbers}
        for task, numbers in found[0].items()
    }


def _task_intervals(
    draws: Resampling, table: ScoreTable, full: ScoreTable
) -> dict[str, list[float]]:
    """Return the 95 % interval of each task's retention, paired by image with the full model."""
    ratios = draws.task_retentions(table, full)
    return {
        task: list(interval(ratios[:, table.tasks.index(task)]))
        for task in task_retentions(table, full)
    }


def _differences(
    measured: list[dict[str, Any]], retained: dict[Place, np.ndarray], plan: Plan
) -> list[dict[str, Any]]:
    """Return the selector's retention minus each other method's, with its paired interval.

    Args:
        retained: retention in every bootstrap draw, [draws], by method and budget.
    """
    kept = {(row["method"], row["budget"]): row["retention"] for row in measured}
    names = [method.name for method in plan.methods]
    if SELECTOR not in names:
        return []
    rows = []
    for budget in plan.budgets:
        for name in names:
            if name == SELECTOR:
                continue
            low, high = interval(retained[SELECTOR, budget] - retained[name, budget])
            rows.append(
                {
                    "budget": budget,
                    "against": name,
                    "difference": kept[SELECTOR, budget] - kept[name, budget],
                    "ci95": [low, high],
                    "better": low > 0,
                }
            )
    return rows


def _without_nan(value: Any) -> Any:
    """Return the same JSON value with null for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
