"""The report: everything that was measured as JSON values, and the same as Markdown."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from autoselect.evaluation.answers.answering import BLIND, FULL, Answers, Plan
from autoselect.evaluation.methods.registry import SELECTOR
from autoselect.evaluation.report.tables import (
    LOWER,
    UPPER,
    accuracy_table,
    answer_line,
    difference_table,
    latency_table,
    markdown_table,
    task_table,
    unscored_tasks,
)
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

Details = dict[str, dict[str, float]]


RETENTION_NOTE = (
    "Retention is the mean over the tasks of score / full score, with its 95 % interval from a "
    "paired bootstrap over images; the best of each budget is bold, the oracle aside."
)
DIFFERENCE_TITLE = f"Retention of {SELECTOR} minus each other method, in points"
DIFFERENCE_NOTE = "Paired by image, with 95 % intervals; those that exclude 0 are bold."


def score_tables(
    samples: Sequence[Answered], answers: dict[str, Answers], plan: Plan
) -> dict[tuple[str, int], ScoreTable]:
    """Scores of every method and budget, averaged over seeds; full and blind at budget 0."""
    seeds: dict[tuple[str, int], list[ScoreTable]] = {}
    for column in plan.columns():
        table = score_answers(samples, answers[str(column)])
        seeds.setdefault((column.method, column.budget), []).append(table)
    return {place: average(tables) for place, tables in seeds.items()}


def detail_tables(
    samples: Sequence[Answered], answers: dict[str, Answers], plan: Plan
) -> dict[tuple[str, int], Details]:
    """`task_details` of every method and budget, averaged over seeds."""
    seeds: dict[tuple[str, int], list[Details]] = {}
    for column in plan.columns():
        details = task_details(samples, answers[str(column)])
        seeds.setdefault((column.method, column.budget), []).append(details)
    return {
        place: {
            task: {key: sum(d[task][key] for d in found) / len(found) for key in numbers}
            for task, numbers in found[0].items()
        }
        for place, found in seeds.items()
    }


def build_report(
    samples: Sequence[Answered],
    answers: dict[str, Answers],
    plan: Plan,
    model: str,
    num_tokens: int,
    latency: dict[str, Any],
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that was measured, as JSON values; fractions and milliseconds.

    Args:
        samples: the images that were asked about, or what is known of them without decoding.
        answers: column name -> image -> round -> text.
        plan: what was evaluated.
        model: name of the VLM.
        num_tokens: visual tokens of one image.
        latency: as `latency.latency_report` gives it.
        extra: further keys of the report (environment, digests, polarisation, ...).
    """
    tables = score_tables(samples, answers, plan)
    details = detail_tables(samples, answers, plan)
    full, blind = tables[FULL, 0], tables[BLIND, 0]
    draws = Resampling.of(len(samples))
    retained = {p: draws.retention(t, full) for p, t in tables.items() if p != (FULL, 0)}
    rows = []
    for budget in plan.budgets:
        for method in plan.methods:
            table = tables[method.name, budget]
            rows.append(
                {
                    "method": method.name,
                    "budget": budget,
                    "mean": table.mean(),
                    "retention": retention(table, full),
                    "retention_ci95": list(interval(retained[method.name, budget])),
                    "tasks": table.task_means(),
                    "retention_tasks": task_retentions(table, full),
                    "retention_tasks_ci95": task_intervals(draws, table, full),
                    "details": details[method.name, budget],
                }
            )
    report = {
        "model": model,
        "num_tokens": num_tokens,
        "full": _reference(full, details[FULL, 0]),
        "blind": {
            **_reference(blind, details[BLIND, 0]),
            "retention": retention(blind, full),
            "retention_ci95": list(interval(retained[BLIND, 0])),
        },
        "rows": rows,
        "intervals": _differences(rows, retained, plan),
        "latency": latency,
        "images": len(samples),
        "questions": sum(len(sample.questions) for sample in samples),
        "methods": {method.name: method.source for method in plan.methods},
        **(extra or {}),
    }
    return _without_nan(report)


def task_intervals(
    draws: Resampling, table: ScoreTable, full: ScoreTable
) -> dict[str, list[float]]:
    """The 95 % interval of each task's retention, paired by image with the full model."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = draws.task_means(table) / draws.task_means(full)
    ratios[~np.isfinite(ratios)] = np.nan
    return {
        task: list(interval(ratios[:, table.tasks.index(task)]))
        for task in task_retentions(table, full)
    }


def _reference(table: ScoreTable, details: Details) -> dict[str, Any]:
    return {"mean": table.mean(), "tasks": table.task_means(), "details": details}


def _differences(
    measured: list[dict[str, Any]], retained: dict[tuple[str, int], Any], plan: Plan
) -> list[dict[str, Any]]:
    """Retention of the selector minus that of each other method, with its paired interval.

    Args:
        measured: rows of the report.
        retained: retention in every resample, by method and budget.
        plan: what was evaluated.
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
            gap = retained[SELECTOR, budget] - retained[name, budget]
            low, high = interval(gap)
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
    """The same JSON value with null in place of numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown: the answer, then the tables of what was measured."""
    lines = [f"# Token selection on {report['model']}", "", f"**{answer_line(report)}**", ""]
    lines += [
        f"{report['images']} images, {report['questions']} questions; accuracy and retention in "
        f"per cent. {RETENTION_NOTE}",
        "",
    ]
    if unscored_tasks(report):
        lines += [f"{unscored_note(report)}\n"]
    lines += [f"> **Warning:** {text}.\n" for text in report.get("warnings", [])]
    lines += markdown_table(accuracy_table(report))
    lines += ["", "## Retention per task", "", *markdown_table(task_table(report))]
    if report.get("intervals"):
        lines += ["", f"## {DIFFERENCE_TITLE}", "", DIFFERENCE_NOTE, ""]
        lines += markdown_table(difference_table(report))
    lines += _detail_tables(report) + _latency_table(report)
    lines += ["", "## Methods", ""]
    lines += [f"* **{name}**: {source}" for name, source in method_sources(report).items()]
    for title, key in (("Environment", "environment"), ("Digests", "digests")):
        if key in report:
            lines += ["", f"## {title}", ""]
            lines += [f"* {name}: {value}" for name, value in report[key].items()]
    return "\n".join(lines) + "\n"


def unscored_note(report: dict[str, Any]) -> str:
    """Which tasks have no retention, and why."""
    names = ", ".join(unscored_tasks(report))
    return f"Left out of every retention, because the full model scores nothing there: {names}."


def method_sources(report: dict[str, Any]) -> dict[str, str]:
    """What stands behind each row name of the accuracy table."""
    bounds = {UPPER: "all tokens, the untouched model", LOWER: "no visual token at all"}
    return {**bounds, **report.get("methods", {})}


def _detail_tables(report: dict[str, Any]) -> list[str]:
    """One table for each task with further numbers, such as precision and recall of yes."""
    lines: list[str] = []
    for task, numbers in report["full"].get("details", {}).items():
        lines += ["", f"## Further numbers: {task}", ""]
        lines += ["| method | tokens | " + " | ".join(numbers) + " |"]
        lines += ["|---|---:|" + "---:|" * len(numbers)]
        full = {"method": UPPER, "budget": report["num_tokens"], **report["full"]}
        for row in [full, *report["rows"]]:
            cells = [f"{row['details'][task][key]:.3f}" for key in numbers]
            lines.append(f"| {row['method']} | {row['budget']} | " + " | ".join(cells) + " |")
    return lines


def _latency_table(report: dict[str, Any]) -> list[str]:
    latency = report["latency"]
    lines = ["", "## Latency", ""]
    if "protocol" in latency:
        lines += [latency["protocol"], ""]
    head, rows = latency_table(report)
    lines += ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *latency_notes(latency)]
    return lines


def latency_notes(latency: dict[str, Any]) -> list[str]:
    """What the columns of the latency table mean, and the times that do not depend on K."""
    notes = [
        "Speedup is full prefill / (pruned prefill + selector); with vision, the vision tower and "
        "the projector stand on both sides. First token goes from pixels to logits."
    ]
    parts = {"vision tower": "tower_ms", "projector": "projector_ms", "Scorer": "scorer_ms"}
    known = [f"{n} {latency[key]:.2f} ms" for n, key in parts.items() if latency.get(key)]
    if known:
        notes.append(f"For every K alike: {', '.join(known)}.")
    compiled = latency.get("compiled")
    if compiled:
        rows = ", ".join(
            f"{row['budget']} tokens {row['prefill_ms']:.2f} + {row['selector_ms']:.2f} ms "
            f"({row['speedup']:.2f} x)"
            for row in compiled["pruned"]
        )
        notes.append(
            f"With {compiled['how']}: full prefill {compiled['full_prefill_ms']:.2f} ms; prefill + "
            f"selector with {rows}."
        )
    return notes
