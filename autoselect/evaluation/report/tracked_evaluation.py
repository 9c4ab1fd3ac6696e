"""Log an evaluation to MLflow: a parent run, with one child run per method and budget.

The parent run begins before the first answer, so that its duration is that of the evaluation, and
it ends as finished, failed or killed. An evaluation that is repeated continues the same runs.
"""

import dataclasses
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.report.latency import costs
from autoselect.evaluation.report.latency_table import latency_table
from autoselect.evaluation.report.markdown import markdown_table
from autoselect.evaluation.report.questions import Table
from autoselect.evaluation.report.tables import (
    LOWER,
    UPPER,
    answer_line,
    retention_table,
    span,
)
from autoselect.evaluation.run_names import shown_folder, shown_selector
from autoselect.tracking import Data, Tracker
from autoselect.tracking.ending import ended_truthfully
from autoselect.tracking.leaderboard import EVALUATION, metric_at
from autoselect.tracking.note import RunNote

PARENT, ROW = "parent", "evaluation row"
CURVE = "accuracy_retention"
"""Group of retention by budget; MLflow sorts groups by name, and a run's charts begin with it."""


class TrackedEvaluation:
    """The runs of one evaluation, as a context manager.

    Args:
        identity: JSON value; a later evaluation with an equal one continues these runs.
        tags: facts known before the first answer.
        data: the evaluation shards; None without tracking.
        training_run: MLflow id of the run that trained the selector; None if unknown.
    """

    def __init__(
        self,
        settings: Any,
        identity: Any,
        tags: Mapping[str, object],
        data: Data | None = None,
        training_run: str | None = None,
    ) -> None:
        self.settings, self.data, self.training_run = settings, data, training_run
        self._parent = Tracker.disabled()
        if not settings.tracking:
            return
        own = {"kind": EVALUATION, "selector": shown_selector(settings.selector), **tags}
        if training_run:
            own["training_run"] = training_run
        self._note = RunNote(Path(settings.out), EVALUATION, identity)
        self._parent = Tracker.start(
            settings.experiment,
            f"eval {shown_folder(settings.out)}",
            dataclasses.asdict(settings),
            own,
            run_id=self._note.get(PARENT),
        )
        self._note.keep(PARENT, self._parent.run_id)
        if data is not None:
            self._parent.log_data(data, "eval")
        self._parent.watch_machine()

    @classmethod
    def disabled(cls, settings: Any) -> Self:
        """Return a tracked evaluation that logs nothing."""
        return cls(dataclasses.replace(settings, tracking=False), None, {})

    @property
    def run_id(self) -> str | None:
        """MLflow id of the parent run; None without tracking."""
        return self._parent.run_id

    def __enter__(self) -> Self:
        self._ending = ended_truthfully(self._parent)
        self._ending.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.__exit__(kind, error, trace)

    def log(
        self,
        report: dict[str, Any],
        figures: Mapping[str, Path],
        selectors: Mapping[str, Any],
        tables: Mapping[str, Table],
    ) -> None:
        """Log a finished evaluation; not for a disabled one.

        Args:
            report: content of `report.json`.
            figures: paths of the figures by name.
            selectors: each `Selector` by the name of its row.
            tables: further tables by the name of their file, see `question_tables`.
        """
        parent, out = self._parent, Path(self.settings.out)
        parent.describe(self._description(report))
        parent.log_metrics(_summary(report))
        for row in report["rows"]:
            found = _answer_metrics(row)
            if row["retention"] is not None:
                found[CURVE] = row["retention"]
            own = {f"{name}/{row['method']}": value for name, value in found.items()}
            parent.log_metrics(own, row["budget"])
        parent.log_table(_accuracy_columns(report), "accuracy.json")
        parent.log_table(latency_table(report).columns(), "latency.json")
        for name, (content, pictures) in tables.items():
            parent.log_table(content, name, pictures)
        for name in ("report.html", "report.md", "report.json", "predictions.jsonl"):
            parent.log_artifact(out / name)
        parent.log_artifacts(list(figures.values()), "figures")
        self._log_selectors(report, selectors)
        for row in report["rows"]:
            self._log_row(report, row)
        if self.training_run:
            text = f"eval {shown_folder(self.settings.out)}: {answer_line(report)}"
            parent.mention_on(self.training_run, "evaluations", "Evaluations", text)
        parent.rank_selectors(self.settings.experiment)

    def _description(self, report: dict[str, Any]) -> str:
        """Return the description: MLflow shows little more than its first line."""
        lines = [f"**{answer_line(report)}**", ""]
        if self.training_run:
            link, short = self._parent.link_to(self.training_run), self.training_run[:12]
            run = f"[run {short}]({link})" if link else f"run {short}, which is not in this store"
            lines += [f"Selector {shown_selector(self.settings.selector)}, trained in {run}.", ""]
        lines += [f"> **Warning:** {text}.\n" for text in report.get("warnings", [])]
        lines += [
            f"{report['model']}, {report['images']} images, {report['questions']} questions, "
            f"{report['num_tokens']} visual tokens. Retention in per cent of the accuracy with all "
            "tokens, with its 95 % interval:",
            "",
            *markdown_table(retention_table(report)),
            "",
            report["latency"].get("protocol", ""),
            "The whole report is in the artifacts: `report.html`.",
        ]
        return "\n".join(lines)

    def _log_selectors(self, report: dict[str, Any], selectors: Mapping[str, Any]) -> None:
        for row, selector in selectors.items():
            name = "selector" if row == SELECTOR else f"selector-{row.removeprefix(f'{SELECTOR}:')}"
            with tempfile.TemporaryDirectory() as folder:
                saved = Path(folder) / "selector"  # a name may be a path, which leads elsewhere
                selector.save_pretrained(saved)
                params = {"evaluated_on": report["model"], "row": row}
                self._parent.log_model(saved, _model_name(name), params)
                if self.data is not None:
                    found = _model_metrics(report, row)
                    self._parent.log_model_metrics(_model_name(name), found, self.data)

    def _log_row(self, report: dict[str, Any], row: dict[str, Any]) -> None:
        method, budget = row["method"], row["budget"]
        name = f"{method}, {budget} tokens"
        child = Tracker.start(
            self.settings.experiment,
            name,
            {"method": method, "token_budget": budget},
            {"kind": ROW, "method": method, "model": report["model"]},
            run_id=self._note.get(name),
            parent_run_id=self._parent.run_id,
        )
        self._note.keep(name, child.run_id)
        metrics = {"accuracy": row["mean"], "token_budget": budget}
        metrics |= {f"accuracy/{task}": value for task, value in row["tasks"].items()}
        metrics |= {f"{CURVE}/{task}": v for task, v in row.get("retention_tasks", {}).items()}
        if row["retention"] is not None:
            low, high = row["retention_ci95"]
            metrics |= {"retention": row["retention"], "retention_low": low, "retention_high": high}
        metrics |= _answer_metrics(row)
        metrics |= costs(report).get((method, budget), {})
        child.log_metrics(metrics)
        child.finish()


def _answer_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Return `answers/unended`, `answers/loss` and the like of a row, without unknown ones."""
    known = row.get("answers") or {}
    return {f"answers/{name}": value for name, value in known.items() if value is not None}


def _model_name(name: str) -> str:
    """Replace the characters that MLflow refuses in the name of a model, or of a tag with it."""
    return re.sub(r"[^\w -]", "_", name)


def _model_metrics(report: dict[str, Any], row: str) -> dict[str, float]:
    """Return retention by budget of one selector, and its speedup.

    MLflow makes them metrics of the run too, so each has the name that it has in `_summary`.
    """
    found = {
        _row_metric("retention", row, own["budget"]): own["retention"]
        for own in report["rows"]
        if own["method"] == row and own["retention"] is not None
    }
    speeds = {
        _row_metric("speedup", row, budget): cost["speedup"]
        for (method, budget), cost in costs(report).items()
        if method == row
    }
    return found | speeds


def _row_metric(name: str, row: str, budget: int) -> str:
    """Return the metric of a selector's row: the first one's is a column of the list of runs."""
    other = row.removeprefix(SELECTOR).removeprefix(":")
    return metric_at(name, budget) + (f"/{other}" if other else "")


def _summary(report: dict[str, Any]) -> dict[str, float]:
    """Return the metrics that become columns of MLflow's list of runs."""
    found = {
        "full_accuracy": report["full"]["mean"],
        "blind_accuracy": report["blind"]["mean"],
        **_answer_metrics(report["full"]),
        "latency/full_prefill_ms": report["latency"]["full_prefill_ms"],
    }
    for row in report["rows"]:
        method, budget = row["method"], row["budget"]
        if row["retention"] is None or method.partition(":")[0] != SELECTOR:
            continue
        low, high = row["retention_ci95"]
        for name, value in (
            ("retention", row["retention"]),
            ("retention_low", low),
            ("retention_high", high),
        ):
            found[_row_metric(name, method, budget)] = value
    for (method, budget), cost in costs(report).items():
        for name in ("speedup", "speedup_with_vision"):
            if name in cost:
                found[_row_metric(name, method, budget)] = cost[name]
    similarity = report.get("analyses", {}).get("similarity", {})
    return found | {f"similarity/{name}": value for name, value in similarity.items()}


def _accuracy_columns(report: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the accuracy table by column, as fractions: both bounds, then every row."""
    known = 1.0 if report["full"]["mean"] else None
    full = {"method": UPPER, "budget": report["num_tokens"], "retention": known}
    blind = {"method": LOWER, "budget": 0, "retention": None}
    rows = [full | report["full"], blind | report["blind"], *report["rows"]]
    columns: dict[str, list[Any]] = {
        "method": [row["method"] for row in rows],
        "tokens": [row["budget"] for row in rows],
    }
    for task in report["full"]["tasks"]:
        columns[task] = [round(row["tasks"][task], 4) for row in rows]
    columns["mean"] = [round(row["mean"], 4) for row in rows]
    columns["retention"] = [row["retention"] for row in rows]
    columns["retention_ci95"] = [span(row.get("retention_ci95")) for row in rows]
    return columns
