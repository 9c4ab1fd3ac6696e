"""The connection to an MLflow server or database, and what is asked of it."""

import fcntl
import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from autoselect.config.destinations import existing
from autoselect.config.extras import extra
from autoselect.tracking.errors import DELETED, RefusedError, tracking_errors
from autoselect.tracking.journal import JOURNAL_FOLDER, Event
from autoselect.tracking.leaderboard import VIEW, VIEW_TAG

with extra("tracking"):
    import mlflow
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run
    from mlflow.exceptions import MlflowException
    from mlflow.store.db import utils as mlflow_databases
    from mlflow.store.db.db_types import DATABASE_ENGINES
    from sqlalchemy import URL, make_url
    from sqlalchemy.exc import ArgumentError

DATABASE, ARTIFACTS = "mlflow.db", "mlruns"
KIND_TAG = "mlflow.experimentKind"
UNKNOWN_CODES = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
CONNECTION_ATTEMPTS = 3
"""MLflow's attempts to connect to a database; its own ten take two minutes."""
PROBE_BYTES = 2**20
LOCK_SECONDS = 2.0


class Store:
    """A connection to MLflow, opened at the first use.

    Args:
        uri: as MLFLOW_TRACKING_URI.

    Attributes:
        steps: steps that a metric has in MLflow, by (run id, metric); (run id, "*") marks a run
            that this object created, all of whose metrics are in the dictionary.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.steps: dict[tuple[str, str], set[int]] = {}
        self._client: MlflowClient | None = None

    @classmethod
    def open(cls) -> "Store":
        """Return the store that MLFLOW_TRACKING_URI names, else SQLite in the current folder.

        A server that is down is noticed in seconds instead of MLflow's minutes of retries, unless
        the environment says otherwise.
        """
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        mlflow_databases.MAX_RETRY_COUNT = CONNECTION_ATTEMPTS
        # It logs tracebacks of errors that it also raises.
        logging.getLogger(mlflow_databases.__name__).setLevel(logging.CRITICAL)
        return cls(os.environ.get("MLFLOW_TRACKING_URI") or default_uri())

    @property
    def address(self) -> str:
        """Return the URI without user, password and query, to be shown and written down."""
        scheme = self.uri.partition(":")[0]
        try:
            if scheme.partition("+")[0] in DATABASE_ENGINES:
                url = make_url(self.uri)
                host = url.host and url.host.rpartition("@")[2]
                return str(URL.create(scheme, None, None, host, url.port, url.database))
            server = urlsplit(self.uri)
            host = server.netloc.rpartition("@")[2]
            return urlunsplit((server.scheme, host, server.path, "", "")).rstrip("/")
        except (ArgumentError, ValueError):  # MLflow says what is wrong with it
            return f"{scheme}:..."

    @property
    def _is_unmade(self) -> bool:
        """True for an SQLite file that does not exist; a question would make it."""
        database = _database(self.uri)
        return database is not None and not database.exists()

    @property
    def client(self) -> MlflowClient:
        """MLflow's client; the tables of an SQLite file are made by one process at a time."""
        if self._client is None:
            with _alone(self.uri):
                mlflow.set_tracking_uri(self.uri)
                client = MlflowClient(self.uri)
                if self.uri.startswith("sqlite:"):
                    client.search_experiments(max_results=1)
                self._client = client
        return self._client

    @tracking_errors()
    def create(self, event: Event) -> str:
        """Create the run that a `start` event describes and return its id."""
        run = self.client.create_run(
            self.experiment(event["experiment"]), event["time_ms"], run_name=event["run_name"]
        )
        self.steps[run.info.run_id, "*"] = set()
        return run.info.run_id

    @tracking_errors()
    def examine(self, experiment: str) -> None:
        """Check that a new run of an experiment could be logged, and write nothing.

        Raises:
            TrackingError: it could not.
        """
        _write_probe(Path(JOURNAL_FOLDER))
        database = _database(self.uri)
        if database is not None:
            _write_probe(database.parent / ARTIFACTS)
            if not database.exists():
                return
            _lock_once(database)
        found = self.client.get_experiment_by_name(experiment)
        if found is not None:
            self._active(found)

    @tracking_errors()
    def knows(self, run_id: str) -> bool:
        """Return True if this store has the run and nobody deleted it."""
        run = self.run(run_id)
        return run is not None and run.info.lifecycle_stage == "active"

    @tracking_errors()
    def is_deleted(self, run_id: str) -> bool:
        """Return True if this store has the run, but somebody deleted it."""
        run = self.run(run_id)
        return run is not None and run.info.lifecycle_stage != "active"

    @tracking_errors()
    def lost_with(self, run_id: str, experiment: str) -> bool:
        """Return True if somebody deleted the run together with its experiment."""
        if not self.is_deleted(run_id):
            return False
        found = self.client.get_experiment_by_name(experiment)
        return found is not None and found.lifecycle_stage != "active"

    @tracking_errors()
    def link(self, run_id: str) -> str | None:
        """Return the place of a run relative to the dashboard's address, None if unknown."""
        run = self.run(run_id)
        return None if run is None else run_link(run)

    @tracking_errors()
    def model_folder(self, address: str) -> Path | None:
        """Download a logged model and return its folder, None for an unknown one.

        Args:
            address: `models:/...`, or `runs:/RUN/NAME`.
        """
        if address.startswith("runs:/"):
            run_id, _, name = address.removeprefix("runs:/").partition("/")
            run = self.run(run_id)
            model = None if run is None else run.data.tags.get(f"model.{name}")
            if model is None:
                return None
            address = f"models:/{model}"
        if self._is_unmade:
            return None
        try:
            folder = mlflow.artifacts.download_artifacts(
                artifact_uri=address, tracking_uri=self.client.tracking_uri
            )
        except MlflowException as error:
            if error.error_code in UNKNOWN_CODES:
                return None
            raise
        return Path(folder)

    def run(self, run_id: str) -> Any:
        """Return MLflow's run, None for an unknown one."""
        if self._is_unmade:
            return None
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in UNKNOWN_CODES:
                return None
            raise

    @tracking_errors()
    def history(self, run_id: str, name: str) -> list[tuple[int, float]]:
        """Return (step, value) of a metric by step; empty if this store does not know the run."""
        if self._is_unmade:
            return []
        try:
            found = self.client.get_metric_history(run_id, name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return []
            raise
        return sorted((metric.step, metric.value) for metric in found)

    @tracking_errors()
    def leaderboards(self) -> dict[str, str]:
        """Return the list of selectors on the dashboard by name of the experiment."""
        return {
            found.name: f"#/experiments/{found.experiment_id}/runs?viewStateShareKey={VIEW}"
            for found in self.client.search_experiments()
            if VIEW_TAG in found.tags
        }

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, which is created if it does not exist.

        Raises:
            RefusedError: somebody deleted it.
        """
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return self._active(found)
        try:
            return self.client.create_experiment(
                name, _artifact_location(self.uri), {KIND_TAG: "custom_model_development"}
            )
        except MlflowException as error:
            # Another process was faster.
            found = self.client.get_experiment_by_name(name)
            if found is None:
                raise error
            return self._active(found)

    def _active(self, experiment: Experiment) -> str:
        """Return the id of an experiment that nobody deleted."""
        if experiment.lifecycle_stage == "active":
            return experiment.experiment_id
        raise RefusedError(
            f"somebody deleted the experiment {experiment.name!r}",
            DELETED,
            "restore it with `mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}` and MLFLOW_TRACKING_URI={self.address}, or choose "
            "another `experiment`",
        )


def run_link(run: Run) -> str:
    """Return the place of a run relative to the dashboard's address."""
    return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def default_uri() -> str:
    """Return SQLite in the current folder, absolute because MLflow compares stores by address."""
    path = str(Path.cwd() / DATABASE)
    if set("%?") & set(path):  # which have a meaning in a URL
        return URL.create("sqlite", database=path).render_as_string(hide_password=False)
    return f"sqlite:///{path}"


def _database(uri: str) -> Path | None:
    """Return the file of an SQLite store, None for any other store."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(make_url(uri).database or DATABASE)


def _artifact_location(uri: str) -> str | None:
    """Return a folder beside an SQLite file, or None to let the server decide."""
    path = _database(uri)
    return None if path is None else str(path.resolve().parent / ARTIFACTS)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Keep other processes out while an SQLite file gets its tables."""
    path = _database(uri)
    if path is None:
        yield
        return
    folder = path.parent / ARTIFACTS
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_probe(folder: Path) -> None:
    """Write and remove a file in a folder or its nearest parent, to notice full disks too.

    Raises:
        OSError: that is not possible.
    """
    with tempfile.TemporaryFile(dir=existing(folder)) as probe:
        probe.write(bytes(PROBE_BYTES))
        probe.flush()


def _lock_once(database: Path) -> None:
    """Lock an SQLite file and change it as a writer does, and take that back.

    Raises:
        OperationalError: another process holds it, or it cannot be written.
    """
    address = f"file:{quote(str(database.absolute()))}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=LOCK_SECONDS)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE autoselect_probe (probe)")
        connection.rollback()
