"""How MLflow notes the data that a run read, and the models that it made with their metrics."""

from dataclasses import dataclass

from autoselect.config.extras import extra
from autoselect.tracking.journal import Event
from autoselect.tracking.store import Store

with extra("tracking"):
    from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT


@dataclass(frozen=True)
class Data:
    """A data set that a run reads.

    Attributes:
        name: shown in the dashboard.
        digest: digest of its shards.
        source: where it is, as the user named it.
        profile: facts about it, such as the number of images.
    """

    name: str
    digest: str
    source: str
    profile: str


DIGEST_LETTERS = 36
"""Longest digest of a data set that MLflow takes."""


def apply_data(store: Store, run_id: str, event: Event) -> None:
    """Note a data set as an input of the run."""
    name, digest = event["name"], event["digest"][:DIGEST_LETTERS]
    data = Dataset(name, digest, "local", event["source"], profile=event["profile"])
    tags = [InputTag(MLFLOW_DATASET_CONTEXT, event["context"])]
    store.client.log_inputs(run_id, [DatasetInput(data, tags)])


def apply_model(store: Store, run_id: str, event: Event) -> None:
    """Log a model folder; one of this name that the run has already is kept."""
    run = store.client.get_run(run_id)
    if f"model.{event['name']}" in run.data.tags:
        return
    model = store.client.create_logged_model(
        run.info.experiment_id,
        name=event["name"],
        source_run_id=run_id,
        params=event["params"],
        model_type="token-selector",
    )
    store.client.log_model_artifacts(model.model_id, event["path"])
    store.client.finalize_logged_model(model.model_id, "READY")
    store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    store.client.set_tag(run_id, f"model.{event['name']}", model.model_id)


def apply_model_metrics(store: Store, run_id: str, event: Event) -> None:
    """Log numbers of a model that the run has logged, measured on a data set of the run."""
    model = store.client.get_run(run_id).data.tags.get(f"model.{event['name']}")
    if model is None:
        return
    known = {metric.key for metric in store.client.get_logged_model(model).metrics or []}
    found = [
        Metric(
            name,
            value,
            event["time_ms"],
            0,
            model_id=model,
            dataset_name=event["data"],
            dataset_digest=event["digest"][:DIGEST_LETTERS],
            run_id=run_id,
        )
        for name, value in event["values"].items()
        if name not in known
    ]
    if found:
        store.client.log_batch(run_id, metrics=found)
