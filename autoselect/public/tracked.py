"""A run over public tasks in MLflow: a parent with the report, a child per method and budget."""

import re
from pathlib import Path
from typing import Any

from autoselect.public.report import public_markdown
from autoselect.tracking import Tracker

LENGTH = re.compile(r"[^\w./ -]")


def record_public(experiment: str, out: Path, report: dict[str, Any]) -> None:
    """Log a finished report.

    Args:
        experiment: of MLflow.
        out: folder with `report.json` and `report.md`.
        report: as `build_public_report` gives it.
    """
    tags = {"kind": "public benchmarks", "git_commit": report["environment"].get("git_commit")}
    parent = Tracker.start(experiment, f"public {out.name}", report["settings"], tags)
    try:
        parent.describe(public_markdown(report))
        parent.log_metrics(_metrics("full", report["full"]["tasks"]))
        for name in ("report.md", "report.json"):
            parent.log_artifact(out / name)
        for row in report["rows"]:
            _log_row(experiment, row, parent.run_id)
    except BaseException:
        parent.finish("FAILED")
        raise
    parent.finish()


def _log_row(experiment: str, row: dict[str, Any], parent_run_id: str | None) -> None:
    child = Tracker.start(
        experiment,
        f"{row['method']}, {row['budget']} tokens",
        {"method": row["method"], "token_budget": row["budget"]},
        {"kind": "public benchmark row", "method": row["method"]},
        parent_run_id=parent_run_id,
    )
    metrics = _metrics("score", row["tasks"])
    if row["retention"] is not None:
        metrics["retention"] = row["retention"]
    child.log_metrics(metrics)
    child.finish()


def _metrics(prefix: str, scores: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{LENGTH.sub('_', task)}": score for task, score in scores.items()}
