"""How each kind of event is carried out in MLflow; doing it twice must do no harm."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from autoselect.config.extras import extra
from autoselect.tracking.errors import RefusedError, tracking_errors
from autoselect.tracking.journal import Event
from autoselect.tracking.leaderboard import (
    EVALUATION,
    NOTE_TAG,
    VIEW_TAG,
    note,
    saved_view,
    standings,
)
from autoselect.tracking.models_and_data import apply_data, apply_model, apply_model_metrics
from autoselect.tracking.processes import is_gone
from autoselect.tracking.store import Store, run_link

with extra("tracking"):
    import mlflow
    from mlflow.entities import Metric, Param, Run, RunTag

PARAMS_PER_CALL = 100
METRICS_PER_CALL = 1000
LONGEST_VALUE = 6000
MENTIONS = 20


@tracking_errors()
def log_params(store: Store, run_id: str, values: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Log parameters; return (before, now) of those that the run has with another value."""
    known = store.client.get_run(run_id).data.params
    short = {name: value[:LONGEST_VALUE] for name, value in values.items()}
    changed = {n: (known[n], v) for n, v in short.items() if known.get(n, v) != v}
    new = [Param(n, v) for n, v in short.items() if n not in known]
    for start in range(0, len(new), PARAMS_PER_CALL):
        store.client.log_batch(run_id, params=new[start : start + PARAMS_PER_CALL])
    tags = [RunTag(f"changed.{n}", f"{b} -> {v}") for n, (b, v) in changed.items()]
    if tags:
        store.client.log_batch(run_id, tags=tags)
    return changed


def carry_out(store: Store, run_id: str, event: Event) -> None:
    """Carry out one event that is neither a start nor parameters nor metrics.

    Raises:
        TrackingError: it was not done.
    """
    files = [event["path"]] if "path" in event else []
    files += [path for name in event.get("pictures", ()) for path in event["columns"][name]]
    for path in files:
        if not Path(path).exists():
            raise RefusedError(f"the file {path} is gone", "FILE_GONE")
    with tracking_errors():
        APPLY[event["kind"]](store, run_id, event)


def _apply_resume(store: Store, run_id: str, event: Event) -> None:
    """Set the run to RUNNING with this process's tags; end dead runs of the experiment."""
    store.client.update_run(run_id, status="RUNNING")
    _set_tags(store, run_id, event["tags"])
    experiment = store.experiment(event["experiment"])
    for run in store.client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if run.info.run_id != run_id and is_gone(run.data.tags):
            store.client.set_terminated(run.info.run_id, "KILLED")


def _apply_tags(store: Store, run_id: str, event: Event) -> None:
    _set_tags(store, run_id, event["values"])


def _set_tags(store: Store, run_id: str, values: Mapping[str, str]) -> None:
    tags = [RunTag(name, value[:LONGEST_VALUE]) for name, value in values.items()]
    for start in range(0, len(tags), PARAMS_PER_CALL):
        store.client.log_batch(run_id, tags=tags[start : start + PARAMS_PER_CALL])


@tracking_errors()
def log_metrics(store: Store, run_id: str, events: Sequence[Event]) -> None:
    """Log the metrics of many steps in few calls; a (metric, step) twice is left out.

    Raises:
        TrackingError: some or all of them did not arrive; it is safe to try again.
    """
    try:
        new = [metric for event in events for metric in _new_metrics(store, run_id, event)]
        for start in range(0, len(new), METRICS_PER_CALL):
            store.client.log_batch(run_id, metrics=new[start : start + METRICS_PER_CALL])
    except BaseException:
        # What arrived is unknown: ask the server for its steps before the next attempt.
        store.steps = {key: steps for key, steps in store.steps.items() if key[0] != run_id}
        raise


def _new_metrics(store: Store, run_id: str, event: Event) -> Iterator[Metric]:
    """Yield the metrics of an event that MLflow does not have, and count them as logged."""
    step = event["step"]
    for name, value in event["values"].items():
        if step is not None:
            if step in _logged(store, run_id, name):
                continue
            _logged(store, run_id, name).add(step)
        yield Metric(name, value, event["time_ms"], step or 0)


def _logged(store: Store, run_id: str, name: str) -> set[int]:
    """Return the steps at which MLflow has the metric, asking the server once."""
    if (run_id, name) not in store.steps:
        fresh = (run_id, "*") in store.steps
        history = [] if fresh else store.client.get_metric_history(run_id, name)
        store.steps[run_id, name] = {metric.step for metric in history}
    return store.steps[run_id, name]


def _apply_artifact(store: Store, run_id: str, event: Event) -> None:
    path, folder = Path(event["path"]), event["folder"]
    if path.is_dir():
        store.client.log_artifacts(run_id, str(path), f"{folder}/{path.name}".lstrip("/"))
    else:
        store.client.log_artifact(run_id, str(path), folder or None)


def _apply_table(store: Store, run_id: str, event: Event) -> None:
    """Log a table in place of an earlier one; MLflow itself would append the rows.

    A table with pictures stays as it was logged first.
    """
    columns, name = dict(event["columns"]), event["name"]
    for picture in event.get("pictures", ()):
        columns[picture] = [mlflow.Image(path) for path in columns[picture]]
    if any(file.path == name for file in store.client.list_artifacts(run_id)):
        if event.get("pictures"):
            return
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        store.client.log_dict(run_id, {"columns": list(columns), "data": rows}, name)
    else:
        store.client.log_table(run_id, columns, name)


def _apply_mention(store: Store, run_id: str, event: Event) -> None:
    """Name this run on another one, in a tag and in its description, once."""
    other = store.run(event["on"])
    if other is None:
        return
    tag, tags = event["tag"], other.data.tags
    ids = dict.fromkeys([*tags.get(tag, "").split(), run_id])
    link = run_link(store.client.get_run(run_id))
    described = with_mention(tags.get(NOTE_TAG, ""), event["title"], event["text"], link)
    _set_tags(store, other.info.run_id, {tag: " ".join(ids), NOTE_TAG: described})


def _apply_leaderboard(store: Store, run_id: str, event: Event) -> None:
    """Rewrite what the experiment's page says of its evaluations."""
    experiment = store.experiment(event["experiment"])
    found = standings(list(_evaluations(store, experiment)))
    if not found:
        return
    before = store.client.get_experiment(experiment).tags.get(NOTE_TAG, "")
    values = {
        NOTE_TAG: note(found, experiment, before),
        VIEW_TAG: saved_view(found, event["time_ms"]),
    }
    for name, value in values.items():
        store.client.set_experiment_tag(experiment, name, value)


def _evaluations(store: Store, experiment: str) -> Iterator[Run]:
    """Yield the evaluations that are running or finished."""
    token = None
    while token is None or token:
        page = store.client.search_runs(
            [experiment], f"tags.kind = '{EVALUATION}'", page_token=token
        )
        yield from (run for run in page if run.info.status in ("FINISHED", "RUNNING"))
        token = page.token or ""


def _apply_status(store: Store, run_id: str, event: Event) -> None:
    store.client.set_terminated(run_id, event["status"], event["time_ms"])


def with_mention(text: str, title: str, words: str, link: str) -> str:
    """Return a description with a line about another run under `title`, each run once.

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


APPLY: dict[str, Callable[[Store, str, Event], None]] = {
    "resume": _apply_resume,
    "tags": _apply_tags,
    "artifact": _apply_artifact,
    "table": _apply_table,
    "mention": _apply_mention,
    "leaderboard": _apply_leaderboard,
    "data": apply_data,
    "model": apply_model,
    "model_metrics": apply_model_metrics,
    "status": _apply_status,
}
