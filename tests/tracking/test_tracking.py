"""The tracker against a temporary SQLite store, a dying process and a server that is down."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import requests
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, get_error_code

from autoselect.config import ConfigError
from autoselect.pruning.card import is_logged_model
from autoselect.tracking import Tracker
from autoselect.tracking.leaderboard import OWN_TEXT, Standing, metric_at, note
from autoselect.tracking.models import download_model
from autoselect.tracking.spool import Spool
from autoselect.tracking.store import ServerUnreachableError, Store, default_uri


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """An SQLite store with its tables, made once; they take seconds."""
    folder = tmp_path_factory.mktemp("store")
    Store(f"sqlite:///{folder}/mlflow.db").client.search_experiments()
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch, template):
    """An empty project folder as current folder, with the default store."""
    (tmp_path / "mlflow.db").write_bytes(template)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def client():
    return MlflowClient(default_uri())


def start(**more):
    return Tracker.start(
        "project", "a run", {"steps": 10, "gate.kind": "vp"}, {"kind": "t"}, **more
    )


def history(run_id, name):
    return [(m.step, m.value) for m in client().get_metric_history(run_id, name)]


def test_a_run_holds_what_was_logged(project):
    tracker = start()
    tracker.log_metrics({"train/loss": 2.0}, 1)
    tracker.log_metrics({"train/loss": 1.0}, 2)
    tracker.log_metrics({"retention": 0.9})
    tracker.log_table({"method": ["a", "b"], "retention": [0.1, 0.2]}, "rows.json")
    (project / "note.txt").write_text("hello")
    tracker.log_artifacts([project / "note.txt"], "notes")
    figure = Figure()
    tracker.log_figure(figure, "figures/empty.png")
    tracker.finish()
    run = client().get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a run"
    assert run.data.params == {"steps": "10", "gate.kind": "vp"}
    assert run.data.tags["kind"] == "t"
    assert history(tracker.run_id, "train/loss") == [(1, 2.0), (2, 1.0)]
    assert history(tracker.run_id, "retention") == [(0, 0.9)]
    names = {f.path for f in client().list_artifacts(tracker.run_id)}
    assert {"rows.json", "notes", "figures"} <= names
    assert [f.path for f in client().list_artifacts(tracker.run_id, "notes")] == ["notes/note.txt"]


def test_a_resumed_run_goes_on_without_repeats_and_reports_changes(caplog):
    first = start()
    for step in (1, 2, 3):
        first.log_metrics({"train/loss": 1 / step}, step)
    first.finish("KILLED")
    second = Tracker.start("project", "a run", {"steps": 20, "extra": 1}, {}, run_id=first.run_id)
    assert client().get_run(first.run_id).info.status == "RUNNING"
    assert second.changed_parameters == {"steps": ("10", "20")}
    assert "steps was 10, is now 20" in caplog.text
    for step in (2, 3, 4):
        second.log_metrics({"train/loss": 1 / step}, step)
    second.finish()
    assert second.run_id == first.run_id
    assert history(first.run_id, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    run = client().get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["steps"] == "10" and run.data.params["extra"] == "1"
    assert run.data.tags["changed.steps"] == "10 -> 20"


def test_nested_runs_point_to_their_parent():
    parent = start()
    child = start(parent_run_id=parent.run_id)
    child.finish()
    parent.finish()
    assert client().get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_the_first_final_status_counts():
    tracker = start()
    tracker.finish("FAILED")
    tracker.finish("FINISHED")
    assert client().get_run(tracker.run_id).info.status == "FAILED"


def test_a_disabled_tracker_leaves_no_trace(project):
    before = set(project.iterdir())
    tracker = Tracker.disabled()
    tracker.log_metrics({"a": 1.0}, 1)
    tracker.log_artifact("missing")
    tracker.log_figure(None, "x.png")
    tracker.finish()
    assert tracker.run_id is None
    assert set(project.iterdir()) == before


CHILD = """
import os, sys
from autoselect.tracking import Tracker
tracker = Tracker.start("project", "child")
print(tracker.run_id, flush=True)
if sys.argv[1] == "exit":
    sys.exit(3)
os.kill(os.getpid(), 9)
"""


def run_child(how):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, how], capture_output=True, text=True, env=os.environ
    )
    assert done.stdout, done.stderr
    return done.stdout.split()[-1]


def test_a_process_that_ends_without_a_word_is_a_failed_run():
    assert client().get_run(run_child("exit")).info.status == "FAILED"


def test_a_run_that_sigkill_left_running_is_closed_by_the_next():
    dead = run_child("kill")
    assert client().get_run(dead).info.status == "RUNNING"
    mine = start()
    assert client().get_run(dead).info.status == "KILLED"
    assert client().get_run(mine.run_id).info.status == "RUNNING"
    mine.finish()


def hold_deliveries(monkeypatch):
    """Metrics wait on their way: an event that is set when they do, and one that lets them go."""
    delivering, go_on = threading.Event(), threading.Event()
    real = Store.log_metrics

    def slow(store, run_id, events):
        delivering.set()
        assert go_on.wait(60)
        real(store, run_id, events)

    monkeypatch.setattr(Store, "log_metrics", slow)
    return delivering, go_on


def test_metrics_leave_the_caller_at_once_and_arrive_by_themselves(monkeypatch):
    monkeypatch.setattr("autoselect.tracking.tracker.DELIVERY_SECONDS", 0.05)
    tracker = start()
    delivering, go_on = hold_deliveries(monkeypatch)
    tracker.log_metrics({"loss": 0.0}, 0)
    assert delivering.wait(60)
    for step in range(1, 50):
        tracker.log_metrics({"loss": float(step)}, step)  # would wait for ever if it delivered
    go_on.set()
    deadline = time.monotonic() + 60
    while len(history(tracker.run_id, "loss")) < 50 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert history(tracker.run_id, "loss") == [(step, float(step)) for step in range(50)]
    tracker.finish()


def test_what_was_flushed_survives_sigkill():
    child = CHILD.replace(
        "if sys.argv", 'tracker.log_metrics({"loss": 1.0}, 1)\ntracker.flush()\nif sys.argv'
    )
    done = subprocess.run([sys.executable, "-c", child, "kill"], capture_output=True, text=True)
    assert history(done.stdout.split()[-1], "loss") == [(1, 1.0)]


class Outage:
    """Makes every store fail while `down`."""

    def __init__(self, monkeypatch):
        self.down = False
        for name in ("create", "log_params", "log_metrics", "apply"):
            monkeypatch.setattr(Store, name, self._failing(getattr(Store, name)))

    def _failing(self, real):
        def call(store, *arguments):
            if self.down:
                raise ServerUnreachableError("connection refused")
            return real(store, *arguments)

        return call


@pytest.fixture
def outage(monkeypatch):
    monkeypatch.setattr("autoselect.tracking.tracker.RETRY_SECONDS", 0.0)
    return Outage(monkeypatch)


def test_what_an_outage_held_back_arrives_in_order_when_it_is_over(outage, project):
    tracker = start()
    tracker.log_metrics({"loss": 3.0}, 1)
    tracker.flush()
    outage.down = True
    tracker.log_metrics({"loss": 2.0}, 2)
    (project / "figure.txt").write_text("kept")
    tracker.log_artifact(project / "figure.txt")
    (project / "figure.txt").unlink()
    outage.down = False
    tracker.log_metrics({"loss": 1.0}, 3)
    tracker.finish()
    assert history(tracker.run_id, "loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert [f.path for f in client().list_artifacts(tracker.run_id)] == ["figure.txt"]
    assert not list(Path("mlruns/spool").glob("*.jsonl"))


def test_a_whole_run_without_a_server_is_delivered_later(outage):
    outage.down = True
    tracker = start()
    tracker.log_metrics({"loss": 2.0}, 1)
    tracker.finish("KILLED")
    offline = tracker.run_id
    assert offline.startswith("offline-")
    assert Tracker.synchronise() == 1
    outage.down = False
    assert Tracker.synchronise() == 0
    (run,) = client().search_runs([client().get_experiment_by_name("project").experiment_id])
    assert run.info.status == "KILLED"
    assert run.data.params["steps"] == "10"
    resumed = start(run_id=offline)
    assert resumed.run_id == run.info.run_id
    resumed.log_metrics({"loss": 2.0}, 1)
    resumed.log_metrics({"loss": 1.0}, 2)
    resumed.finish()
    assert history(run.info.run_id, "loss") == [(1, 2.0), (2, 1.0)]


def test_an_outage_in_the_middle_of_a_delivery_repeats_nothing(outage, monkeypatch):
    outage.down = True
    tracker = start()
    for step in range(4):
        tracker.log_metrics({"loss": float(step)}, step)
    outage.down = False
    real, calls = MlflowClient.log_batch, []

    def fails_after_arrival(self, *arguments, **named):
        real(self, *arguments, **named)
        calls.append(named)
        if len(calls) == 3:
            raise ConnectionError("cut before the answer")

    monkeypatch.setattr(MlflowClient, "log_batch", fails_after_arrival)
    tracker.log_metrics({"loss": 4.0}, 4)
    tracker.flush()
    assert list(Path("mlruns/spool").glob("*.jsonl"))
    tracker.finish()
    assert any("metrics" in call for call in calls[:3])
    assert history(tracker.run_id, "loss") == [(step, float(step)) for step in range(5)]
    assert client().get_run(tracker.run_id).info.status == "FINISHED"


def test_a_server_that_refuses_connections_is_an_outage(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = start()
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.finish()
    assert tracker.run_id.startswith("offline-")
    assert len(list(Path("mlruns/spool").glob("*.jsonl"))) == 1


def spools():
    return list(Path("mlruns/spool").glob("*.jsonl"))


def denied(*_, **__):
    raise MlflowException("the token has expired", error_code=get_error_code(401))


@pytest.mark.parametrize("how", ["denied", "deleted"])
def test_a_server_that_refuses_stops_no_run_and_loses_nothing(outage, monkeypatch, caplog, how):
    tracker = start()
    tracker.log_metrics({"loss": 3.0}, 1)
    tracker.flush()
    with monkeypatch.context() as patched:
        if how == "denied":
            patched.setattr(MlflowClient, "log_batch", denied)
        else:
            client().delete_run(tracker.run_id)
        for step in (2, 3):
            tracker.log_metrics({"loss": 1 / step}, step)
            tracker.flush()
        assert caplog.text.count("to be delivered later") == 1 and spools()
    if how == "deleted":
        client().restore_run(tracker.run_id)
    tracker.finish()
    assert history(tracker.run_id, "loss") == [(1, 3.0), (2, 1 / 2), (3, 1 / 3)]
    assert client().get_run(tracker.run_id).info.status == "FINISHED" and not spools()


@pytest.mark.parametrize("status", [403, 503])
def test_artefacts_that_a_server_does_not_take_are_kept(monkeypatch, project, status):
    """They go through the server by HTTP, whose errors MLflow hands on."""
    monkeypatch.setattr("autoselect.tracking.tracker.RETRY_SECONDS", 0.0)
    response = requests.Response()
    response.status_code = status
    (project / "note.txt").write_text("hello")
    tracker = start()
    with monkeypatch.context() as patched:
        error = requests.HTTPError("not now", response=response)
        patched.setattr(MlflowClient, "log_artifact", mock.Mock(side_effect=error))
        tracker.log_artifact(project / "note.txt")
        assert spools()
    tracker.finish()
    assert [f.path for f in client().list_artifacts(tracker.run_id)] == ["note.txt"]


def test_a_new_run_that_the_server_refuses_is_an_error(monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(ConfigError, match="token has expired"):
        patched.setattr(MlflowClient, "create_run", denied)
        start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://user:secret@server")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI=htp://server refuses"):
        start()
    assert not spools()


def test_what_this_store_cannot_take_waits_and_holds_up_nothing_else(outage, caplog):
    """Runs that somebody deleted, that nobody knows, and of a server that is not today's store."""
    outage.down = True
    unknown = Spool(Path("mlruns/spool"), "0" * 32)
    elsewhere = Spool(Path("mlruns/spool"), "1" * 32, "http://elsewhere:5000")
    for spool in (unknown, elsewhere):
        spool.append({"kind": "status", "status": "FINISHED", "time_ms": 1})
    deleted, good = start(), start()
    outage.down = False
    deleted.set_tags({"seen": "by the server"})
    outage.down = True
    good.log_metrics({"loss": 1.0}, 1)
    client().delete_run(deleted.run_id)
    for tracker in (deleted, good):
        tracker.finish()
    outage.down = False
    caplog.clear()
    start().finish()
    assert history(good.run_id, "loss") == [(1, 1.0)]
    assert len(spools()) == 3
    for words in ("http://elsewhere:5000", unknown.name, f"restoring run {deleted.run_id}"):
        assert words in caplog.text


def test_a_living_run_delivers_its_own_spool(outage):
    """Whenever the spool began, and whatever an earlier start of the run left in it."""
    fresh, resumed = start(), start()
    outage.down = True
    resumed.finish("KILLED")
    resumed = start(run_id=resumed.run_id)
    for tracker in (fresh, resumed):
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.flush()
    outage.down = False
    assert Tracker.synchronise() == 0
    assert len(spools()) == 2
    for tracker in (fresh, resumed):
        tracker.log_metrics({"loss": 2.0}, 2)
        tracker.finish()
        assert history(tracker.run_id, "loss") == [(1, 1.0), (2, 2.0)]
        assert client().get_run(tracker.run_id).info.status == "FINISHED"


def test_what_a_killed_run_kept_is_delivered_by_the_next():
    child = CHILD.replace(
        "if sys.argv",
        """
from autoselect.tracking.store import ServerUnreachableError, Store
def down(*_):
    raise ServerUnreachableError("down")
Store.log_metrics = down
tracker.log_metrics({"loss": 1.0}, 1)
tracker.flush()
if sys.argv""",
    )
    done = subprocess.run([sys.executable, "-c", child, "kill"], capture_output=True, text=True)
    assert spools(), done.stderr
    start().finish()
    assert history(done.stdout.split()[-1], "loss") == [(1, 1.0)] and not spools()


def test_nothing_is_lost_that_is_kept_while_another_process_delivers(outage, monkeypatch):
    tracker = start()
    outage.down = True
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.finish()
    outage.down = False
    delivering, go_on = hold_deliveries(monkeypatch)
    late = {"kind": "metrics", "values": {"loss": 2.0}, "step": 2, "time_ms": 1}
    spool = Spool(Path("mlruns/spool"), tracker.run_id)
    others = threading.Thread(target=Tracker.synchronise)
    others.start()
    assert delivering.wait(60)
    keeping = threading.Thread(target=spool.append, args=(late,))
    keeping.start()
    keeping.join(0.2)
    go_on.set()
    others.join()
    keeping.join()
    assert spool.events() == [late]


def test_a_half_written_line_harms_no_later_one():
    spool = Spool(Path("mlruns/spool"), "0" * 32)
    spool.append({"kind": "tags", "values": {"a": "1"}})
    with spool.path.open("a") as file:
        file.write('{"kind": "ta')
    after = Spool(Path("mlruns/spool"), "0" * 32)
    after.append({"kind": "tags", "values": {"b": "2"}})
    assert [event["values"] for event in after.events()] == [{"a": "1"}, {"b": "2"}]


def test_a_model_can_be_loaded_back(project):
    folder = project / "selector"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    tracker = start()
    tracker.log_model(folder, "selector", {"width": 5})
    tracker.finish()
    model = client().get_logged_model(client().get_run(tracker.run_id).data.tags["model.selector"])
    assert model.params == {"width": "5"}
    location = Path(model.artifact_location.removeprefix("file://"))
    assert (location / "config.json").read_text() == "{}"


def test_a_run_that_the_store_lost_does_not_stop_its_successor(caplog):
    """The store was deleted, or MLFLOW_TRACKING_URI names another one than before."""
    tracker = start(run_id="0" * 32)
    tracker.finish()
    assert "is not in sqlite" in caplog.text
    assert client().get_run(tracker.run_id).info.status == "FINISHED"
    client().delete_run(tracker.run_id)
    again = start(run_id=tracker.run_id)
    again.finish()
    assert again.run_id != tracker.run_id


def test_a_table_is_replaced_and_a_model_is_kept_when_a_run_is_repeated(project):
    (project / "selector").mkdir()
    (project / "selector" / "config.json").write_text("{}")
    first = start()
    for tracker in (first, start(run_id=first.run_id)):
        tracker.log_table({"method": ["a", "b"], "retention": [0.1, 0.2]}, "rows.json")
        tracker.log_model(project / "selector", "selector", {})
        tracker.finish()
    table = client().load_table(
        client().get_run(first.run_id).info.experiment_id, "rows.json", [first.run_id]
    )
    assert table.to_dict("list") == {"method": ["a", "b"], "retention": [0.1, 0.2]}
    assert len(client().search_logged_models(["1"])) == 1


def test_a_logged_model_comes_back_by_both_addresses(project):
    (project / "selector").mkdir()
    (project / "selector" / "config.json").write_text('{"width": 5}')
    tracker = start()
    tracker.log_model(project / "selector", "selector", {})
    tracker.finish()
    model = client().get_run(tracker.run_id).data.tags["model.selector"]
    for address in (f"models:/{model}", f"runs:/{tracker.run_id}/selector"):
        assert is_logged_model(address)
        assert (download_model(address) / "config.json").read_text() == '{"width": 5}'
    for address in ("models:/m-nothing", "runs:/nothing/selector", f"runs:/{tracker.run_id}/b"):
        with pytest.raises(ConfigError, match="is not in sqlite"):
            download_model(address)
    assert not is_logged_model("org/name") and not is_logged_model("runs/demo/selector")


def test_runs_name_each_other_once_and_keep_what_a_person_wrote(project):
    training = start()
    training.describe("My own words.")
    training.finish()
    evaluation = start()
    for text in ("half a report", "96.0 % at 8 tokens"):
        evaluation.mention_on(training.run_id, "evaluations", "Evaluations", text)
    second = start()
    second.mention_on(training.run_id, "evaluations", "Evaluations", "another one")
    second.mention_on("0" * 32, "evaluations", "Evaluations", "of an unknown run")
    second.finish()
    evaluation.finish()
    tags = client().get_run(training.run_id).data.tags
    assert tags["evaluations"] == f"{evaluation.run_id} {second.run_id}"
    text = tags["mlflow.note.content"]
    assert text.startswith("My own words.") and "half a report" not in text
    assert f"[96.0 % at 8 tokens](#/experiments/1/runs/{evaluation.run_id})" in text
    assert f"[another one](#/experiments/1/runs/{second.run_id})" in text
    assert second.link_to(training.run_id) == f"#/experiments/1/runs/{training.run_id}"
    assert second.link_to("0" * 32) is None


def evaluation_of(selector, retentions, data="24 images", **more):
    """A finished evaluation with one selector, as `autoselect eval` logs it."""
    tags = {"kind": "evaluation", "model": "tiny", "data": data, "selector": selector}
    run = Tracker.start("project", f"eval {selector}", tags={**tags, **more})
    for budget, value in retentions.items():
        run.log_metrics({metric_at("retention", budget): value})
        run.log_metrics({metric_at("retention_low", budget): value - 0.01})
        run.log_metrics({metric_at("retention_high", budget): value + 0.01})
        run.log_metrics({metric_at("speedup", budget): 2.5})
    run.rank_selectors("project")
    run.finish()
    return run.run_id


def test_the_experiment_says_which_selector_is_best_at_which_budget():
    evaluation_of("other", {64: 0.5}, data="3 images")
    small, large = evaluation_of("small", {64: 0.91, 128: 0.97}), None
    experiment = client().get_experiment_by_name("project").experiment_id
    first = client().get_experiment(experiment).tags["mlflow.note.content"]
    assert first.startswith("**Best selector** K=64 small 91.0 %, 2.50 x; K=128")
    client().set_experiment_tag(experiment, "mlflow.note.content", f"{first}\n\nOur own words.")
    large = evaluation_of("large", {64: 0.95})
    tags = client().get_experiment(experiment).tags
    text = tags["mlflow.note.content"]
    assert text.splitlines()[0] == (
        "**Best selector** K=64 large 95.0 %, 2.50 x; K=128 small 97.0 %, 2.50 x"
    )
    assert "| 64 | large | 95.0 % (94.0 to 96.0) | 2.50 |" in text
    assert text.endswith("Our own words.") and text.count("Our own words.") == 1
    assert text.index(large) < text.index(small), "best first"
    assert text.index("tiny, 24 images") < text.index("tiny, 3 images"), "latest data first"
    view = json.loads(tags["mlflow.sharedViewState.selectors"])
    state = json.loads(view["state"])
    assert "metrics.`retention_at_64_tokens`" in state["selectedColumns"]
    assert state["orderByKey"] == "metrics.`retention_at_64_tokens`" and not state["orderByAsc"]


def test_an_evaluation_that_failed_is_not_ranked():
    run = Tracker.start("project", "eval", tags={"kind": "evaluation"})
    run.log_metrics({metric_at("retention", 8): 0.5})
    run.finish("FAILED")
    other = start()
    other.rank_selectors("project")
    other.finish()
    assert "mlflow.note.content" not in client().get_experiment_by_name("project").tags


def test_a_long_history_leaves_room_for_what_a_person_wrote():
    """MLflow takes 20,000 characters."""
    found = [
        Standing(
            ("tiny", f"data {i // 50}"), f"selector {i}", 8 * (i % 5 + 1), 0.9, "88 to 92", 2.0
        )
        for i in range(600)
    ]
    text = note(found, "1", f"**Best selector** none\n{OWN_TEXT}\n\nOur own words.")
    assert len(text) < 20000 and text.endswith("Our own words.")
    assert "tiny, data 0" in text and "tiny, data 11" not in text
