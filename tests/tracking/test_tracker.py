"""What a run logs, in a temporary SQLite store."""

import threading
from pathlib import Path

import pytest
from PIL import Image

from autoselect.config import ConfigError
from autoselect.pruning.hub import is_logged_model
from autoselect.tracking import Data, Tracker
from autoselect.tracking.models import download_model
from tests.tracking.runs import client, history, run_child, start


def test_a_run_holds_what_was_logged(project):
    tracker = start()
    tracker.log_metrics({"train/loss": 2.0}, 1)
    tracker.log_metrics({"train/loss": 1.0}, 2)
    tracker.log_metrics({"retention": 0.9})
    tracker.log_table({"method": ["a", "b"], "retention": [0.1, 0.2]}, "rows.json")
    (project / "note.txt").write_text("hello")
    tracker.log_artifacts([project / "note.txt"], "notes")
    (project / "empty.png").write_bytes(b"")
    tracker.log_artifact(project / "empty.png", "figures")
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


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("accuracy/Zählen (%)", "accuracy/Zählen ___"),
        ("accuracy/$a|b$", "accuracy/_a_b_"),
        ("accuracy/two\nlines", "accuracy/two_lines"),
        ("accuracy/../x/", "accuracy/__/x"),
        ("retention_at_8_tokens//runs/lr=1/selector", "retention_at_8_tokens/runs/lr_1/selector"),
        ("accuracy/" + "x" * 400, "accuracy/" + "x" * 241),
    ],
)
def test_a_name_that_mlflow_refuses_is_changed_and_nothing_is_lost(project, name, shown):
    tracker = start()
    tracker.log_metrics({"retention": 0.9, name: 0.5})
    (project / "selector").mkdir()
    tracker.log_model(project / "selector", "selector", {})
    tracker.log_model_metrics("selector", {name: 0.5}, Data("data", "d", "here", ""))
    tracker.finish()
    run = client().get_run(tracker.run_id)
    assert run.data.metrics == {"retention": 0.9, shown: 0.5}
    assert not list(project.glob("mlruns/spool/*-refused"))


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
    tracker.finish()
    assert tracker.run_id is None
    assert set(project.iterdir()) == before


def test_a_process_that_ends_without_a_word_is_a_failed_run():
    assert client().get_run(run_child("exit")).info.status == "FAILED"


def test_a_run_that_sigkill_left_running_is_closed_by_the_next():
    dead = run_child("kill")
    assert client().get_run(dead).info.status == "RUNNING"
    mine = start()
    assert client().get_run(dead).info.status == "KILLED"
    assert client().get_run(mine.run_id).info.status == "RUNNING"
    mine.finish()


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
    evaluation.flush()
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


def test_data_and_metrics_of_models_are_noted_once(project):
    data = Data("test shards", "d" * 64, "shards/*.tar", "300 images")
    (project / "selector").mkdir()
    (project / "selector" / "config.json").write_text("{}")
    tracker = start()
    for _ in range(2):
        tracker.log_data(data, "eval")
        tracker.log_model(project / "selector", "selector", {})
        tracker.log_model_metrics("selector", {"retention": 0.9}, data)
    tracker.log_model_metrics("another", {"retention": 0.1}, data)
    tracker.finish()
    run = client().get_run(tracker.run_id)
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("test shards", "d" * 36)
    assert {tag.key: tag.value for tag in given.tags} == {"mlflow.data.context": "eval"}
    model = client().get_logged_model(run.data.tags["model.selector"])
    (metric,) = model.metrics
    assert (metric.key, metric.value, metric.dataset_digest) == ("retention", 0.9, "d" * 36)


def test_a_table_may_hold_pictures(project):
    Image.new("RGB", (4, 4)).save(project / "seen.png")
    tracker = start()
    table = {"overlay": [str(project / "seen.png")], "question": ["what ?"]}
    for _ in range(2):
        tracker.log_table(table, "failed.json", ["overlay"])
    tracker.finish()
    experiment = client().get_run(tracker.run_id).info.experiment_id
    read = client().load_table(experiment, "failed.json", run_ids=[tracker.run_id])
    assert list(read["question"]) == ["what ?"]
    seen = read["overlay"][0]
    assert seen["type"] == "image"
    assert Path(client().download_artifacts(tracker.run_id, seen["filepath"])).is_file()


def test_the_machine_is_measured_until_the_run_ends():
    tracker = start()
    tracker.watch_machine()
    tracker.watch_machine()
    tracker.finish()
    names = client().get_run(tracker.run_id).data.metrics
    assert 0 < names["system/system_memory_usage_percentage"] <= 100
    assert "system/cpu_utilization_percentage" in names
    assert not [thread for thread in threading.enumerate() if thread.name == "machine"]
    assert client().get_run(tracker.run_id).data.tags["node"]
