"""Build the report of an evaluation as JSON values."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.answers.answering import BLIND, FULL, OTHER, Plan
from autoselect.evaluation.answers.predictions import MethodBudget
from autoselect.evaluation.asking.replies import Replies, texts_of
from autoselect.evaluation.report.endings import Endings, measured_endings
from autoselect.evaluation.report.warnings import report_warnings
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
    pictures_of,
    score_answers,
    task_details,
)

Details = dict[str, dict[str, float]]
Found = TypeVar("Found")


def build_report(
    samples: Sequence[Answered],
    replies: dict[str, Replies],
    plan: Plan,
    model: str,
    latency: dict[str, Any],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Build the report: scores as fractions, times in milliseconds, NaN as null.

    Args:
        samples: questions and accepted answers; their images are not needed.
        replies: replies by column name, image and round.
        plan: methods and budgets.
        model: the model's name.
        latency: measured times, for all tokens and for each budget.
        extra: further keys of the report, such as `environment` and `digests`. `left_out` maps
            methods that were not evaluated to the reason; it becomes a list of rows.
    """
    scored = _Scored(samples, replies, plan)
    names = [method.name for method in plan.methods]
    more = dict(extra)
    left_out = more.pop("left_out", {})
    report = {
        "model": model,
        "num_tokens": plan.num_tokens,
        "full": scored.scores((FULL, 0)),
        "blind": scored.scores((BLIND, 0)),
        **({"other_image": scored.scores((OTHER, 0))} if plan.others else {}),
        "reference": plan.reference,
        "rows": [scored.row((name, budget)) for budget in plan.budgets for name in names],
        "left_out": [{"method": name, "reason": why} for name, why in left_out.items()],
        "intervals": scored.differences(plan.budgets, names),
        "latency": latency,
        "images": len(set(pictures_of(samples))),
        "questions": sum(len(sample.questions) for sample in samples),
        "methods": {method.name: method.source for method in plan.methods},
        **more,
    }
    report["warnings"] = [*more.get("warnings", []), *report_warnings(report)]
    return dict(_without_nan(report))


class _Scored:
    """What was answered at every place, all on the same resamples of the images."""

    def __init__(
        self, samples: Sequence[Answered], replies: dict[str, Replies], plan: Plan
    ) -> None:
        answers = {column: texts_of(own) for column, own in replies.items()}
        full = answers[str(plan.bounds()[0])]
        self.tables = _by_place(plan, lambda c: score_answers(samples, answers[c]), average)
        self.details = _by_place(plan, lambda c: task_details(samples, answers[c]), _mean_details)
        self.endings = _by_place(
            plan, lambda c: Endings.of(samples, replies[c], full), Endings.mean
        )
        self.full = self.tables[FULL, 0]
        self.draws = Resampling.over(pictures_of(samples))
        self.retained = {
            place: self.draws.retention(table, self.full)
            for place, table in self.tables.items()
            if place != (FULL, 0)
        }

    def scores(self, place: MethodBudget) -> dict[str, Any]:
        """Return scores and answers of a place, with its retention unless it is the full model."""
        table = self.tables[place]
        found = {"mean": table.mean(), "tasks": table.task_means(), "details": self.details[place]}
        found["answers"] = measured_endings(self.endings[place], self.endings[FULL, 0])
        if place != (FULL, 0):
            found["retention"] = self.retention(place)
            found["retention_ci95"] = list(interval(self.retained[place]))
        return found

    def row(self, place: MethodBudget) -> dict[str, Any]:
        """Return the row of a method at a budget, with its retention in each task."""
        method, budget = place
        table = self.tables[place]
        return {
            "method": method,
            "budget": budget,
            **self.scores(place),
            "retention_tasks": task_retentions(table, self.full),
            "retention_tasks_ci95": self._task_intervals(table),
        }

    def retention(self, place: MethodBudget) -> float:
        return retention(self.tables[place], self.full)

    def _task_intervals(self, table: ScoreTable) -> dict[str, list[float]]:
        """Return the 95 % interval of each task's retention, paired with the full model."""
        ratios = self.draws.task_retentions(table, self.full)
        return {
            task: list(interval(ratios[:, table.tasks.index(task)]))
            for task in task_retentions(table, self.full)
        }

    def differences(self, budgets: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the selector's retention minus each other method's, with its paired interval."""
        others = [name for name in names if name != SELECTOR]
        return [
            self._difference(name, budget)
            for budget in budgets
            for name in (others if SELECTOR in names else ())
        ]

    def _difference(self, name: str, budget: int) -> dict[str, Any]:
        own, other = (SELECTOR, budget), (name, budget)
        low, high = interval(self.retained[own] - self.retained[other])
        return {
            "budget": budget,
            "against": name,
            "difference": self.retention(own) - self.retention(other),
            "ci95": [low, high],
            "better": low > 0,
        }


def _by_place(
    plan: Plan, measure: Callable[[str], Found], merge: Callable[[Sequence[Found]], Found]
) -> dict[MethodBudget, Found]:
    """Measure every column and merge its seeds."""
    seeds: dict[MethodBudget, list[Found]] = {}
    for column in plan.columns():
        seeds.setdefault((column.method, column.budget), []).append(measure(str(column)))
    return {place: merge(found) for place, found in seeds.items()}


def _mean_details(found: Sequence[Details]) -> Details:
    return {
        task: {key: sum(d[task][key] for d in found) / len(found) for key in numbers}
        for task, numbers in found[0].items()
    }


def _without_nan(value: Any) -> Any:
    """Return the same JSON value with null for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
