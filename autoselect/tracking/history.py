"""Reading back what a run logged."""

import logging

from autoselect.tracking.errors import TrackingError
from autoselect.tracking.journal import OFFLINE
from autoselect.tracking.store import Store

logger = logging.getLogger(__name__)


def metric_history(run_id: str, name: str) -> list[tuple[int, float]]:
    """Return (step, value) of a metric in the order of the steps; empty if it cannot be read.

    Args:
        run_id: id that `Tracker.run_id` gave.
        name: name of the metric.
    """
    if run_id.startswith(OFFLINE):
        return []
    store = Store.open()
    try:
        return store.history(run_id, name)
    except TrackingError as error:
        logger.warning("%s %s, no course of %s: %s", store.address, error.verb, name, error)
        return []
