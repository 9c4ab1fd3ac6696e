"""Reading back what a run logged."""

import logging

from autoselect.tracking.spool import OFFLINE
from autoselect.tracking.store import ServerUnreachableError, Store

logger = logging.getLogger(__name__)


def metric_history(run_id: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of a metric in the order of the steps; empty when it cannot be read.

    Args:
        run_id: of the run, as `Tracker.run_id` gave it.
        name: of the metric.
    """
    if run_id.startswith(OFFLINE):
        return []
    try:
        return Store.open().history(run_id, name)
    except ServerUnreachableError as error:
        logger.warning("tracking server does not answer, no course of %s: %s", name, error)
        return []
