"""Stores that cannot take a run: a new run names cause and fix, a resumed one and pages go on."""

import importlib.util
import os
import sqlite3
import subprocess
from pathlib import Path

import pytest

from autoselect.config import ConfigError
from autoselect.tracking import Tracker
from autoselect.tracking.dashboard import serve
from autoselect.tracking.delivery import deliver_left_behind
from autoselect.tracking.history import metric_history
from autoselect.tracking.journal import Journal
from autoselect.tracking.models import download_model
from autoselect.tracking.store import Store
from tests.tracking.runs import client, history, journals, start


def old_schema(monkeypatch):
    with sqlite3.connect("mlflow.db") as connection:
        connection.execute("update alembic_version set version_num = '451aebb31d03'")


def damaged(monkeypatch):
    Path("mlflow.db").write_bytes(b"this was a database" * 99)


def a_folder(monkeypatch):
    Path("mlflow.db").unlink()
    Path("mlflow.db").mkdir()
    monkeypatch.setattr("mlflow.store.db.utils.time.sleep", lambda seconds: None)


def missing_driver(monkeypatch):
    if importlib.util.find_spec("pymysql") is not None:
        pytest.skip("the driver is installed here")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mysql+pymysql://me:secret@127.0.0.1:1/runs")


def file_store(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{Path.cwd()}/runs")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "false")


def deleted_experiment(monkeypatch):
    start().finish()
    client().delete_experiment(client().get_experiment_by_name("project").experiment_id)


PERMANENT = [
    (old_schema, "out-of-date database schema", "mlflow db upgrade"),
    (damaged, "file is not a database", "restore the file from a backup"),
    (a_folder, "unable to open database file", "make the database and its folder writable"),
    (missing_driver, "No module named 'pymysql'", "pip install pymysql"),
    (file_store, "maintenance mode", "mlflow migrate-filestore"),
    (deleted_experiment, "deleted the experiment 'project'", "mlflow experiments restore"),
]


@pytest.mark.parametrize("fault", PERMANENT, ids=lambda fault: fault[0].__name__)
def test_a_store_that_takes_no_run_is_an_error_with_its_own_cause_and_fix(monkeypatch, fault):
    plant, cause, fix = fault
    plant(monkeypatch)
    for begin in (start, lambda: start(run_id="0" * 32)):
        if plant is not deleted_experiment and begin is not start:
            continue  # whether the run is there is unknown, so it goes on in its journal
        with pytest.raises(ConfigError) as refused:
            begin()
        text = str(refused.value)
        assert text.startswith("MLFLOW_TRACKING_URI=") and "refuses a new run" in text
        assert cause in text and fix in text
        assert "TOKEN" not in text and "secret" not in text
    assert not journals()


@pytest.mark.parametrize("fault", PERMANENT, ids=lambda fault: fault[0].__name__)
def test_the_pages_of_a_store_that_cannot_be_opened_end_in_one_sentence(monkeypatch, fault):
    plant, cause, fix = fault
    plant(monkeypatch)
    commands, environments = [], []

    def begin(command, env, **options):
        commands.append(command)
        environments.append(env)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("autoselect.tracking.dashboard.subprocess.run", begin)
    if plant is deleted_experiment:  # its pages can be shown
        assert serve(0) == 0 and len(commands) == 1
        assert environments[0]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
        assert environments[0]["PATH"] == os.environ["PATH"]
        return
    with pytest.raises(ConfigError) as refused:
        serve(0)
    assert cause in str(refused.value) and fix in str(refused.value)
    assert "TOKEN" not in str(refused.value) and "secret" not in str(refused.value)
    assert not commands


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:////tmp/a b/mlflow.db", "sqlite:////tmp/a b/mlflow.db"),
        ("postgresql://u:secret/x@h/db", "postgresql://h/db"),
        (
            "postgresql+psycopg2://h:5432/db?user=u&password=secret",
            "postgresql+psycopg2://h:5432/db",
        ),
        ("mysql://u:se@secret@h/db", "mysql://h/db"),
        ("mysql://u:secret@h:port/db", "mysql:..."),
        ("https://u:se@secret@h:5000/mlflow/", "https://h:5000/mlflow"),
        ("http://h/?token=secret", "http://h"),
        ("http://[secret", "http:..."),
        ("databricks://profile", "databricks://profile"),
        ("./mlruns", "./mlruns"),
    ],
)
def test_an_address_that_is_shown_and_written_down_has_no_password(uri, shown):
    assert Store(uri).address == shown


def test_the_pages_of_a_server_are_its_own(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@tracking.example")
    with pytest.raises(ConfigError, match="open that address in a browser") as refused:
        serve(0)
    assert "https://tracking.example is a server" in str(refused.value)


def test_a_run_whose_experiment_was_deleted_goes_on_and_arrives_when_it_is_restored(
    monkeypatch, caplog
):
    monkeypatch.setattr("autoselect.tracking.delivery.RETRY_SECONDS", 0.0)
    first = start()
    first.log_metrics({"loss": 1.0}, 1)
    first.finish("KILLED")
    experiment = client().get_experiment_by_name("project").experiment_id
    client().delete_experiment(experiment)
    resumed = start(run_id=first.run_id)
    assert resumed.run_id == first.run_id
    resumed.log_metrics({"loss": 0.5}, 2)
    resumed.finish()
    assert "mlflow experiments restore" in caplog.text and "goes on" in caplog.text
    assert journals()
    client().restore_experiment(experiment)
    assert Tracker.synchronise() == 0
    assert history(first.run_id, "loss") == [(1, 1.0), (2, 0.5)]
    assert client().get_run(first.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("how", ["read-only", "locked", "full"])
def test_what_a_store_cannot_take_during_a_run_waits_and_is_not_set_aside(monkeypatch, caplog, how):
    """Reading goes on in such a store, so the single event must not be taken for the fault."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException, get_error_code

    said = {
        "read-only": "attempt to write a readonly database",
        "locked": "database is locked",
        "full": "database or disk is full",
    }[how]

    def fails(*_, **__):
        message = f"(sqlite3.OperationalError) {said}\n[SQL: INSERT INTO metrics]"
        raise MlflowException(message, error_code=get_error_code(400))

    monkeypatch.setattr("autoselect.tracking.delivery.RETRY_SECONDS", 0.0)
    tracker = start()
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_batch", fails)
        for step in (1, 2):
            tracker.log_metrics({"loss": float(step)}, step)
            tracker.flush()
    assert journals() and not list(Path("mlruns/spool").glob("*-refused"))
    assert caplog.text.count(said) == 1 and "sqlite3.Op" not in caplog.text
    tracker.finish()
    assert history(tracker.run_id, "loss") == [(1, 1.0), (2, 2.0)]


def test_a_full_disk_under_the_journal_ends_no_run_that_has_begun(monkeypatch, caplog):
    tracker = start()

    def full(*_):
        raise OSError(28, "No space left on device")

    tracker.flush()
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "_writing", full)
        for step in (1, 2):
            tracker.log_metrics({"loss": float(step)}, step)
    assert caplog.text.count("goes on, but") == 1 and "No space left on device" in caplog.text
    tracker.log_metrics({"loss": 3.0}, 3)
    tracker.finish()
    assert history(tracker.run_id, "loss") == [(3, 3.0)]


def test_a_file_that_is_not_there_is_still_an_error():
    tracker = start()
    with pytest.raises(FileNotFoundError):
        tracker.log_artifact("no-such-file")
    tracker.finish()


def test_a_damaged_journal_of_another_run_stops_no_start(caplog):
    folder = Path("mlruns/spool")
    folder.mkdir(parents=True)
    (folder / f"{'0' * 32}.jsonl").write_text("this is not a journal\n")
    tracker = start()
    tracker.finish()
    assert f"{'0' * 32}.jsonl is damaged" in caplog.text
    assert client().get_run(tracker.run_id).info.status == "FINISHED"
    assert deliver_left_behind() == 1


def test_a_question_to_a_store_that_was_never_made_does_not_make_it(project):
    (project / "mlflow.db").unlink()
    assert metric_history("0" * 32, "train/loss") == []
    for address in ("runs:/0/selector", "models:/m-0"):
        with pytest.raises(ConfigError, match=f"model={address} is not in sqlite:///"):
            download_model(address)
    assert not Store.open().knows("0" * 32) and not Store.open().is_deleted("0" * 32)
    assert not list(project.iterdir())


def test_a_damaged_journal_of_its_own_stops_no_resumed_run(caplog):
    tracker = start()
    tracker.finish("KILLED")
    journal = Path("mlruns/spool") / f"{tracker.run_id}.jsonl"
    journal.write_bytes(b'{"kind": "metrics", "val\0\0\0\n')
    again = start(run_id=tracker.run_id)
    again.log_metrics({"loss": 1.0}, 1)
    again.finish()
    assert again.run_id == tracker.run_id and history(tracker.run_id, "loss") == [(1, 1.0)]
    kept = journal.with_name(f"{tracker.run_id}-refused") / journal.name
    assert f"it is kept as {kept.absolute()}" in caplog.text and kept.exists() and not journals()


@pytest.mark.parametrize("name", ['o\'dd [x] "ü" {a,b}', "%20 #1 & $v?"])
def test_a_project_folder_may_have_any_name(empty_store, monkeypatch, name):
    folder = Path(name).absolute()
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(empty_store)
    (folder / "note.txt").write_text("hello")
    monkeypatch.chdir(folder)
    tracker = start()
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.log_artifact("note.txt")
    tracker.finish()
    assert history(tracker.run_id, "loss") == [(1, 1.0)] and not journals()
    assert [found.path for found in client().list_artifacts(tracker.run_id)] == ["note.txt"]
