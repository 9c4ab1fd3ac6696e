"""Delivery of a run's journal to the tracking server: in order, by one thread, by nothing else."""

import logging
import threading
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from autoselect.tracking.errors import RefusedError, ServerUnreachableError, TrackingError
from autoselect.tracking.events import carry_out, log_metrics, log_params
from autoselect.tracking.journal import JOURNAL_FOLDER, Event, Journal
from autoselect.tracking.store import Store

DELIVERY_SECONDS = 5.0
"""Longest time that an event waits if the server answers."""
RETRY_SECONDS = 30.0
"""Time after a failure in which the server is left alone."""
CLOSE_SECONDS = 120.0
"""Longest time that the end of a run waits for its delivery."""

logger = logging.getLogger(__name__)


class Delivery:
    """Carries the events of one journal to a store.

    Args:
        store: the tracking server.
        journal: the run's journal.
    """

    def __init__(self, store: Store, journal: Journal) -> None:
        self.store, self.journal = store, journal
        self.changed_parameters: dict[str, tuple[str, str]] = {}
        self._retry_at = 0.0
        self._told: set[str] = set()
        self._told_of_refused: set[tuple[str, str]] = set()
        self._state = threading.Condition()
        self._asked = self._answered = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the events appended so far are delivered, or an attempt has failed.

        Args:
            timeout: longest wait in seconds; None for no limit.
        """
        with self._state:
            self._asked += 1
            mine = self._asked
            self._state.notify_all()
            self._state.wait_for(
                lambda: self._answered >= mine or not self._thread.is_alive(), timeout
            )

    def close(self) -> None:
        """Make a last attempt and wait for it at most `CLOSE_SECONDS`; the thread then ends."""
        with self._state:
            self._closing = True
            self.flush(CLOSE_SECONDS)

    def postpone(self, error: TrackingError) -> None:
        """Leave the server alone for a while; each kind of error is told once until it is over."""
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if error.code not in self._told:
            logger.warning(
                "tracking server %s %s: %s; run %s goes on, kept in %s to be delivered later; %s",
                self.store.address,
                error.verb,
                error,
                self.journal.run_id or self.journal.name,
                self.journal.path,
                error.fix,
            )
        self._told.add(error.code)

    def deliver(self, of_others: bool = False) -> None:
        """Deliver the waiting events in order.

        Args:
            of_others: only if no living process, such as one that resumed the run, will do so.

        Raises:
            TrackingError: the event at which it happened, and all after it, wait on.
        """
        if not self.journal:
            return
        with self.journal.delivering():
            if of_others and not self.journal.is_left:
                return
            delivered = 0
            try:
                for together in _batches(self.journal.events()):
                    self._deliver(together)
                    delivered += len(together)
            finally:
                self.journal.drop(delivered)
        self._told.clear()

    def _run(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._asked > self._answered, DELIVERY_SECONDS)
                asked, closing = self._asked, self._closing
            if closing or time.monotonic() >= self._retry_at:
                self._attempt()
            with self._state:
                self._answered = asked
                self._state.notify_all()
            if closing:
                return

    def _attempt(self) -> None:
        try:
            self.deliver()
        except TrackingError as error:
            self.postpone(error)
        except Exception as error:  # such as those of a cloud's library, which carries artefacts
            logger.debug("delivery of %s failed", self.journal.path, exc_info=True)
            self.postpone(ServerUnreachableError(repr(error), type(error).__name__))

    def _deliver(self, together: list[Event]) -> None:
        """Carry out one of `_batches`; an event that is refused for its own sake is set aside."""
        try:
            self._carry_out(together)
        except RefusedError as error:
            if not self._is_own_fault(together[0], error):
                raise
            if len(together) > 1:
                half = len(together) // 2
                self._deliver(together[:half])
                self._deliver(together[half:])
            else:
                self._set_aside(together[0], error)

    def _is_own_fault(self, event: Event, error: RefusedError) -> bool:
        """Return True if the server refuses this event, but takes others of this run."""
        run_id = self.journal.run_id
        if event["kind"] == "start" or error.of_everything or run_id is None:
            return False
        try:
            return self.store.knows(run_id)
        except TrackingError:
            return False

    def _set_aside(self, event: Event, error: RefusedError) -> None:
        self.journal.set_aside(event, str(error))
        if (event["kind"], error.code) not in self._told_of_refused:
            logger.warning(
                "tracking server %s refuses an event (%s) of run %s: %s; it is set aside in %s, "
                "and later ones are delivered",
                self.store.address,
                event["kind"],
                self.journal.run_id,
                error,
                self.journal.refused,
            )
        self._told_of_refused.add((event["kind"], error.code))

    def _carry_out(self, together: list[Event]) -> None:
        event, run_id = together[0], self.journal.run_id
        if event["kind"] == "start":
            if run_id is None:
                self.journal.resolve(self.store.create(event))
            return
        assert run_id is not None, "the start of a run comes before everything else"
        if event["kind"] == "metrics":
            log_metrics(self.store, run_id, together)
        elif event["kind"] == "params":
            self.changed_parameters = log_params(self.store, run_id, event["values"])
            for name, (before, now) in self.changed_parameters.items():
                logger.warning("resumed run %s: %s was %s, is now %s", run_id, name, before, now)
        else:
            carry_out(self.store, run_id, event)


def deliver_left_behind() -> int:
    """Deliver what ended runs could not; return the number of journals that still wait.

    A journal that is for another store, or that this one refuses, stays and is named in a warning.
    """
    store = Store.open()
    waiting, left = [], 0
    for journal in Journal.waiting(Path(JOURNAL_FOLDER)):
        try:
            if journal.is_left:
                waiting.append(journal)
        except ValueError as error:
            logger.warning("%s is damaged (%s); delete it to give it up", journal.path, error)
            left += 1
    for position, journal in enumerate(waiting):
        try:
            left += not _delivered(store, journal)
        except ServerUnreachableError:
            return left + len(waiting) - position
        except OSError as error:  # such as a full disk under the journal
            logger.warning("%s cannot be delivered: %s; mend that", journal.path, error)
            left += 1
    return left


def _delivered(store: Store, journal: Journal) -> bool:
    """Deliver a journal, or warn why it has to wait.

    Raises:
        ServerUnreachableError: the store takes nothing now.
    """
    if journal.address not in (None, store.address):
        tell_of_other_store(journal)
        return False
    try:
        Delivery(store, journal).deliver(of_others=True)
        return True
    except RefusedError as error:
        logger.warning(
            "%s cannot be delivered: %s refuses it (%s); mend that, such as by restoring run %s "
            "there, or delete the file to give it up",
            journal.path,
            store.address,
            error,
            journal.run_id or journal.name,
        )
        return False


def tell_of_other_store(journal: Journal) -> None:
    """Warn that a journal waits for a store that is not the present one."""
    logger.warning(
        "%s waits for the tracking server %s; start a run here with MLFLOW_TRACKING_URI set to it, "
        "or delete the file to give it up",
        journal.path,
        journal.address,
    )


def _batches(events: list[Event]) -> Iterator[list[Event]]:
    """Yield neighbouring metrics together, everything else one by one."""
    for kind, alike in groupby(events, key=lambda event: event["kind"]):
        if kind == "metrics":
            yield list(alike)
        else:
            yield from ([event] for event in alike)
