"""Read back what a run logged."""

import logging

from autoselect.tracking.errors import TrackingError
from autoselect.tracking.journal import OFFLINE
from autoselect.tracking.store import Store

logger = logging.getLogger(__name__)


def metric_history(run_id: str, name: str) -> list[tuple[int, float]]:
    """Return (step, value) pairs of a metric, ordered by step; empty if it cannot be read."""
    if run_id.startswith(OFFLINE):
        return []
    store = Store.open()
    try:
        return store.history(run_id, name)
    except TrackingError as error:
        logger.warning("%s %s, no history of %s: %s", store.address, error.verb, name, error)
        return []
