"""Check of the tracking store for `autoselect doctor`, by opening it."""

from __future__ import annotations

from pathlib import Path

from autoselect.preflight.finding import Finding, Subject


def check_tracking(subject: Subject) -> Finding:
    """Check that the store would take a run, and that nobody deleted the run that would resume."""
    if not subject.config.tracking:
        return Finding("tracking", "ok", "tracking is off")
    from autoselect.tracking.errors import TrackingError  # MLflow takes seconds to import
    from autoselect.tracking.note import TRAINING, RunNote
    from autoselect.tracking.store import Store

    store = Store.open()
    run_id = RunNote.latest(Path(subject.config.output), TRAINING)
    try:
        store.examine(subject.config.experiment)
        deleted = run_id is not None and store.is_deleted(run_id)
    except TrackingError as error:
        found = f"{store.address} {error.verb}: {error}"
        return Finding("tracking", "fail", found, error.fix)
    if deleted:
        found = f"somebody deleted run {run_id} of {subject.config.output}; a new one would begin"
        fix = f"restore it: mlflow runs restore --run-id {run_id}"
        return Finding("tracking", "warn", found, fix)
    return Finding("tracking", "ok", f"{store.address} takes runs")
