"""Report over public tasks: scores, retention, latency and published rows."""

from collections.abc import Sequence
from typing import Any

from autoselect.evaluation.report.tables import percent
from autoselect.files.markdown import table_row
from autoselect.lmms.engine import FULL
from autoselect.lmms.published import FULL_MODEL, MODEL, PAPER, published_rows
from autoselect.lmms.tasks import TASKS, label


def build_public_report(
    model: str,
    results: Sequence[dict[str, Any]],
    latency: dict[str, Any],
    extra: dict[str, Any],
) -> dict[str, Any]:
    """Return all results as JSON; `latency` is from `bench_prefill`, or `{"missing": reason}`."""
    full = {cell["task"]: cell for cell in results if cell["method"] == FULL}
    columns = dict.fromkeys(
        (cell["method"], cell["budget"]) for cell in results if cell["method"] != FULL
    )
    rows = []
    for method, budget in columns:
        own = {c["task"]: c for c in results if (c["method"], c["budget"]) == (method, budget)}
        shares = {task: _share(cell["score"], full[task]["score"]) for task, cell in own.items()}
        known = [share for share in shares.values() if share is not None]
        rows.append(
            {
                "method": method,
                "budget": budget,
                "tasks": {task: cell["score"] for task, cell in own.items()},
                "metrics": {task: cell["metrics"] for task, cell in own.items()},
                "retention_tasks": shares,
                "retention": sum(known) / len(known) if known else None,
                "seconds": sum(cell["seconds"] for cell in own.values()),
            }
        )
    return {
        "model": model,
        "tasks": {
            task: {"label": label(task), "note": TASKS[task].note if task in TASKS else ""}
            for task in full
        },
        "full": {
            "tasks": {task: cell["score"] for task, cell in full.items()},
            "metrics": {task: cell["metrics"] for task, cell in full.items()},
            "seconds": sum(cell["seconds"] for cell in full.values()),
        },
        "rows": rows,
        "latency": latency,
        "published": published_rows(model),
        **extra,
    }


def _share(score: float, full: float) -> float | None:
    return score / full if full else None


def public_markdown(report: dict[str, Any]) -> str:
    lines = [f"# Public benchmarks: token selection on {report['model']}", ""]
    lines += _scores(report) + _notes(report) + _latency(report["latency"]) + _published(report)
    lines += ["", "## Environment", ""]
    lines += [f"* {key}: {value}" for key, value in report["identity"].items()]
    lines += [f"* {key}: {value}" for key, value in report["environment"].items()]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value > 200 else f"{value:.1f}"


def _scores(report: dict[str, Any]) -> list[str]:
    tasks = list(report["tasks"])
    names = [report["tasks"][task]["label"] for task in tasks]
    lines = [
        "Scores in the published units; retention is the mean over the tasks of score / full "
        "score, in per cent.",
        "",
        table_row(["method", "tokens", *names, "retention"]),
        "|---|---:|" + "---:|" * (len(tasks) + 1),
    ]

    def line(name: str, tokens: str, scores: dict[str, float], end: str) -> str:
        return table_row([name, tokens, *(_number(scores.get(task)) for task in tasks), end])

    lines.append(line("upper bound", "all", report["full"]["tasks"], "100.0"))
    for row in report["rows"]:
        lines.append(line(row["method"], row["budget"], row["tasks"], percent(row["retention"])))
    if MODEL in report["model"].lower():
        lines.append(line("upper bound, published", "576", FULL_MODEL, "100.0"))
        lines.append(line("AutoSelect's paper, K not stated", "?", PAPER, "–"))
    return lines


def _notes(report: dict[str, Any]) -> list[str]:
    notes = [
        f"* {entry['label']} (`{task}`): {entry['note']}"
        for task, entry in report["tasks"].items()
        if entry["note"]
    ]
    return ["", *notes] if notes else []


def _latency(latency: dict[str, Any]) -> list[str]:
    lines = ["", "## Prefill", ""]
    if "missing" in latency:
        return [*lines, f"Not measured: {latency['missing']}"]
    lines += [
        "| tokens | selector ms (in prefill) | prefill ms | speedup |",
        "|---:|---:|---:|---:|",
    ]
    run = latency["runs"][0]
    full = [f"{latency['num_tokens']} (all)", "–", f"{run['full_prefill_ms']:.2f}", "1.00"]
    lines.append(table_row(full))
    for row in run["pruned"]:
        numbers = (f"{row[name]:.2f}" for name in ("selector_ms", "prefill_ms", "speedup"))
        lines.append(table_row([row["budget"], *numbers]))
    return [*lines, "", "Batch 1, the attached model; speedup is full prefill / pruned prefill."]


def _published(report: dict[str, Any]) -> list[str]:
    if not report["published"]:
        return []
    lines = [
        "",
        "## Published by others on this model",
        "",
        "Average retention in per cent as each source gives it, over its own benchmarks and with "
        "its own evaluation code; not measured here.",
        "",
        "| method | K | retention | source |",
        "|---|---:|---:|---|",
    ]
    for row in report["published"]:
        budget = row["budget"] or "not stated"
        lines.append(table_row([row["method"], budget, f"{row['retention']:.1f}", row["source"]]))
    return lines
