"""`Tracker`: what a run logs, delivered now or kept for later.

Runs go to `sqlite:///mlflow.db` in the current folder, or where MLFLOW_TRACKING_URI points. A run
can be resumed by its id: a parameter that changed is reported instead of crashing, a step that was
logged before is not logged again, and the final status is what happened. While the server does not
answer, or refuses, everything is kept in `mlruns/spool/` and delivered later
(`Tracker.synchronise`); only the start of a new run that the server refuses is an error.

Metrics cost the caller nothing but a list entry: a thread delivers them every few seconds. Whatever
else is logged, `flush` and the end of the run deliver what waits first.
"""

import atexit
import logging
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError
from autoselect.tracking.leaderboard import NOTE_TAG
from autoselect.tracking.processes import own_process
from autoselect.tracking.spool import OFFLINE, Event, Spool
from autoselect.tracking.store import (
    PARENT_TAG,
    RefusedError,
    ServerUnreachableError,
    Store,
    TrackingError,
)

SPOOL_FOLDER = "mlruns/spool"
RETRY_SECONDS = 30.0
DELIVERY_SECONDS = 5.0
SOURCE_TAG = "mlflow.source.name"
STATUSES = ("FINISHED", "FAILED", "KILLED")

logger = logging.getLogger(__name__)


class Tracker:
    """One run. Create it with `Tracker.start` or `Tracker.disabled`.

    Attributes:
        changed_parameters: of a resumed run: name -> (logged before, now).
    """

    def __init__(self, store: Store | None, spool: Spool | None, run_id: str | None) -> None:
        self._store, self._spool, self._run_id = store, spool, run_id
        self._retry_at = 0.0
        self._told: set[str] = set()
        self._finished = threading.Event()
        self._buffer: deque[Event] = deque()
        self._delivery = threading.RLock()
        self._thread: threading.Thread | None = None
        self.changed_parameters: dict[str, tuple[str, str]] = {}

    @classmethod
    def disabled(cls) -> "Tracker":
        """A tracker that does nothing, for other ranks and for runs without tracking."""
        return cls(None, None, None)

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
            experiment: created when it does not exist.
            run_name: shown in the list of runs.
            params: settings; those of a resumed run are compared.
            tags: facts to search by.
            run_id: the run to resume, from `run_id` of an earlier tracker; a new one begins where
                the store does not know it.
            parent_run_id: makes this a nested run.

        Raises:
            ConfigError: the store refuses a new run, such as for wrong credentials.
        """
        spool_folder = Path(SPOOL_FOLDER)
        name = run_id if run_id and run_id.startswith(OFFLINE) else None
        if name is not None:
            run_id = Spool(spool_folder, name).run_id
        store = Store.open()
        if run_id is not None and not _is_known(store, run_id):
            logger.warning("run %s is not in %s; a new run begins", run_id, store.address)
            run_id = name = None
        spool = Spool(spool_folder, run_id or name or Spool.offline_name(), store.address)
        if run_id is None and spool.address not in (None, store.address):
            _tell_of_other_store(spool)
            name, spool = None, Spool(spool_folder, Spool.offline_name(), store.address)
        everything = {k: str(v) for k, v in {**own_process(), **(tags or {})}.items()}
        everything.setdefault(SOURCE_TAG, Path(sys.argv[0]).name)
        if parent_run_id is not None:
            everything[PARENT_TAG] = parent_run_id
        tracker = cls(store, spool, run_id)
        begin = {"experiment": experiment, "run_name": run_name, "time_ms": _now_ms()}
        if run_id is None and name is None:
            tracker._begin({"kind": "start", **begin})
        tracker._send({"kind": "resume", "tags": everything, "experiment": experiment})
        tracker._send({"kind": "params", "values": {k: str(v) for k, v in (params or {}).items()}})
        atexit.register(tracker._close_unfinished)
        if not spool:
            cls.synchronise()
        return tracker

    @property
    def run_id(self) -> str | None:
        """Id for a later resume, None when disabled; provisional until the server has answered."""
        if self._spool is None:
            return None
        return self._run_id or self._spool.run_id or self._spool.name

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers, soon; a (metric, step) that the run has already is left out.

        Args:
            metrics: values by name, with the unit in the name.
            step: update count; None for values that have no course, which overwrite earlier ones.
        """
        if self._store is None:
            return
        values = {name: float(value) for name, value in metrics.items()}
        self._buffer.append(
            {"kind": "metrics", "values": values, "step": step, "time_ms": _now_ms()}
        )
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=self._deliver_regularly, name="tracker", daemon=True
            )
            self._thread.start()

    def flush(self) -> None:
        """Deliver all metrics logged so far, or keep them on the disk.

        Call it before a checkpoint: a killed run that goes on from there lacks no step then.
        """
        with self._delivery:
            together = []
            while self._buffer:
                together.append(self._buffer.popleft())
            if together:
                self._deliver(together)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Add or replace tags."""
        self._send({"kind": "tags", "values": {k: str(v) for k, v in tags.items()}})

    def describe(self, text: str) -> None:
        """Set the description that the dashboard shows with the run, in Markdown."""
        self.set_tags({NOTE_TAG: text})

    def log_figure(self, figure: Any, name: str) -> None:
        """Log a matplotlib figure as the image file `name` (its suffix is the format)."""
        if self._store is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            figure.savefig(path)
            self.log_artifact(path, str(Path(name).parent))

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """Log a file, or a folder with all its files, under `folder` of the run's artefacts."""
        folder = "" if folder == "." else folder
        self._send({"kind": "artifact", "path": str(path), "folder": folder})

    def log_artifacts(self, paths: Sequence[str | Path], folder: str = "") -> None:
        """Log several files or folders."""
        for path in paths:
            self.log_artifact(path, folder)

    def log_table(self, columns: Mapping[str, Sequence[object]], name: str) -> None:
        """Log a table (column name -> values) that the dashboard shows, as `name`, a JSON file."""
        values = {key: list(column) for key, column in columns.items()}
        self._send({"kind": "table", "columns": values, "name": name})

    def log_model(self, folder: str | Path, name: str, params: Mapping[str, object]) -> None:
        """Log a model folder as a model of this run, once.

        Its address is `models:/ID`, the id being the run's tag `model.NAME`, or `runs:/RUN/NAME`;
        `autoselect.tracking.models.download_model` and `Selector.from_pretrained` load it back.
        """
        settings = {key: str(value) for key, value in params.items()}
        self._send({"kind": "model", "path": str(folder), "name": name, "params": settings})

    def mention_on(self, run_id: str, tag: str, title: str, text: str) -> None:
        """Name this run on another one; nothing happens where this store does not know that one.

        Args:
            run_id: of the other run, as its `run_id` was.
            tag: that gets this run's id, beside those it has.
            title: of the list in the other run's description.
            text: of the link in that list.
        """
        on = self._spool.final(run_id) if self._spool is not None else run_id
        self._send({"kind": "mention", "on": on, "tag": tag, "title": title, "text": text})

    def link_to(self, run_id: str) -> str | None:
        """Where the dashboard shows another run; None when this store does not know it now."""
        if self._store is None or self._spool is None:
            return None
        try:
            return self._store.link(self._spool.final(run_id))
        except TrackingError:
            return None

    def rank_selectors(self, experiment: str) -> None:
        """Rewrite what the experiment's page says of its evaluations, see `leaderboard`."""
        self._send({"kind": "leaderboard", "experiment": experiment, "time_ms": _now_ms()})

    def finish(self, status: str = "FINISHED") -> None:
        """End the run with what happened: FINISHED, FAILED or KILLED. The first call counts."""
        assert status in STATUSES, status
        with self._delivery:
            if self._store is None or self._finished.is_set():
                return
            self._finished.set()
            self._retry_at = 0.0
            self._send({"kind": "status", "status": status, "time_ms": _now_ms()})
        if self._spool:
            logger.warning(
                "run %s is incomplete in %s; what is missing is kept in %s",
                self.run_id,
                self._store.address,
                self._spool.path,
            )

    @staticmethod
    def synchronise() -> int:
        """Deliver what ended runs could not; returns the number of spools that still wait.

        One that is for another store, or that this one refuses, stays and is named in a warning.
        """
        store = Store.open()
        waiting = [spool for spool in Spool.waiting(Path(SPOOL_FOLDER)) if spool.is_left]
        left = 0
        for position, spool in enumerate(waiting):
            if spool.address not in (None, store.address):
                _tell_of_other_store(spool)
                left += 1
                continue
            known = None if spool.name.startswith(OFFLINE) else spool.name
            try:
                Tracker(store, spool, known or spool.run_id)._deliver_spool(of_others=True)
            except ServerUnreachableError:
                return left + len(waiting) - position
            except RefusedError as error:
                logger.warning(
                    "%s cannot be delivered: %s refuses it (%s); mend that, such as by restoring "
                    "run %s there, or delete the file to give it up",
                    spool.path,
                    store.address,
                    error,
                    spool.final(spool.name),
                )
                left += 1
        return left

    def _close_unfinished(self) -> None:
        if not self._finished.is_set():
            self.finish("FAILED")

    def _deliver_regularly(self) -> None:
        while not self._finished.wait(DELIVERY_SECONDS):
            self.flush()

    def _send(self, event: Event) -> None:
        """Deliver an event now, after everything that waits, or keep it."""
        with self._delivery:
            self.flush()
            self._deliver([event])

    def _begin(self, event: Event) -> None:
        """Create the run, or keep its start while the server does not answer.

        Raises:
            ConfigError: the server refuses it.
        """
        assert self._store is not None
        try:
            self._apply_one(event)
        except ServerUnreachableError as error:
            self._postpone([event], error)
        except RefusedError as error:
            raise ConfigError(
                f"MLFLOW_TRACKING_URI={self._store.address} refuses a new run ({error}); correct "
                "it or its credentials (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN), or switch tracking off"
            ) from error

    def _deliver(self, together: list[Event]) -> None:
        """Carry out one of `_deliveries` now, after everything that waits, or keep it."""
        if self._store is None or self._spool is None:
            return
        if self._spool and time.monotonic() < self._retry_at:
            self._keep(together)
            return
        try:
            self._deliver_spool()
            self._apply(together)
        except TrackingError as error:
            self._postpone(together, error)

    def _postpone(self, together: list[Event], error: TrackingError) -> None:
        """Keep events for later; an error is told once, until all that waits was delivered."""
        assert self._store is not None and self._spool is not None
        self._retry_at = time.monotonic() + RETRY_SECONDS
        self._keep(together)
        if error.code not in self._told:
            logger.warning(
                "tracking server %s %s: %s; run %s goes on, kept in %s to be delivered later",
                self._store.address,
                error.verb,
                error,
                self.run_id,
                self._spool.path,
            )
        self._told.add(error.code)

    def _keep(self, events: list[Event]) -> None:
        assert self._spool is not None
        for event in events:
            if "path" in event:
                event = {**event, "path": str(self._spool.keep_file(Path(event["path"])))}
            self._spool.append(event)

    def _deliver_spool(self, of_others: bool = False) -> None:
        """Deliver the waiting events in order.

        Args:
            of_others: only if no living process, such as one that resumed the run, will do so.

        Raises:
            TrackingError: from the event on at which it happened they wait on.
        """
        assert self._spool is not None
        spool = self._spool
        if not spool:
            return
        with spool.alone():
            if of_others and not spool.is_left:
                return
            delivered = 0
            try:
                for together in _deliveries(spool.events()):
                    self._apply(together)
                    delivered += len(together)
            finally:
                spool.drop(delivered)
        self._told.clear()

    def _apply(self, together: list[Event]) -> None:
        """Carry out one of `_deliveries`."""
        assert self._store is not None
        if together[0]["kind"] == "metrics":
            self._store.log_metrics(self._known_run_id(), together)
        else:
            self._apply_one(*together)

    def _known_run_id(self) -> str:
        assert self._spool is not None
        run_id = self._run_id or self._spool.run_id
        assert run_id is not None, "the start of a run comes before everything else"
        return run_id

    def _apply_one(self, event: Event) -> None:
        assert self._store is not None and self._spool is not None
        if event["kind"] == "start":
            self._run_id = self._spool.run_id or self._store.create(event)
            if self._spool:
                self._spool.resolve(self._run_id)
            else:
                self._spool = Spool(self._spool.folder, self._run_id, self._store.address)
            return
        run_id = self._known_run_id()
        if event["kind"] == "params":
            self.changed_parameters = self._store.log_params(run_id, event["values"])
            for name, (before, now) in self.changed_parameters.items():
                logger.warning("resumed run %s: %s was %s, is now %s", run_id, name, before, now)
        else:
            self._store.apply(run_id, event)


def _deliveries(events: list[Event]) -> Iterator[list[Event]]:
    """Neighbouring metrics together, everything else one by one."""
    for kind, alike in groupby(events, key=lambda event: event["kind"]):
        if kind == "metrics":
            yield list(alike)
        else:
            yield from ([event] for event in alike)


def _tell_of_other_store(spool: Spool) -> None:
    logger.warning(
        "%s waits for the tracking server %s; start a run here with MLFLOW_TRACKING_URI set to it, "
        "or delete the file to give it up",
        spool.path,
        spool.address,
    )


def _is_known(store: Store, run_id: str) -> bool:
    """True as well where the server does not say: nothing speaks against the run then."""
    try:
        return store.knows(run_id)
    except TrackingError:
        return True


def _now_ms() -> int:
    return int(time.time() * 1000)
