"""`Tracker`: what a run logs.

Runs go to `sqlite:///mlflow.db` in the current folder, or where MLFLOW_TRACKING_URI points. A run
can be resumed by its id: a parameter that changed is reported instead of crashing, a step that was
logged before is not logged again, and the final status is what happened.

Every event is appended to the run's journal in `mlruns/spool/`, which is all that it costs the
caller; `delivery` carries it to the server, now or when the server answers again.
"""

import atexit
import logging
import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.tracking.beginning import begin, resumable
from autoselect.tracking.delivery import Delivery, deliver_left_behind
from autoselect.tracking.errors import TrackingError
from autoselect.tracking.journal import JOURNAL_FOLDER, Event
from autoselect.tracking.leaderboard import NOTE_TAG
from autoselect.tracking.machine import SECONDS, MachineMetrics, node_name
from autoselect.tracking.models_and_data import Data
from autoselect.tracking.processes import own_process
from autoselect.tracking.store import Store

PARENT_TAG, SOURCE_TAG = "mlflow.parentRunId", "mlflow.source.name"
NODE_TAG = "node"
STATUSES = ("FINISHED", "FAILED", "KILLED")
REFUSED, LONGEST_NAME = re.compile(r"[^\w./ :-]"), 250
"""Characters that MLflow refuses in the name of a metric, and the most that it takes."""

logger = logging.getLogger(__name__)


class Tracker:
    """One run; create it with `Tracker.start` or `Tracker.disabled`."""

    def __init__(self, delivery: Delivery | None) -> None:
        self._delivery = delivery
        self._machine: MachineMetrics | None = None
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
        not deliver is delivered, unless the start of the parent has just tried.

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
        shown.setdefault(NODE_TAG, node_name())
        if parent_run_id is not None:
            shown[PARENT_TAG] = parent_run_id
        store = Store.open()
        journal = resumable(store, run_id, experiment) if run_id is not None else None
        try:
            if journal is None:
                delivery = begin(
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
        if not delivery.journal and parent_run_id is None:
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
            metrics: values by name, with the unit in the name, see `accepted_name`.
            step: update count; None for values without a course, which overwrite earlier ones.
        """
        values = {accepted_name(name): float(value) for name, value in metrics.items()}
        self._log({"kind": "metrics", "values": values, "step": step, "time_ms": _now_ms()})

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything logged so far is delivered, or the server does not take it.

        Args:
            timeout: longest wait in seconds; None for no limit.
        """
        if self._delivery is not None:
            self._delivery.flush(timeout)

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

    def log_artifacts(self, paths: Sequence[str | Path], folder: str) -> None:
        """Log several files or folders, see `log_artifact`."""
        for path in paths:
            self.log_artifact(path, folder)

    def log_table(
        self,
        columns: Mapping[str, Sequence[object]],
        name: str,
        pictures: Sequence[str] = (),
    ) -> None:
        """Log a table (column name -> values) that the dashboard shows, as `name`, a JSON file.

        The columns `pictures` hold paths of picture files, which the dashboard shows.
        """
        values = {key: list(column) for key, column in columns.items()}
        event: Event = {"kind": "table", "columns": values, "name": name}
        self._log(event | ({"pictures": list(pictures)} if pictures else {}))

    def log_data(self, data: Data, context: str) -> None:
        """Note the data that the run reads; `context` is `training` or `eval`."""
        self._log({"kind": "data", "context": context, **asdict(data)})

    def log_model(self, folder: str | Path, name: str, params: Mapping[str, object]) -> None:
        """Log a model folder as a model of this run, once.

        Its address is `models:/ID`, the id being the run's tag `model.NAME`, or `runs:/RUN/NAME`;
        `autoselect.tracking.models.download_model` and `Selector.from_pretrained` load it back.
        """
        settings = {key: str(value) for key, value in params.items()}
        self._log({"kind": "model", "path": str(folder), "name": name, "params": settings})

    def log_model_metrics(self, name: str, metrics: Mapping[str, float], data: Data) -> None:
        """Log numbers of the model that `log_model` logged as `name`, measured on `data`."""
        values = {accepted_name(key): float(value) for key, value in metrics.items()}
        known = {"data": data.name, "digest": data.digest, "time_ms": _now_ms()}
        self._log({"kind": "model_metrics", "name": name, "values": values, **known})

    def watch_machine(self) -> None:
        """Log CPU, memory and GPUs of this machine every ten seconds until the run ends."""
        if self._delivery is None or self._machine is not None:
            return
        first = int(time.time() / SECONDS)  # numbers go on after a resume
        self._machine = MachineMetrics(self.log_metrics, first)
        self._machine.start()

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
        if self._machine is not None:
            self._machine.end()
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


@lru_cache(maxsize=4096)
def accepted_name(name: str) -> str:
    """Return the name of a metric as MLflow takes it, which refuses others with all beside them.

    Names of tasks and selectors may hold anything: other characters become `_`, and a path has no
    empty part, `.` or `..`.
    """
    parts = [part for part in REFUSED.sub("_", name).split("/") if part]
    shown = "/".join("_" * len(part) if part in (".", "..") else part for part in parts)
    return shown[:LONGEST_NAME].rstrip("/")


def _now_ms() -> int:
    return int(time.time() * 1000)
