"""Log a search to MLflow: beside its training, or as a run of its own."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from autoselect.evaluation.analyses.tracked_analysis import log_analysis, start_analysis
from autoselect.evaluation.loading import selector_digest
from autoselect.tracking import Data, Tracker
from autoselect.tracking.ending import ended_truthfully
from autoselect.tracking.leaderboard import metric_at
from autoselect.tuning.run import FIGURE, REPORT, Tuning
from autoselect.tuning.settings import TuneSettings

TRAINING_RUN = "tracking_run_id"


def log_beside_training(tuning: Tuning, experiment: str, run_id: str) -> None:
    """Add selector, numbers and figure to the run of the training; budgets are the steps.

    The selector's folder is beside that of the report.
    """
    tracker, best = Tracker.start(experiment, "train", run_id=run_id), tuning.report["best"]
    for row in best:
        values = {f"tune/{name}": row[name] for name in ("weight", "agreement", "unended", "loss")}
        tracker.log_metrics(values, row["budget"])
    for weight, rows in tuning.report["weights"].items():
        for budget, row in zip(tuning.report["budgets"], rows, strict=True):
            tracker.log_metrics({f"tune/agreement/diversity-{weight}": row["agreement"]}, budget)
    for row in tuning.report.get("gaps", []):
        named = {name: value for name, value in row.items() if name not in ("selection", "budget")}
        own = {f"tune/{row['selection']}/{name}": value for name, value in named.items()}
        tracker.log_metrics(own, row["budget"])
    data = Data("tuning images", str(tuning.report["data_digest"]), "training shards", "")
    tracker.log_data(data, "tuning")
    tracker.log_model(tuning.out.parent / "selector", "selector", {"model": tuning.vlm.name})
    agreement = {metric_at("agreement", row["budget"]): row["agreement"] for row in best}
    tracker.log_model_metrics("selector", agreement, data)
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
