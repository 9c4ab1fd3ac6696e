"""What the tracker asks of an MLflow server or database."""

import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from autoselect.tracking.leaderboard import (
    EVALUATION,
    NOTE_TAG,
    VIEW,
    VIEW_TAG,
    note,
    saved_view,
    standings,
)
from autoselect.tracking.processes import is_gone
from autoselect.tracking.spool import Event

DATABASE, ARTIFACTS = "mlflow.db", "mlruns"
PARENT_TAG, KIND_TAG = "mlflow.parentRunId", "mlflow.experimentKind"
PARAMS_PER_CALL = 100
METRICS_PER_CALL = 1000
LONGEST_VALUE = 6000
MENTIONS = 20
UNKNOWN_CODES = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
UNREACHABLE_CODES = {
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "SERVICE_UNDER_MAINTENANCE",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
}


class TrackingError(Exception):
    """MLflow did not do what it was asked to; the message is its own.

    Args:
        message: what MLflow says.
        code: its word for the kind of error.
    """

    verb: str

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code or type(self).__name__


class ServerUnreachableError(TrackingError):
    """The tracking server does not answer now; trying again later may help."""

    verb = "does not answer"


class RefusedError(TrackingError):
    """The tracking server answers, but refuses: credentials, a run it does not have, an address."""

    verb = "refuses"


@contextmanager
def _tracking_errors() -> Iterator[None]:
    """Turns errors of MLflow, and of the HTTP requests that carry artefacts, into `TrackingError`.

    Raises:
        ServerUnreachableError, RefusedError: as they say.
    """
    try:
        yield
    except MlflowException as error:
        unreachable = error.error_code in UNREACHABLE_CODES
        kind = ServerUnreachableError if unreachable else RefusedError
        raise kind(str(error).strip().splitlines()[0], error.error_code) from error
    except requests.HTTPError as error:
        down = error.response is None or error.response.status_code >= 500
        raise (ServerUnreachableError if down else RefusedError)(str(error)) from error
    except (ConnectionError, requests.RequestException) as error:
        raise ServerUnreachableError(str(error)) from error


class Store:
    """A connection to MLflow, opened at the first use.

    Args:
        uri: as MLFLOW_TRACKING_URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client: MlflowClient | None = None
        self._steps: dict[tuple[str, str], set[int]] = {}

    @classmethod
    def open(cls) -> "Store":
        """The store that MLFLOW_TRACKING_URI names, else SQLite in the current folder.

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
                self._client = MlflowClient(self.uri)
                if self.uri.startswith("sqlite:"):
                    self._client.search_experiments(max_results=1)
        return self._client

    def create(self, event: Event) -> str:
        """Create the run that a `start` event describes; returns its id."""
        with _tracking_errors():
            run = self.client.create_run(
                self._experiment(event["experiment"]), event["time_ms"], run_name=event["run_name"]
            )
            self._steps[run.info.run_id, "*"] = set()
            return run.info.run_id

    def knows(self, run_id: str) -> bool:
        """Whether this store has such a run, and nobody deleted it."""
        with _tracking_errors():
            run = self._run(run_id)
            return run is not None and run.info.lifecycle_stage == "active"

    def link(self, run_id: str) -> str | None:
        """Where the dashboard shows a run, relative to its address; None for an unknown one."""
        with _tracking_errors():
            run = self._run(run_id)
            return None if run is None else _link(run)

    def model_folder(self, address: str) -> Path | None:
        """Where the files of a logged model lie after a download; None for an unknown one.

        Args:
            address: `models:/...`, or `runs:/RUN/NAME`.
        """
        with _tracking_errors():
            if address.startswith("runs:/"):
                run_id, _, name = address.removeprefix("runs:/").partition("/")
                run = self._run(run_id)
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

    def _run(self, run_id: str) -> Any:
        """MLflow's run, None for an unknown one."""
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in UNKNOWN_CODES:
                return None
            raise

    def log_params(self, run_id: str, values: Mapping[str, str]) -> dict[str, tuple[str, str]]:
        """Log parameters; those that the run has with another value are returned (before, now)."""
        with _tracking_errors():
            known = self.client.get_run(run_id).data.params
            short = {name: value[:LONGEST_VALUE] for name, value in values.items()}
            changed = {n: (known[n], v) for n, v in short.items() if known.get(n, v) != v}
            new = [Param(n, v) for n, v in short.items() if n not in known]
            for start in range(0, len(new), PARAMS_PER_CALL):
                self.client.log_batch(run_id, params=new[start : start + PARAMS_PER_CALL])
            tags = [RunTag(f"changed.{n}", f"{b} -> {v}") for n, (b, v) in changed.items()]
            if tags:
                self.client.log_batch(run_id, tags=tags)
            return changed

    def history(self, run_id: str, name: str) -> list[tuple[int, float]]:
        """(step, value) of a metric by step; empty for a run that this store does not know."""
        with _tracking_errors():
            try:
                found = self.client.get_metric_history(run_id, name)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return []
                raise
        return sorted((metric.step, metric.value) for metric in found)

    def apply(self, run_id: str, event: Event) -> None:
        """Carry out one event of `Tracker`.

        Raises:
            TrackingError: it was not done.
        """
        with _tracking_errors():
            getattr(self, f"_apply_{event['kind']}")(run_id, event)

    def _apply_resume(self, run_id: str, event: Event) -> None:
        """A run at work, with this process's tags; dead runs of the experiment end."""
        self.client.update_run(run_id, status="RUNNING")
        self._apply_tags(run_id, {"values": event["tags"]})
        experiment = self._experiment(event["experiment"])
        for run in self.client.search_runs([experiment], "attributes.status = 'RUNNING'"):
            if run.info.run_id != run_id and is_gone(run.data.tags):
                self.client.set_terminated(run.info.run_id, "KILLED")

    def _apply_tags(self, run_id: str, event: Event) -> None:
        tags = [RunTag(name, value[:LONGEST_VALUE]) for name, value in event["values"].items()]
        for start in range(0, len(tags), PARAMS_PER_CALL):
            self.client.log_batch(run_id, tags=tags[start : start + PARAMS_PER_CALL])

    def log_metrics(self, run_id: str, events: Sequence[Event]) -> None:
        """Log the metrics of many steps in few calls; a (metric, step) twice is left out.

        Raises:
            TrackingError: some or all of them did not arrive; it is safe to try again.
        """
        with _tracking_errors():
            try:
                new = [metric for event in events for metric in self._new_metrics(run_id, event)]
                for start in range(0, len(new), METRICS_PER_CALL):
                    self.client.log_batch(run_id, metrics=new[start : start + METRICS_PER_CALL])
            except BaseException:
                # What arrived is unknown: ask the server for its steps before the next attempt.
                self._steps = {key: steps for key, steps in self._steps.items() if key[0] != run_id}
                raise

    def _new_metrics(self, run_id: str, event: Event) -> Iterator[Metric]:
        """Metrics of an event that the run does not have; from now on it counts them as logged."""
        step = event["step"]
        for name, value in event["values"].items():
            if step is not None:
                if step in self._logged(run_id, name):
                    continue
                self._logged(run_id, name).add(step)
            yield Metric(name, value, event["time_ms"], step or 0)

    def _logged(self, run_id: str, name: str) -> set[int]:
        """Steps at which the run has the metric; asked of the server once, at the first use."""
        if (run_id, name) not in self._steps:
            fresh = (run_id, "*") in self._steps
            history = [] if fresh else self.client.get_metric_history(run_id, name)
            self._steps[run_id, name] = {metric.step for metric in history}
        return self._steps[run_id, name]

    def _apply_artifact(self, run_id: str, event: Event) -> None:
        path, folder = Path(event["path"]), event["folder"]
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), f"{folder}/{path.name}".lstrip("/"))
        else:
            self.client.log_artifact(run_id, str(path), folder or None)

    def _apply_table(self, run_id: str, event: Event) -> None:
        """As MLflow logs a table, in place of an earlier one: MLflow itself would add the rows."""
        columns, name = event["columns"], event["name"]
        if any(file.path == name for file in self.client.list_artifacts(run_id)):
            rows = [list(row) for row in zip(*columns.values(), strict=True)]
            self.client.log_dict(run_id, {"columns": list(columns), "data": rows}, name)
        else:
            self.client.log_table(run_id, columns, name)

    def _apply_mention(self, run_id: str, event: Event) -> None:
        """Name this run on another one, in a tag and in its description, once."""
        other = self._run(event["on"])
        if other is None:
            return
        tag, link = event["tag"], _link(self.client.get_run(run_id))
        ids = other.data.tags.get(tag, "").split()
        self._apply_tags(
            other.info.run_id,
            {
                "values": {
                    tag: " ".join(dict.fromkeys([*ids, run_id])),
                    NOTE_TAG: with_mention(
                        other.data.tags.get(NOTE_TAG, ""), event["title"], event["text"], link
                    ),
                }
            },
        )

    def _apply_leaderboard(self, run_id: str, event: Event) -> None:
        """Rewrite what the experiment's page says of its evaluations."""
        experiment = self._experiment(event["experiment"])
        found = standings(list(self._evaluations(experiment)))
        if not found:
            return
        before = self.client.get_experiment(experiment).tags.get(NOTE_TAG, "")
        values = {
            NOTE_TAG: note(found, experiment, before),
            VIEW_TAG: saved_view(found, event["time_ms"]),
        }
        for name, value in values.items():
            self.client.set_experiment_tag(experiment, name, value)

    def leaderboards(self) -> dict[str, str]:
        """Name of each experiment with evaluations, and its list of selectors on the dashboard."""
        with _tracking_errors():
            return {
                found.name: f"#/experiments/{found.experiment_id}/runs?viewStateShareKey={VIEW}"
                for found in self.client.search_experiments()
                if VIEW_TAG in found.tags
            }

    def _evaluations(self, experiment: str) -> Iterator[Run]:
        """Runs of evaluations that went well so far."""
        token = None
        while token is None or token:
            page = self.client.search_runs(
                [experiment], f"tags.kind = '{EVALUATION}'", page_token=token
            )
            yield from (run for run in page if run.info.status in ("FINISHED", "RUNNING"))
            token = page.token or ""

    def _apply_model(self, run_id: str, event: Event) -> None:
        """Log a model folder; one of this name that the run has already is kept."""
        run = self.client.get_run(run_id)
        if f"model.{event['name']}" in run.data.tags:
            return
        model = self.client.create_logged_model(
            run.info.experiment_id,
            name=event["name"],
            source_run_id=run_id,
            params=event["params"],
            model_type="token-selector",
        )
        self.client.log_model_artifacts(model.model_id, event["path"])
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        self.client.set_tag(run_id, f"model.{event['name']}", model.model_id)

    def _apply_status(self, run_id: str, event: Event) -> None:
        self.client.set_terminated(run_id, event["status"], event["time_ms"])

    def _experiment(self, name: str) -> str:
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


def _link(run: Run) -> str:
    return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def with_mention(text: str, title: str, words: str, link: str) -> str:
    """A description with a line about another run under `title`, in place of an earlier one.

    Args:
        text: the description so far.
        title: heading of the list, which ends the description.
        words: what the line says.
        link: where it leads.
    """
    heading = f"#### {title}"
    before, _, listed = text.partition(heading)
    lines = [line for line in listed.splitlines() if line and f"({link})" not in line]
    lines = [f"* [{words}]({link})", *lines][:MENTIONS]
    return "\n".join([before.rstrip(), "", heading, "", *lines]).lstrip()


def default_uri() -> str:
    """SQLite in the current folder, by its whole path: MLflow remembers stores by their address."""
    return f"sqlite:///{Path.cwd() / DATABASE}"


def _artifact_location(uri: str) -> str | None:
    """Beside an SQLite file, whatever the current folder is; the server decides otherwise."""
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
