"""Begin a run, or find the journal of an earlier one to resume."""

import logging
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.tracking.delivery import Delivery, tell_of_other_store
from autoselect.tracking.errors import RefusedError, ServerUnreachableError, TrackingError
from autoselect.tracking.journal import JOURNAL_FOLDER, OFFLINE, Event, Journal
from autoselect.tracking.store import Store

logger = logging.getLogger(__name__)


def resumable(store: Store, run_id: str, experiment: str) -> Journal | None:
    """Return the journal of a run to resume, or None if a new one has to begin."""
    journal = Journal(Path(JOURNAL_FOLDER), run_id, store.address)
    journal.give_up_damaged()
    if run_id.startswith(OFFLINE):
        if journal and journal.address not in (None, store.address):
            tell_of_other_store(journal)
            return None
        if journal.run_id is None:
            if not journal:
                logger.warning("nothing is left of run %s; a new run begins", run_id)
            return journal or None
        if not journal:
            journal = Journal(journal.folder, journal.run_id, store.address)
            journal.give_up_damaged()
    assert journal.run_id is not None
    try:
        known = store.knows(journal.run_id) or store.lost_with(journal.run_id, experiment)
    except TrackingError:
        known = True  # nothing speaks against the run
    if not known:
        logger.warning("run %s is not in %s; a new run begins", journal.run_id, store.address)
    return journal if known else None


def begin(store: Store, event: Event) -> Delivery:
    """Create a run, or note its start in a journal if the server does not answer.

    Raises:
        ConfigError: the server refuses it.
    """
    folder = Path(JOURNAL_FOLDER)
    try:
        return Delivery(store, Journal(folder, store.create(event), store.address))
    except ServerUnreachableError as error:
        delivery = Delivery(store, Journal(folder, Journal.offline_name(), store.address))
        delivery.journal.append({"kind": "start", **event})
        delivery.postpone(error)
        return delivery
    except RefusedError as error:
        raise ConfigError(
            f"MLFLOW_TRACKING_URI={store.address} refuses a new run ({error}); {error.fix}"
        ) from error
