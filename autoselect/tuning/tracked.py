"""Log a search to MLflow: beside its training, or as a run of its own."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from autoselect.evaluation.analyses.tracked_analysis import log_analysis, start_analysis
from autoselect.evaluation.loading import selector_digest
from autoselect.tracking import Tracker
from autoselect.tracking.ending import ended_truthfully
from autoselect.tuning.run import FIGURE, REPORT, Tuning
from autoselect.tuning.settings import TuneSettings

TRAINING_RUN = "tracking_run_id"


def log_beside_training(tuning: Tuning, experiment: str, run_id: str) -> None:
    """Add the numbers and the figure to the run of the training; budgets are the steps."""
    tracker = Tracker.start(experiment, "train", run_id=run_id)
    for row in tuning.report["best"]:
        values = {f"tune/{name}": row[name] for name in ("weight", "agreement", "unended", "loss")}
        tracker.log_metrics(values, row["budget"])
    for weight, rows in tuning.report["weights"].items():
        for budget, row in zip(tuning.report["budgets"], rows, strict=True):
            tracker.log_metrics({f"tune/agreement/diversity-{weight}": row["agreement"]}, budget)
    for row in tuning.report.get("gaps", []):
        named = {name: value for name, value in row.items() if name not in ("selection", "budget")}
        own = {f"tune/{row['selection']}/{name}": value for name, value in named.items()}
        tracker.log_metrics(own, row["budget"])
    tracker.log_artifact(tuning.out / REPORT)
    tracker.log_artifact(tuning.out / FIGURE, "figures")
    tracker.finish()


def log_alone(tuning: Tuning, settings: TuneSettings) -> None:
    """Log the search as a run of its own, mentioned on that of the training."""
    training = tuning.selector.metadata.get(TRAINING_RUN)
    tags: Mapping[str, Any] = {
        "model": tuning.vlm.name,
        "model_digest": tuning.vlm.digest,
        "selector_digest": selector_digest(tuning.selector),
    }
    own = {**asdict(settings), "out": str(tuning.out)}
    tracker = start_analysis("tune", own, tags, training)
    with ended_truthfully(tracker):
        log_analysis(tracker, "tune", tuning.report, tuning.out, training)
