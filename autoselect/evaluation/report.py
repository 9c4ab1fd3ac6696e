"""The report: its JSON with a checked schema, and the same as Markdown."""

import math
from collections.abc import Sequence
from typing import Any

from autoselect.evaluation.answering import BLIND, FULL, Answers, Plan
from autoselect.evaluation.intervals import (
    Resampling,
    interval,
    retention,
    task_retentions,
)
from autoselect.evaluation.methods import SELECTOR
from autoselect.evaluation.samples import EvaluationSample
from autoselect.evaluation.scoring import ScoreTable, average, score_answers, task_details

ROW_KEYS = {"method", "budget", "mean", "retention", "retention_ci95", "tasks"}
Details = dict[str, dict[str, float]]
LATENCY_ROW_KEYS = {"budget", "prefill_ms", "selector_ms", "speedup"}


def score_tables(
    samples: Sequence[EvaluationSample], answers: dict[str, Answers], plan: Plan
) -> dict[tuple[str, int], ScoreTable]:
    """Scores of every method and budget, averaged over seeds; full and blind at budget 0."""
    seeds: dict[tuple[str, int], list[ScoreTable]] = {}
    for column in plan.columns():
        table = score_answers(samples, answers[str(column)])
        seeds.setdefault((column.method, column.budget), []).append(table)
    return {place: average(tables) for place, tables in seeds.items()}


def detail_tables(
    samples: Sequence[EvaluationSample], answers: dict[str, Answers], plan: Plan
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
    samples: Sequence[EvaluationSample],
    answers: dict[str, Answers],
    plan: Plan,
    model: str,
    num_tokens: int,
    latency: dict[str, Any],
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that was measured, as JSON values; fractions and milliseconds.

    Args:
        samples: the images that were asked about.
        answers: column name -> image -> round -> text.
        plan: what was evaluated.
        model: name of the VLM.
        num_tokens: visual tokens of one image.
        latency: as `latency.latency_report` gives it.
        extra: further keys of the report (environment, digests, polarisation, ...).
    """
    tables = score_tables(samples, answers, plan)
    details = detail_tables(samples, answers, plan)
    full = tables[FULL, 0]
    draws = Resampling.of(len(samples))
    retained = {p: draws.retention(t, full) for p, t in tables.items() if p[1] > 0}
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
                    "details": details[method.name, budget],
                }
            )
    report = {
        "model": model,
        "num_tokens": num_tokens,
        "full": _reference(full, details[FULL, 0]),
        "blind": _reference(tables[BLIND, 0], details[BLIND, 0]),
        "rows": rows,
        "intervals": _differences(rows, retained, plan),
        "latency": latency,
        "images": len(samples),
        "questions": sum(len(sample.questions) for sample in samples),
        "methods": {method.name: method.source for method in plan.methods},
        **(extra or {}),
    }
    return _without_nan(report)


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


def check_report(report: dict[str, Any]) -> None:
    """Raise ValueError where a report does not have the promised keys and ranges."""
    for key in ("model", "num_tokens", "full", "blind", "rows", "latency"):
        if key not in report:
            raise ValueError(f"report lacks {key!r}")
    for name in ("full", "blind"):
        if not {"mean", "tasks"} <= set(report[name]):
            raise ValueError(f"report[{name!r}] needs mean and tasks")
    for row in report["rows"]:
        if not ROW_KEYS <= set(row):
            raise ValueError(f"row of {row.get('method')} lacks {sorted(ROW_KEYS - set(row))}")
        if not 1 <= row["budget"] <= report["num_tokens"]:
            raise ValueError(f"row of {row['method']}: budget {row['budget']} outside 1..N")
        if set(row["tasks"]) != set(report["full"]["tasks"]):
            raise ValueError(f"row of {row['method']}: other tasks than the full model")
    latency = report["latency"]
    if not {"full_prefill_ms", "pruned"} <= set(latency):
        raise ValueError("latency needs full_prefill_ms and pruned")
    for row in latency["pruned"]:
        if not LATENCY_ROW_KEYS <= set(row):
            raise ValueError(f"latency row lacks {sorted(LATENCY_ROW_KEYS - set(row))}")


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as per cent, a dash when there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown: accuracy table by budget, differences, latency, environment."""
    lines = [f"# Token selection on {report['model']}", ""]
    lines += [
        f"{report['images']} images, {report['questions']} questions; accuracy and retention in "
        "per cent; retention is the mean over the tasks of score / full score, with its 95 % "
        "interval from a paired bootstrap over images.",
        "",
    ]
    lines += [f"> **Warning:** {text}.\n" for text in report.get("warnings", [])]
    lines += _accuracy_table(report) + _difference_table(report)
    lines += _detail_tables(report) + _latency_table(report)
    lines += ["", "## Methods", ""]
    lines += [f"* **{name}**: {source}" for name, source in method_sources(report).items()]
    if "environment" in report:
        lines += ["", "## Environment", ""]
        lines += [f"* {key}: {value}" for key, value in report["environment"].items()]
    return "\n".join(lines) + "\n"


def method_sources(report: dict[str, Any]) -> dict[str, str]:
    """What stands behind each row name of the accuracy table."""
    bounds = {"upper bound": "all tokens, the untouched model", "blind": "no visual token at all"}
    return {**bounds, **report.get("methods", {})}


def _accuracy_table(report: dict[str, Any]) -> list[str]:
    tasks = list(report["full"]["tasks"])
    count = report["num_tokens"]
    lines = [
        "| method | tokens | " + " | ".join(tasks) + " | mean | retention | 95 % interval |",
        "|---|---:|" + "---:|" * (len(tasks) + 3),
    ]

    def line(name: str, tokens: int, row: dict[str, Any], end: str) -> str:
        cells = [percent(row["tasks"][task]) for task in tasks] + [percent(row["mean"])]
        return f"| {name} | {tokens} | " + " | ".join(cells) + f" | {end} |"

    lines.append(line("upper bound", count, report["full"], "100.0 | –"))
    for budget in sorted({row["budget"] for row in report["rows"]}, reverse=True):
        band = [row for row in report["rows"] if row["budget"] == budget]
        lines.append(
            f"| **{budget} of {count} tokens ({percent(budget / count)} %)** |"
            + " |" * (len(tasks) + 4)
        )
        for row in sorted(band, key=lambda r: -(r["retention"] or 0.0)):
            low, high = row["retention_ci95"]
            name = f"**{row['method']}**" if row["method"] == SELECTOR else row["method"]
            ends = f"{percent(row['retention'])} | {percent(low)} to {percent(high)}"
            lines.append(line(name, budget, row, ends))
    lines.append(line("blind", 0, report["blind"], "– | –"))
    return lines


def _difference_table(report: dict[str, Any]) -> list[str]:
    if not report.get("intervals"):
        return []
    lines = ["", f"## Retention of {SELECTOR} minus each other method, in points", ""]
    lines += ["| tokens | against | difference | 95 % interval |", "|---:|---|---:|---|"]
    for row in report["intervals"]:
        low, high = row["ci95"]
        lines.append(
            f"| {row['budget']} | {row['against']} | {percent(row['difference'])} | "
            f"{percent(low)} to {percent(high)} |"
        )
    return lines


def _detail_tables(report: dict[str, Any]) -> list[str]:
    """One table for each task with further numbers, such as precision and recall of yes."""
    lines: list[str] = []
    for task, numbers in report["full"].get("details", {}).items():
        lines += ["", f"## Further numbers: {task}", ""]
        lines += ["| method | tokens | " + " | ".join(numbers) + " |"]
        lines += ["|---|---:|" + "---:|" * len(numbers)]
        full = {"method": "upper bound", "budget": report["num_tokens"], **report["full"]}
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


def latency_table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the latency table, full model first; a dash where nothing was measured."""
    latency = report["latency"]
    full = {"prefill_ms": latency["full_prefill_ms"], **latency.get("full", {})}
    head = ["tokens", "selector ms", "prefill ms", "first token ms", "decode ms/token", "KV MiB"]
    head += ["speedup", "with vision"]
    rows = []
    for row in [full, *latency["pruned"]]:
        count = row.get("budget")
        cache = row.get("kv_cache_bytes")
        numbers = [
            row.get(f"{stage}_ms") for stage in ("selector", "prefill", "first_token", "decode")
        ]
        numbers.append(None if cache is None else cache / 2**20)
        numbers += [
            row.get(key, 1.0 if count is None else None)
            for key in ("speedup", "speedup_with_vision")
        ]
        cells = ["–" if number is None else f"{number:.2f}" for number in numbers]
        rows.append([f"{report['num_tokens']} (full)" if count is None else str(count), *cells])
    return head, rows


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
