"""The connection to an MLflow server or database, and what is asked of it."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from autoselect.tracking.errors import tracking_errors
from autoselect.tracking.journal import Event
from autoselect.tracking.leaderboard import VIEW, VIEW_TAG

DATABASE, ARTIFACTS = "mlflow.db", "mlruns"
KIND_TAG = "mlflow.experimentKind"
UNKNOWN_CODES = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


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
        return cls(os.environ.get("MLFLOW_TRACKING_URI") or default_uri())

    @property
    def address(self) -> str:
        """The URI without its user and password, to be shown and written down."""
        return re.sub(r"//[^/@]*@", "//", self.uri).rstrip("/")

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

    def create(self, event: Event) -> str:
        """Create the run that a `start` event describes and return its id."""
        with tracking_errors():
            run = self.client.create_run(
                self.experiment(event["experiment"]), event["time_ms"], run_name=event["run_name"]
            )
            self.steps[run.info.run_id, "*"] = set()
            return run.info.run_id

    def knows(self, run_id: str) -> bool:
        """Return True if this store has the run and nobody deleted it."""
        with tracking_errors():
            run = self.run(run_id)
            return run is not None and run.info.lifecycle_stage == "active"

    def link(self, run_id: str) -> str | None:
        """Return the place of a run relative to the dashboard's address, None if unknown."""
        with tracking_errors():
            run = self.run(run_id)
            return None if run is None else run_link(run)

    def model_folder(self, address: str) -> Path | None:
        """Download a logged model and return its folder, None for an unknown one.

        Args:
            address: `models:/...`, or `runs:/RUN/NAME`.
        """
        with tracking_errors():
            if address.startswith("runs:/"):
                run_id, _, name = address.removeprefix("runs:/").partition("/")
                run = self.run(run_id)
                model = None if run is None else run.data.tags.get(f"model.{name}")
                if model is None:
                    return None
                address = f"models:/{model}"
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
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in UNKNOWN_CODES:
                return None
            raise

    def history(self, run_id: str, name: str) -> list[tuple[int, float]]:
        """Return (step, value) of a metric by step; empty if this store does not know the run."""
        with tracking_errors():
            try:
                found = self.client.get_metric_history(run_id, name)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return []
                raise
        return sorted((metric.step, metric.value) for metric in found)

    def leaderboards(self) -> dict[str, str]:
        """Return the list of selectors on the dashboard by name of the experiment."""
        with tracking_errors():
            return {
                found.name: f"#/experiments/{found.experiment_id}/runs?viewStateShareKey={VIEW}"
                for found in self.client.search_experiments()
                if VIEW_TAG in found.tags
            }

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, which is created if it does not exist."""
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        try:
            return self.client.create_experiment(
                name, _artifact_location(self.uri), {KIND_TAG: "custom_model_development"}
            )
        except MlflowException as error:
            # Another process was faster.
            found = self.client.get_experiment_by_name(name)
            if found is None:
                raise error
            return found.experiment_id


def run_link(run: Run) -> str:
    """Return the place of a run relative to the dashboard's address."""
    return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def default_uri() -> str:
    """Return SQLite in the current folder, absolute because MLflow compares stores by address."""
    return f"sqlite:///{Path.cwd() / DATABASE}"


def _artifact_location(uri: str) -> str | None:
    """Return a folder beside an SQLite file, or None to let the server decide."""
    if not uri.startswith("sqlite:///"):
        return None
    return str(Path(uri.removeprefix("sqlite:///")).resolve().parent / ARTIFACTS)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Keep other processes out while an SQLite file gets its tables."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    path = Path(uri.removeprefix("sqlite:///"))
    folder = path.parent / ARTIFACTS
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
