"""Track public tasks in MLflow: a parent run from start to end, a child per method and budget.

If a start is repeated, or adds budgets and tasks in its folder, it continues the same runs.
"""

from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autoselect.lmms.report import public_markdown
from autoselect.tracking import Tracker
from autoselect.tracking.ending import ended_truthfully
from autoselect.tracking.note import RunNote

KIND, PARENT = "public benchmarks", "parent"
GROWING = ("tasks", "budgets", "methods")
"""Settings that a later start may extend, logged as tags because MLflow parameters are fixed."""


class PublicRecord:
    """The MLflow runs of one output folder.

    Args:
        settings: `PublicSettings`; without `tracking` nothing is logged.
        identity: JSON value; a later start with an equal one continues the same runs.
        environment: result of `evaluation.environment`.
    """

    def __init__(self, settings: Any, identity: Any, environment: dict[str, Any]) -> None:
        self.settings = settings
        self._parent = Tracker.disabled()
        if not settings.tracking:
            return
        out, params = Path(settings.out), asdict(settings)
        growing = {name: params.pop(name) for name in GROWING}
        self._note = RunNote(out, KIND, [settings.experiment, identity])
        self._parent = Tracker.start(
            settings.experiment,
            f"public {out.absolute().name}",
            params,
            {"kind": KIND, "git_commit": environment.get("git_commit"), **growing},
            run_id=self._note.get(PARENT),
        )
        self._note.keep(PARENT, self._parent.run_id)
        self._parent.watch_machine()

    def ended_truthfully(self) -> AbstractContextManager[Tracker]:
        """Return a context manager that ends the parent run with the status of the work in it."""
        return ended_truthfully(self._parent)

    def log(self, report: dict[str, Any]) -> None:
        """Log a finished report of `build_public_report`, and its files."""
        if not self.settings.tracking:
            return
        self._parent.describe(public_markdown(report))
        self._parent.log_metrics(_metrics("full", report["full"]["tasks"]))
        for name in ("report.md", "report.json"):
            self._parent.log_artifact(Path(self.settings.out) / name)
        for row in report["rows"]:
            self._log_row(row)

    def _log_row(self, row: dict[str, Any]) -> None:
        name = f"{row['method']}, {row['budget']} tokens"
        child = Tracker.start(
            self.settings.experiment,
            name,
            {"method": row["method"], "token_budget": row["budget"]},
            {"kind": "public benchmark row", "method": row["method"]},
            run_id=self._note.get(name),
            parent_run_id=self._parent.run_id,
        )
        self._note.keep(name, child.run_id)
        metrics = _metrics("score", row["tasks"])
        if row["retention"] is not None:
            metrics["retention"] = row["retention"]
        child.log_metrics(metrics)
        child.finish()


def _metrics(prefix: str, scores: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{task}": score for task, score in scores.items()}
