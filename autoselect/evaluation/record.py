"""An evaluation as MLflow runs: a parent with the whole report, a child per method and budget."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoselect.evaluation.methods import SELECTOR
from autoselect.evaluation.report import latency_table, markdown
from autoselect.tracking import Tracker


def record_evaluation(
    settings: Any, report: dict[str, Any], figures: Mapping[str, Path], training_run: str | None
) -> str | None:
    """Log a finished evaluation; returns the id of the parent run.

    Args:
        settings: the `EvalSettings`.
        report: as `build_report` gives it.
        figures: PNG files by name.
        training_run: run in which the selector was trained, when it is known.
    """
    out = Path(settings.out)
    tags = {"kind": "evaluation", "git_commit": report["environment"]["git_commit"]}
    tags |= {f"{name}_digest": value for name, value in report["digests"].items()}
    if training_run:
        tags["training_run"] = training_run
    parent = Tracker.start(
        settings.experiment, f"eval {out.name}", dataclasses.asdict(settings), tags
    )
    try:
        parent.describe(markdown(report))
        _log_summary(parent, report)
        parent.log_table(_accuracy_columns(report), "accuracy.json")
        parent.log_table(_latency_columns(report), "latency.json")
        for name in ("report.html", "report.md", "report.json", "predictions.jsonl"):
            parent.log_artifact(out / name)
        parent.log_artifacts(list(figures.values()), "figures")
        parent.log_model(settings.selector, "selector", {"evaluated_on": report["model"]})
        for row in report["rows"]:
            _log_row(settings.experiment, report, row, parent.run_id)
    except BaseException:
        parent.finish("FAILED")
        raise
    parent.finish()
    return parent.run_id


def _log_summary(parent: Tracker, report: dict[str, Any]) -> None:
    """Numbers of the whole evaluation; retention has the budget as its step, so it draws curves."""
    latency = report["latency"]
    parent.log_metrics(
        {
            "accuracy/full": report["full"]["mean"],
            "accuracy/blind": report["blind"]["mean"],
            "latency/full_prefill_ms": latency["full_prefill_ms"],
        }
    )
    for row in report["rows"]:
        if row["retention"] is not None:
            parent.log_metrics({f"retention/{row['method']}": row["retention"]}, row["budget"])
            if row["method"] == SELECTOR:
                budget = row["budget"]
                parent.log_metrics({f"retention_at_{budget}_tokens": row["retention"]})
    similarity = report.get("analyses", {}).get("similarity", {})
    parent.log_metrics({f"similarity/{name}": value for name, value in similarity.items()})
    for row in latency["pruned"]:
        parent.log_metrics({"latency/speedup": row["speedup"]}, row["budget"])
        parent.log_metrics({f"speedup_at_{row['budget']}_tokens": row["speedup"]})


def _log_row(
    experiment: str, report: dict[str, Any], row: dict[str, Any], parent_run_id: str | None
) -> None:
    method, budget = row["method"], row["budget"]
    child = Tracker.start(
        experiment,
        f"{method}, {budget} tokens",
        {"method": method, "token_budget": budget},
        {"kind": "evaluation row", "method": method},
        parent_run_id=parent_run_id,
    )
    metrics = {"accuracy": row["mean"], "token_budget": budget}
    metrics |= {f"accuracy/{task}": value for task, value in row["tasks"].items()}
    if row["retention"] is not None:
        low, high = row["retention_ci95"]
        metrics |= {"retention": row["retention"], "retention_low": low, "retention_high": high}
    for timed in report["latency"]["pruned"]:
        if method == SELECTOR and timed["budget"] == budget:
            metrics |= {name: timed[name] for name in ("prefill_ms", "selector_ms", "speedup")}
    child.log_metrics(metrics)
    child.finish()


def _accuracy_columns(report: dict[str, Any]) -> dict[str, list[Any]]:
    """The accuracy table by column: upper bound, every row, blind; fractions."""
    full = {"method": "upper bound", "budget": report["num_tokens"], "retention": 1.0}
    blind = {"method": "blind", "budget": 0, "retention": None}
    rows = [report["full"] | full, *report["rows"], report["blind"] | blind]
    columns: dict[str, list[Any]] = {
        "method": [row["method"] for row in rows],
        "tokens": [row["budget"] for row in rows],
    }
    for task in report["full"]["tasks"]:
        columns[task] = [round(row["tasks"][task], 4) for row in rows]
    columns["mean"] = [round(row["mean"], 4) for row in rows]
    columns["retention"] = [row["retention"] for row in rows]
    columns["retention_ci95"] = [str(row.get("retention_ci95", "")) for row in rows]
    return columns


def _latency_columns(report: dict[str, Any]) -> dict[str, list[Any]]:
    head, rows = latency_table(report)
    return dict(zip(head, map(list, zip(*rows, strict=True)), strict=True))
