"""Reading back what a run logged."""

import logging

from autoselect.tracking.spool import OFFLINE
from autoselect.tracking.store import Store, TrackingError

logger = logging.getLogger(__name__)


def metric_history(run_id: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of a metric in the order of the steps; empty when it cannot be read.

    Args:
        run_id: of the run, as `Tracker.run_id` gave it.
        name: of the metric.
    """
    if run_id.startswith(OFFLINE):
        return []
    store = Store.open()
    try:
        return store.history(run_id, name)
    except TrackingError as error:
        logger.warning("%s %s, no course of %s: %s", store.address, error.verb, name, error)
        return []
