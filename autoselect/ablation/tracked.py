"""Log an ablation to MLflow: a parent run with the tables, and a child run per cell."""

import json
from pathlib import Path
from typing import Any

from autoselect.ablation.cells import CHOICE, Cell
from autoselect.ablation.tables import markdown
from autoselect.ablation.variants import AblationPlan
from autoselect.config.row_names import SELECTOR
from autoselect.tracking import Tracker
from autoselect.tracking.note import ABLATION, RunNote

PARENT = "parent"


class AblationRecord:
    """The MLflow runs of an ablation; an interrupted parent run is resumed."""

    def __init__(self, plan: AblationPlan, out: Path) -> None:
        self.plan, self.out = plan, out
        self.parent = Tracker.disabled()
        self._note = RunNote(out, ABLATION, None)
        if plan.tracking:
            self.parent = Tracker.start(
                plan.experiment,
                f"ablation {out.name}",
                {"steps": plan.steps, "images": plan.images, "budgets": plan.budgets},
                {"kind": "ablation"},
                run_id=self._note.get(PARENT),
            )
            self._note.keep(PARENT, self.parent.run_id)

    def cell(self, cell: Cell) -> None:
        """Log a finished cell once per selector; one without its report was logged elsewhere."""
        name = f"{cell.variant.name}, seed {cell.seed}"
        evaluated = cell.folder / "eval" / "report.json"
        note = cell.read()
        known = f"{name}, selector {note[CHOICE][:12]}" if CHOICE in note else name
        if not self.plan.tracking or self._note.get(known) or not evaluated.is_file():
            return
        report = json.loads(evaluated.read_text())
        leak = note["outcome"]["leak"]
        training = report["training"]
        child = Tracker.start(
            self.plan.experiment,
            name,
            {"variant": cell.variant.name, **note["training"]},
            {
                "kind": "ablation cell",
                "variant": cell.variant.name,
                "training_run": training.get("tracking_run_id", "unknown"),
            },
            parent_run_id=self.parent.run_id,
        )
        child.log_metrics(_metrics(report, leak, training))
        for file in ("report.md", "report.html", "report.json"):
            child.log_artifact(cell.folder / "eval" / file)
        if training.get("tracking_run_id"):
            text = f"ablation {self.out.name}: {name}"
            child.mention_on(training["tracking_run_id"], "evaluations", "Evaluations", text)
        child.finish()
        self._note.keep(known, child.run_id)

    def finish(self, found: dict[str, Any]) -> None:
        self.parent.describe(markdown(found))
        columns = _columns(found)
        self.parent.log_table(columns, "variants.json")
        for row in found["variants"]:
            for budget, value in row["retention"].items():
                name = f"retention_at_{budget}_tokens/{row['name']}"
                if value["mean"] is not None:
                    self.parent.log_metrics({name: value["mean"]})
        for file in ("ablation.json", "ablation.md"):
            self.parent.log_artifact(self.out / file)
        self.parent.finish()

    def abandon(self, error: BaseException) -> None:
        """End the parent run as killed or failed; a later start resumes it."""
        self.parent.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")


def _metrics(
    report: dict[str, Any], leak: dict[str, Any], training: dict[str, Any]
) -> dict[str, float]:
    metrics = {"full_accuracy": report["full"]["mean"], "blind_accuracy": report["blind"]["mean"]}
    for row in report["rows"]:
        if row["method"] == SELECTOR and row["retention"] is not None:
            metrics[f"retention_at_{row['budget']}_tokens"] = row["retention"]
    for name, value in leak["excess"].items():
        if value is not None:
            metrics[f"leak/{name}"] = value
    if training.get("polarisation") is not None:
        metrics["polarisation"] = training["polarisation"]
    return metrics


def _columns(found: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the columns of the table for the dashboard; retentions are fractions."""
    rows = found["variants"]
    columns: dict[str, list[Any]] = {
        "variant": [row["name"] for row in rows],
        "question": [row["asks"] for row in rows],
        "seeds": [len(row["seeds"]) for row in rows],
    }
    for budget in map(str, found["budgets"]):
        values = [row["retention"][budget] for row in rows]
        columns[f"retention at {budget} tokens"] = [
            None if v["mean"] is None else round(v["mean"], 4) for v in values
        ]
        columns[f"95 % interval at {budget} tokens"] = [
            "–" if None in v["ci95"] else " to ".join(f"{end:.3f}" for end in v["ci95"])
            for v in values
        ]
    return columns
