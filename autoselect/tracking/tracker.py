"""`Tracker`: what a run logs.

Runs go to `sqlite:///mlflow.db` in the current folder, or where MLFLOW_TRACKING_URI points. A run
can be resumed by its id: a parameter that changed is reported instead of crashing, a step that was
logged before is not logged again, and the final status is what happened.

Every event is appended to the run's journal in `mlruns/spool/`, which is all that it costs the
caller; `delivery` carries it to the server, now or when the server answers again.
"""

import atexit
import logging
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.tracking.delivery import Delivery, deliver_left_behind, tell_of_other_store
from autoselect.tracking.errors import RefusedError, ServerUnreachableError, TrackingError
from autoselect.tracking.journal import JOURNAL_FOLDER, OFFLINE, Event, Journal
from autoselect.tracking.leaderboard import NOTE_TAG
from autoselect.tracking.processes import own_process
from autoselect.tracking.store import Store

PARENT_TAG, SOURCE_TAG = "mlflow.parentRunId", "mlflow.source.name"
STATUSES = ("FINISHED", "FAILED", "KILLED")

logger = logging.getLogger(__name__)


class Tracker:
    """One run; create it with `Tracker.start` or `Tracker.disabled`."""

    def __init__(self, delivery: Delivery | None) -> None:
        self._delivery = delivery
        self._finished = self._started = self._told = False
        self._finishing = threading.Lock()

    @classmethod
    def disabled(cls) -> "Tracker":
        """Return a tracker that does nothing, for other ranks and for runs without tracking."""
        return cls(None)

    @classmethod
    def start(
        cls,
        experiment: str,
        run_name: str,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
        run_id: str | None = None,
        parent_run_id: str | None = None,
    ) -> "Tracker":
        """Begin a run, or go on with one.

        Runs of this machine whose process is gone are closed as KILLED, and what earlier runs could
        not deliver is delivered.

        Args:
            experiment: name of the experiment, created if it does not exist.
            run_name: shown in the list of runs.
            params: settings; those of a resumed run are compared.
            tags: facts to search by.
            run_id: `run_id` of an earlier tracker, to resume its run; if the store does not know
                it, a new run begins.
            parent_run_id: id of the run under which this one is nested.

        Raises:
            ConfigError: the store refuses a new run, such as for wrong credentials, or the journal
                cannot be written.
        """
        shown = {k: str(v) for k, v in {**own_process(), **(tags or {})}.items()}
        shown.setdefault(SOURCE_TAG, Path(sys.argv[0]).name)
        if parent_run_id is not None:
            shown[PARENT_TAG] = parent_run_id
        store = Store.open()
        journal = _resumable(store, run_id, experiment) if run_id is not None else None
        try:
            if journal is None:
                delivery = _begin(
                    store, {"experiment": experiment, "run_name": run_name, "time_ms": _now_ms()}
                )
            else:
                delivery = Delivery(store, journal)
            tracker = cls(delivery)
            tracker._log({"kind": "resume", "tags": shown, "experiment": experiment})
        except OSError as error:
            folder = Path(JOURNAL_FOLDER).absolute()
            raise ConfigError(
                f"tracking=true needs {folder} for the journal of the run, but: {error}; start in "
                "a folder that can be written, or switch tracking off"
            ) from error
        tracker._log({"kind": "params", "values": {k: str(v) for k, v in (params or {}).items()}})
        atexit.register(tracker._close_unfinished)
        delivery.start()
        delivery.flush()
        if not delivery.journal:
            deliver_left_behind()
        tracker._started = True
        return tracker

    @property
    def run_id(self) -> str | None:
        """Id for a later resume, None if disabled; provisional until the server has answered."""
        if self._delivery is None:
            return None
        return self._delivery.journal.run_id or self._delivery.journal.name

    @property
    def changed_parameters(self) -> dict[str, tuple[str, str]]:
        """Parameters of a resumed run that differ: name -> (logged before, now)."""
        return {} if self._delivery is None else self._delivery.changed_parameters

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers; a (metric, step) that the run has already is left out.

        Args:
            metrics: values by name, with the unit in the name.
            step: update count; None for values without a course, which overwrite earlier ones.
        """
        values = {name: float(value) for name, value in metrics.items()}
        self._log({"kind": "metrics", "values": values, "step": step, "time_ms": _now_ms()})

    def flush(self) -> None:
        """Wait until everything logged so far is delivered, or the server does not take it."""
        if self._delivery is not None:
            self._delivery.flush()

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Add or replace tags."""
        self._log({"kind": "tags", "values": {k: str(v) for k, v in tags.items()}})

    def describe(self, text: str) -> None:
        """Set the description that the dashboard shows with the run, in Markdown."""
        self.set_tags({NOTE_TAG: text})

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """Log a file, or a folder with all its files, under `folder` of the run's artefacts."""
        folder = "" if folder == "." else folder
        self._log({"kind": "artifact", "path": str(path), "folder": folder})

    def log_artifacts(self, paths: Sequence[str | Path], folder: str = "") -> None:
        """Log several files or folders."""
        for path in paths:
            self.log_artifact(path, folder)

    def log_table(self, columns: Mapping[str, Sequence[object]], name: str) -> None:
        """Log a table (column name -> values) that the dashboard shows, as `name`, a JSON file."""
        values = {key: list(column) for key, column in columns.items()}
        self._log({"kind": "table", "columns": values, "name": name})

    def log_model(self, folder: str | Path, name: str, params: Mapping[str, object]) -> None:
        """Log a model folder as a model of this run, once.

        Its address is `models:/ID`, the id being the run's tag `model.NAME`, or `runs:/RUN/NAME`;
        `autoselect.tracking.models.download_model` and `Selector.from_pretrained` load it back.
        """
        settings = {key: str(value) for key, value in params.items()}
        self._log({"kind": "model", "path": str(folder), "name": name, "params": settings})

    def mention_on(self, run_id: str, tag: str, title: str, text: str) -> None:
        """Name this run on another one; nothing happens if this store does not know that one.

        Args:
            run_id: `run_id` of the other run's tracker.
            tag: tag of the other run that gets this run's id, beside those it has.
            title: heading of the list in the other run's description.
            text: text of the link in that list.
        """
        if self._delivery is not None:
            on = self._delivery.journal.final(run_id)
            self._log({"kind": "mention", "on": on, "tag": tag, "title": title, "text": text})

    def link_to(self, run_id: str) -> str | None:
        """Return the dashboard's place of another run; None if this store does not know it now."""
        if self._delivery is None:
            return None
        try:
            return self._delivery.store.link(self._delivery.journal.final(run_id))
        except TrackingError:
            return None

    def rank_selectors(self, experiment: str) -> None:
        """Rewrite what the experiment's page says of its evaluations, see `leaderboard`."""
        self._log({"kind": "leaderboard", "experiment": experiment, "time_ms": _now_ms()})

    def finish(self, status: str = "FINISHED") -> None:
        """End the run with what happened: FINISHED, FAILED or KILLED. The first call counts.

        The wait for the server is bounded; what it does not take is left for the next start.
        """
        assert status in STATUSES, status
        with self._finishing:
            if self._delivery is None or self._finished:
                return
            self._finished = True
        atexit.unregister(self._close_unfinished)
        self._log({"kind": "status", "status": status, "time_ms": _now_ms()})
        self._delivery.close()
        if self._delivery.journal:
            logger.warning(
                "run %s is incomplete in %s; what is missing is kept in %s",
                self.run_id,
                self._delivery.store.address,
                self._delivery.journal.path,
            )

    @staticmethod
    def synchronise() -> int:
        """Deliver what ended runs could not, see `deliver_left_behind`."""
        return deliver_left_behind()

    def _close_unfinished(self) -> None:
        self.finish("FAILED")

    def _log(self, event: Event) -> None:
        """Append an event to the journal; once the run has begun, a full disk does not end it."""
        if self._delivery is None:
            return
        try:
            self._delivery.journal.append(event)
        except OSError as error:
            if not self._started or not Path(event.get("path", "/")).exists():
                raise
            if not self._told:
                folder = self._delivery.journal.folder
                logger.warning(
                    "run %s goes on, but %s cannot be written (%s), and what it logs meanwhile is "
                    "lost; free some space there, or make it writable",
                    self.run_id,
                    folder,
                    error,
                )
            self._told = True


def _resumable(store: Store, run_id: str, experiment: str) -> Journal | None:
    """Return the journal of a run to resume, or None if a new one has to begin."""
    journal = Journal(Path(JOURNAL_FOLDER), run_id, store.address)
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
    assert journal.run_id is not None
    try:
        known = store.knows(journal.run_id) or store.lost_with(journal.run_id, experiment)
    except TrackingError:
        known = True  # nothing speaks against the run
    if not known:
        logger.warning("run %s is not in %s; a new run begins", journal.run_id, store.address)
    return journal if known else None


def _begin(store: Store, event: Event) -> Delivery:
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


def _now_ms() -> int:
    return int(time.time() * 1000)
