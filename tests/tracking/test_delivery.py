"""Delivery to a server that is down, refuses or hangs, and after processes that died."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import requests
from mlflow import MlflowClient

from autoselect.config import ConfigError
from autoselect.tracking import Tracker, delivery
from autoselect.tracking.journal import Journal
from tests.tracking.runs import CHILD, client, denied, history, hold_deliveries, journals, start


def test_metrics_leave_the_caller_at_once_and_arrive_by_themselves(monkeypatch):
    monkeypatch.setattr("autoselect.tracking.delivery.DELIVERY_SECONDS", 0.05)
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


def test_a_signal_in_the_middle_of_a_line_can_end_the_run(tmp_path):
    """The handler writes the end of the run, and its thread holds the locks already."""
    journal = Journal(tmp_path, "0" * 32)

    def handled(*_):
        journal.append({"kind": "status", "status": "KILLED"})

    before = signal.signal(signal.SIGUSR2, handled)
    try:
        thread = threading.Timer(20, lambda: os._exit(1))  # instead of waiting for ever
        thread.start()
        with journal._writing():
            signal.raise_signal(signal.SIGUSR2)
        thread.cancel()
    finally:
        signal.signal(signal.SIGUSR2, before)
    journal.append({"kind": "tag"})
    assert [event["kind"] for event in journal.events()] == ["status", "tag"]


def test_a_journal_that_its_own_process_delivers_meanwhile_is_passed_over(project, monkeypatch):
    spool = Path("mlruns/spool")
    spool.mkdir(parents=True, exist_ok=True)
    for name in ("gone", "waits"):
        (spool / f"{name}.jsonl").write_text("")
    stat = Path.stat

    def racing(path, **options):
        if path.name == "gone.jsonl":
            path.unlink(missing_ok=True)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", racing)
    assert [journal.name for journal in Journal.waiting(spool)] == ["waits"]


def test_what_was_flushed_survives_sigkill():
    child = CHILD.replace(
        "if sys.argv", 'tracker.log_metrics({"loss": 1.0}, 1)\ntracker.flush()\nif sys.argv'
    )
    done = subprocess.run([sys.executable, "-c", child, "kill"], capture_output=True, text=True)
    assert history(done.stdout.split()[-1], "loss") == [(1, 1.0)]


def test_what_an_outage_held_back_arrives_in_order_when_it_is_over(outage, project):
    tracker = start()
    tracker.log_metrics({"loss": 3.0}, 1)
    tracker.flush()
    outage.down = True
    tracker.log_metrics({"loss": 2.0}, 2)
    (project / "figure.txt").write_text("kept")
    tracker.log_artifact(project / "figure.txt")
    (project / "figure.txt").unlink()
    tracker.flush()
    outage.down = False
    tracker.log_metrics({"loss": 1.0}, 3)
    tracker.finish()
    assert history(tracker.run_id, "loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert [f.path for f in client().list_artifacts(tracker.run_id)] == ["figure.txt"]
    assert not journals()


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
    assert journals()
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
    assert len(journals()) == 1


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
        assert caplog.text.count("to be delivered later") == 1 and journals()
    if how == "deleted":
        client().restore_run(tracker.run_id)
    tracker.finish()
    assert history(tracker.run_id, "loss") == [(1, 3.0), (2, 1 / 2), (3, 1 / 3)]
    assert client().get_run(tracker.run_id).info.status == "FINISHED" and not journals()


@pytest.mark.parametrize("status", [403, 503])
def test_artefacts_that_a_server_does_not_take_are_kept(monkeypatch, project, status):
    """They go through the server by HTTP, whose errors MLflow hands on."""
    monkeypatch.setattr("autoselect.tracking.delivery.RETRY_SECONDS", 0.0)
    response = requests.Response()
    response.status_code = status
    (project / "note.txt").write_text("hello")
    tracker = start()
    with monkeypatch.context() as patched:
        error = requests.HTTPError("not now", response=response)
        patched.setattr(MlflowClient, "log_artifact", mock.Mock(side_effect=error))
        tracker.log_artifact(project / "note.txt")
        tracker.flush()
        assert journals()
    tracker.finish()
    assert [f.path for f in client().list_artifacts(tracker.run_id)] == ["note.txt"]


def test_a_new_run_that_the_server_refuses_is_an_error(monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(ConfigError, match="token has expired"):
        patched.setattr(MlflowClient, "create_run", denied)
        start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://user:secret@server")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI=htp://server refuses"):
        start()
    assert not journals()


def test_what_this_store_cannot_take_waits_and_holds_up_nothing_else(outage, caplog):
    """Runs that somebody deleted, that nobody knows, and of a server that is not today's store."""
    outage.down = True
    unknown = Journal(Path("mlruns/spool"), "0" * 32)
    elsewhere = Journal(Path("mlruns/spool"), "1" * 32, "http://elsewhere:5000")
    for journal in (unknown, elsewhere):
        journal.append({"kind": "status", "status": "FINISHED", "time_ms": 1})
    deleted, good = start(), start()
    outage.down = False
    deleted.flush()
    outage.down = True
    good.log_metrics({"loss": 1.0}, 1)
    client().delete_run(deleted.run_id)
    for tracker in (deleted, good):
        tracker.finish()
    outage.down = False
    caplog.clear()
    start().finish()
    assert history(good.run_id, "loss") == [(1, 1.0)]
    assert len(journals()) == 3
    for words in ("http://elsewhere:5000", unknown.name, f"restoring run {deleted.run_id}"):
        assert words in caplog.text


def test_what_waits_is_named_once_and_not_again_by_every_row_of_an_evaluation(caplog):
    elsewhere = Journal(Path("mlruns/spool"), "1" * 32, "http://elsewhere:5000")
    elsewhere.append({"kind": "status", "status": "FINISHED", "time_ms": 1})
    parent = start()
    for _ in range(3):
        start(parent_run_id=parent.run_id).finish()
    parent.finish()
    assert caplog.text.count("waits for the tracking server http://elsewhere:5000") == 1


def test_a_living_run_delivers_its_own_journal(outage):
    """Whenever the journal began, and whatever an earlier start of the run left in it."""
    fresh, resumed = start(), start()
    outage.down = True
    resumed.finish("KILLED")
    resumed = start(run_id=resumed.run_id)
    for tracker in (fresh, resumed):
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.flush()
    outage.down = False
    assert Tracker.synchronise() == 0
    assert len(journals()) == 2
    for tracker in (fresh, resumed):
        tracker.log_metrics({"loss": 2.0}, 2)
        tracker.finish()
        assert history(tracker.run_id, "loss") == [(1, 1.0), (2, 2.0)]
        assert client().get_run(tracker.run_id).info.status == "FINISHED"


def test_what_a_killed_run_kept_is_delivered_by_the_next():
    child = CHILD.replace(
        "if sys.argv",
        """
from autoselect.tracking import delivery
from autoselect.tracking.errors import ServerUnreachableError
def down(*_):
    raise ServerUnreachableError("down")
delivery.log_metrics = down
tracker.log_metrics({"loss": 1.0}, 1)
tracker.flush()
if sys.argv""",
    )
    done = subprocess.run([sys.executable, "-c", child, "kill"], capture_output=True, text=True)
    assert journals(), done.stderr
    start().finish()
    assert history(done.stdout.split()[-1], "loss") == [(1, 1.0)] and not journals()


def test_nothing_is_lost_that_is_kept_while_another_process_delivers(outage, monkeypatch):
    tracker = start()
    outage.down = True
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.finish()
    outage.down = False
    delivering, go_on = hold_deliveries(monkeypatch)
    late = {"kind": "metrics", "values": {"loss": 2.0}, "step": 2, "time_ms": 1}
    journal = Journal(Path("mlruns/spool"), tracker.run_id)
    others = threading.Thread(target=Tracker.synchronise)
    others.start()
    assert delivering.wait(60)
    keeping = threading.Thread(target=journal.append, args=(late,))
    keeping.start()
    keeping.join(0.2)
    go_on.set()
    others.join()
    keeping.join()
    assert journal.events() == [late]


def test_a_half_written_line_harms_no_later_one():
    journal = Journal(Path("mlruns/spool"), "0" * 32)
    journal.append({"kind": "tags", "values": {"a": "1"}})
    with journal.path.open("a") as file:
        file.write('{"kind": "ta')
    after = Journal(Path("mlruns/spool"), "0" * 32)
    after.append({"kind": "tags", "values": {"b": "2"}})
    assert [event["values"] for event in after.events()] == [{"a": "1"}, {"b": "2"}]


def refused_lines(run_id):
    return (Path("mlruns/spool") / f"{run_id}-refused" / "events.jsonl").read_text().splitlines()


def test_an_event_refused_for_its_own_sake_holds_back_no_later_one(caplog):
    tracker = start()
    for step in range(5):
        if step == 2:
            tracker.set_tags({"no, such: name?": step})
        else:
            tracker.log_metrics({"loss": float(step)}, step)
    tracker.flush()
    assert history(tracker.run_id, "loss") == [(step, float(step)) for step in (0, 1, 3, 4)]
    tracker.set_tags({"later": "one"})
    tracker.finish()
    run = client().get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["later"] == "one" and not journals()
    (line,) = refused_lines(tracker.run_id)
    assert "no, such: name?" in line
    assert caplog.text.count("it is set aside in") == 1


def test_a_refused_file_is_set_aside_with_its_event(project, monkeypatch):
    response = requests.Response()
    response.status_code = 413
    error = requests.HTTPError("too large", response=response)
    monkeypatch.setattr(MlflowClient, "log_artifact", mock.Mock(side_effect=error))
    (project / "note.txt").write_text("hello")
    tracker = start()
    tracker.log_artifact(project / "note.txt")
    (project / "note.txt").unlink()
    tracker.finish()
    (line,) = refused_lines(tracker.run_id)
    assert Path(json.loads(line)["event"]["path"]).read_text() == "hello"
    assert client().get_run(tracker.run_id).info.status == "FINISHED"


def test_what_was_not_flushed_survives_sigkill_too():
    child = CHILD.replace("if sys.argv", 'tracker.log_metrics({"loss": 1.0}, 1)\nif sys.argv')
    done = subprocess.run([sys.executable, "-c", child, "kill"], capture_output=True, text=True)
    start().finish()
    assert history(done.stdout.split()[-1], "loss") == [(1, 1.0)] and not journals()


def test_the_end_of_a_run_does_not_wait_for_ever(monkeypatch, caplog):
    monkeypatch.setattr(delivery, "CLOSE_SECONDS", 0.01)
    tracker = start()
    delivering, go_on = hold_deliveries(monkeypatch)
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.finish()
    assert delivering.wait(60)
    assert "is incomplete in" in caplog.text and journals()
    go_on.set()
    tracker._delivery._thread.join()
    assert history(tracker.run_id, "loss") == [(1, 1.0)]
    assert client().get_run(tracker.run_id).info.status == "FINISHED" and not journals()


def test_a_journal_goes_on_while_it_is_delivered(monkeypatch):
    tracker = start()
    delivering, go_on = hold_deliveries(monkeypatch)
    tracker.log_metrics({"loss": 1.0}, 1)
    flushing = threading.Thread(target=tracker.flush)
    flushing.start()
    assert delivering.wait(60)
    tracker.log_metrics({"loss": 2.0}, 2)  # would wait for ever if the delivery kept it out
    go_on.set()
    flushing.join()
    tracker.finish()
    assert history(tracker.run_id, "loss") == [(1, 1.0), (2, 2.0)]


def test_nothing_is_left_in_the_folder_when_all_is_delivered(project):
    (project / "note.txt").write_text("hello")
    tracker = start()
    tracker.log_artifact(project / "note.txt")
    tracker.finish()
    assert not list(Path("mlruns/spool").iterdir())


def test_a_run_whose_offline_journal_was_deleted_begins_anew(outage, caplog):
    outage.down = True
    tracker = start()
    tracker.finish()
    for path in journals():
        path.unlink()
    outage.down = False
    again = start(run_id=tracker.run_id)
    again.finish()
    assert "nothing is left of run" in caplog.text
    assert client().get_run(again.run_id).info.status == "FINISHED"


def test_a_folder_that_cannot_be_written_is_an_error_that_says_so():
    Path("mlruns").mkdir(exist_ok=True)
    Path("mlruns/spool").write_text("in the way")
    with pytest.raises(ConfigError, match="tracking=true needs .*mlruns/spool"):
        start()
