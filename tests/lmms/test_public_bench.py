"""`autoselect bench public`: cells, resuming and report, with a fake lmms-eval."""

import json
import subprocess
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from autoselect.config import ConfigError
from autoselect.lmms import bench
from autoselect.lmms.bench import TaskRun, bench_public, lmms_command, task_runs
from autoselect.lmms.local_task import write_local_task
from autoselect.lmms.published import RETENTION, published_rows
from autoselect.lmms.report import build_public_report, public_markdown
from autoselect.lmms.settings import PublicSettings
from autoselect.lmms.tasks import TASKS, TEN, task_score

SCORES = {"full": 0.8, "64": 0.6, "32": 0.4}


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(metadata, "version", lambda name: "0.7.3")
    monkeypatch.setattr(bench, "environment", lambda: {"git_commit": "c"})
    return PublicSettings(
        model="org/llava-1.5-7b-hf",
        selector="org/selector",
        budgets="64,32",
        tasks="gqa,mme",
        out=str(tmp_path / "out"),
        methods="autoselect,random",
        latency=False,
        tracking=False,
    )


@pytest.fixture
def lmms(monkeypatch):
    """Replace lmms-eval by a fake that records its calls; `fail_at` interrupts the n-th call."""

    class Fake:
        calls: list[list[str]] = []
        fail_at = None

        def __call__(self, command, **options):
            self.calls.append(command)
            if len(self.calls) == self.fail_at:
                raise KeyboardInterrupt
            given = dict(zip(command, command[1:], strict=False))
            model = dict(part.split("=") for part in given["--model_args"].split(","))
            share = SCORES[model["budget"]]
            results = {"alias": given["--tasks"], "exact_match,none": share}
            results["exact_match_stderr,none"] = 0.1
            if given["--tasks"] == "mme":
                results = {
                    "mme_perception_score,none": 1500.0 * share,
                    "mme_cognition_score,none": 300.0 * share,
                }
            folder = Path(given["--output_path"]) / "model"
            folder.mkdir(parents=True)
            value = {"results": {given["--tasks"]: results}}
            (folder / "20261122_results.json").write_text(json.dumps(value))
            return subprocess.CompletedProcess(command, 0, "", "")

    fake = Fake()
    fake.calls = []
    monkeypatch.setattr(subprocess, "run", fake)
    return fake


def test_every_task_is_run_for_the_full_model_and_each_method_and_budget(settings, lmms):
    report = bench_public(settings)
    assert len(lmms.calls) == 10
    assert report["full"]["tasks"] == {"gqa": 80.0, "mme": pytest.approx(1440.0)}
    assert [(row["method"], row["budget"]) for row in report["rows"]] == [
        *(("autoselect", "64"), ("random", "64")),
        *(("autoselect", "32"), ("random", "32")),
    ]
    assert [row["retention"] for row in report["rows"]] == pytest.approx([0.75, 0.75, 0.5, 0.5])
    text = (Path(settings.out) / "report.md").read_text()
    assert "| upper bound | all | 80.0 | 1440 | 100.0 |" in text
    assert "perception + cognition" in text
    assert "| upper bound, published | 576 | 61.9 | 1862 | 100.0 |" in text
    assert "| FastV | 64 | 74.0 | arXiv 2403.06764 |" in text
    assert json.loads((Path(settings.out) / "report.json").read_text()) == report


def test_a_killed_run_goes_on_with_the_next_cell(settings, lmms):
    lmms.fail_at = 4
    with pytest.raises(KeyboardInterrupt):
        bench_public(settings)
    assert len(list(Path(settings.out, "cells").glob("*@*.json"))) == 3
    lmms.fail_at = None
    bench_public(settings)
    assert len(lmms.calls) == 3 + 1 + 7
    bench_public(settings)
    assert len(lmms.calls) == 11
    with pytest.raises(ConfigError, match="holds results of other settings"):
        bench_public(replace(settings, limit=5))


def test_the_report_of_an_evaluation_is_not_replaced(settings, lmms):
    Path(settings.out).mkdir()
    Path(settings.out, "report.json").write_text("{}")
    with pytest.raises(ConfigError, match="report.json of other settings; choose another folder"):
        bench_public(settings)
    assert not lmms.calls


def test_another_processor_in_the_folder_of_the_model_is_another_run(settings, lmms, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "preprocessor_config.json").write_text('{"do_pad": false}')
    settings = replace(settings, model=str(model))
    bench_public(settings)
    (model / "preprocessor_config.json").write_text('{"do_pad": true}')
    with pytest.raises(ConfigError, match="holds results of other settings"):
        bench_public(settings)


def test_a_task_of_ones_own_runs_again_if_its_folder_has_changed(settings, lmms, tmp_path):
    own = tmp_path / "own"
    (own / "__pycache__").mkdir(parents=True)
    (own / "gqa.yaml").write_text("task: gqa\ntest_split: test\n")
    (own / "gqa.jsonl").write_text("{}\n")
    settings = replace(settings, include=str(own))
    bench_public(settings)
    (own / "__pycache__" / "utils.pyc").write_bytes(b"compiled by lmms-eval")
    bench_public(settings)
    assert len(lmms.calls) == 10
    (own / "gqa.jsonl").write_text("{}\n{}\n")
    bench_public(settings)
    assert len(lmms.calls) == 15, "the other task is not of this folder"


def test_cells_of_other_code_or_another_batch_size_run_again(settings, lmms, monkeypatch):
    """Answers of two versions do not belong into one table."""
    for version, batch_size, calls in (("1", 8, 10), ("1", 8, 10), ("2", 8, 20), ("2", 4, 30)):
        monkeypatch.setattr(bench, "code_version", lambda own=version: {"autoselect": own})
        bench_public(replace(settings, batch_size=batch_size))
        assert len(lmms.calls) == calls


def test_a_damaged_cell_runs_again(settings, lmms):
    bench_public(settings)
    cell = min((Path(settings.out) / "cells").iterdir())
    cell.write_text(cell.read_text()[:20])
    bench_public(settings)
    assert len(lmms.calls) == 11


def test_cells_of_another_dtype_run_again(settings, lmms, monkeypatch):
    bench_public(settings)
    monkeypatch.setattr(bench, "checked_device", lambda device: "cuda")
    bench_public(settings)
    assert len(lmms.calls) == 20


def test_prefill_of_another_machine_is_measured_again(settings, lmms, monkeypatch):
    measured = []
    monkeypatch.setattr(bench, "bench_prefill", lambda *_, **__: {"missing": measured.append(1)})
    settings = replace(settings, latency=True)
    for gpu, times in (("H100", 1), ("H100", 1), ("H200", 2)):
        monkeypatch.setattr(bench, "environment", lambda gpu=gpu: {"gpu": gpu})
        bench_public(settings)
        assert len(measured) == times


def test_prefill_is_measured_again_by_another_version(settings, lmms, monkeypatch):
    """An older version timed other calls, whose speedups do not compare."""
    measured = []
    monkeypatch.setattr(bench, "bench_prefill", lambda *_, **__: {"missing": measured.append(1)})
    for version, times in (("1", 1), ("1", 1), ("2", 2)):
        monkeypatch.setattr(bench, "code_version", lambda own=version: {"autoselect": own})
        bench_public(replace(settings, latency=True))
        assert len(measured) == times


def test_prefill_is_measured_again_for_other_budgets_and_after_a_refusal(
    settings, lmms, monkeypatch
):
    measured = []

    def prefill(model, selector, budgets, batches, device=None):
        measured.append(budgets)
        if budgets == "32":
            raise ConfigError("no room")
        return {"missing": f"prefill of {budgets}"}  # what a report says instead of a table

    monkeypatch.setattr(bench, "bench_prefill", prefill)
    settings = replace(settings, latency=True, budgets="64")
    for budgets in ("64", "64", "64,32", "64,32", "32", "32"):
        latency = bench_public(replace(settings, budgets=budgets))["latency"]
        assert latency["missing"] == ("no room" if budgets == "32" else f"prefill of {budgets}")
    assert measured == ["64", "64,32", "32", "32"]


@pytest.fixture
def tracked_here(empty_store, monkeypatch):
    """Put a store into the folder of the test."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("mlflow.db").write_bytes(empty_store)


def tracked_runs():
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("autoselect-public").experiment_id
    return client.search_runs([experiment])


def test_a_run_is_tracked_with_a_child_for_every_row(settings, lmms, tracked_here):
    bench_public(replace(settings, tracking=True, budgets="64"))
    runs = {run.info.run_name: run for run in tracked_runs()}
    assert set(runs) == {"public out", "autoselect, 64 tokens", "random, 64 tokens"}
    assert runs["public out"].data.metrics["full/gqa"] == 80.0
    assert "system/cpu_utilization_percentage" in runs["public out"].data.metrics
    row = runs["autoselect, 64 tokens"]
    assert row.data.metrics["retention"] == pytest.approx(0.75)
    assert row.data.tags["mlflow.parentRunId"] == runs["public out"].info.run_id


def test_a_killed_and_a_repeated_run_go_on_in_the_same_tracked_runs(settings, lmms, tracked_here):
    settings = replace(settings, tracking=True, budgets="64")
    lmms.fail_at = 3
    with pytest.raises(KeyboardInterrupt):
        bench_public(settings)
    (killed,) = tracked_runs()
    assert killed.info.status == "KILLED"
    lmms.fail_at = None
    bench_public(settings)
    first = {run.info.run_name: run.info.run_id for run in tracked_runs()}
    assert first["public out"] == killed.info.run_id
    bench_public(replace(settings, methods="autoselect,grid"))
    after = {run.info.run_name: run for run in tracked_runs()}
    assert set(after) == {*first, "grid, 64 tokens"} and len(tracked_runs()) == 4
    assert {name: after[name].info.run_id for name in first} == first
    assert {run.info.status for run in after.values()} == {"FINISHED"}


def test_the_call_is_the_documented_one(settings, tmp_path):
    whole = lmms_command(settings, TaskRun("full", "full", "gqa"), tmp_path)
    assert whole[1:] == [
        *("-m", "lmms_eval", "--model", "autoselect"),
        *("--model_args", "pretrained=org/llava-1.5-7b-hf,budget=full"),
        *("--tasks", "gqa", "--batch_size", "8", "--output_path", str(tmp_path)),
    ]
    many = replace(settings, launcher="accelerate launch --num_processes 8", limit=10)
    words = lmms_command(many, TaskRun("random", "64", "gqa"), tmp_path)
    assert words[:5] == ["accelerate", "launch", "--num_processes", "8", "-m"]
    assert "pretrained=org/llava-1.5-7b-hf,budget=64,method=random" in words
    assert words[-2:] == ["--limit", "10"]
    selected = lmms_command(settings, TaskRun("autoselect", "64", "gqa"), tmp_path)
    assert any(word.endswith("selector=org/selector") for word in selected)
    with pytest.raises(ConfigError, match="neither a comma"):
        lmms_command(replace(settings, model="a,b"), TaskRun("full", "full", "gqa"), tmp_path)


def test_a_failing_task_is_named_with_the_end_of_its_output(settings, monkeypatch):
    ended = subprocess.CompletedProcess([], 0, "much\n", "ValueError: no data set\n")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: ended)
    with pytest.raises(ConfigError, match=r"(?s)lmms-eval failed on gqa.*no data set"):
        bench_public(settings)


def test_a_group_of_tasks_is_named_with_its_members(settings, monkeypatch):
    def run(command, **options):
        folder = Path(command[command.index("--output_path") + 1])
        value = {"results": {"gqa_a": {"exact_match,none": 0.5}, "gqa_b": {}}}
        (folder / "20261122_results.json").write_text(json.dumps(value))
        return subprocess.CompletedProcess([], 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ConfigError, match="task=gqa has no score .* gqa_a, gqa_b; name tasks"):
        bench_public(settings)


def test_settings_that_do_not_fit_are_refused(settings, monkeypatch):
    with pytest.raises(ConfigError, match="methods='oracle' is unknown here"):
        task_runs(replace(settings, methods="oracle"))
    with pytest.raises(ConfigError, match="full is always run"):
        task_runs(replace(settings, budgets="full"))
    for budgets, words in (("64,0", "budget=0 is below 1"), ("200%", "up to 1")):
        with pytest.raises(ConfigError, match=words):
            task_runs(replace(settings, budgets=budgets))
    with pytest.raises(ConfigError, match="at least one"):
        task_runs(replace(settings, tasks=" "))
    for name in ("batch_size", "limit"):
        with pytest.raises(ConfigError, match=f"{name}=0 is below 1; choose 1 or more"):
            replace(settings, **{name: 0})
    with pytest.raises(ConfigError, match="max_new_tokens=0 is below 1"):
        write_local_task("mine", "nowhere", Path(settings.out), 0)

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"pip install 'autoselect\[bench\]'"):
        bench_public(settings)


def test_the_ten_of_the_paper_are_the_default():
    assert len(TEN) == 10 and set(TEN) <= set(TASKS)


def test_scores_come_in_the_published_unit():
    assert task_score("pope", {"pope_f1_score,none": 0.859, "pope_accuracy,none": 0.86})[0] == 85.9
    assert task_score("mmbench_en_dev", {"gpt_eval_score,none": 64.7})[0] == 64.7
    score, numbers = task_score("local", {"a,none": 0.5, "b,none": 1.0, "a_stderr,none": 0.1})
    assert (score, numbers) == (75.0, {"a": 0.5, "b": 1.0})
    with pytest.raises(ConfigError, match="gave no gpt_eval_score .*OPENAI_API_KEY"):
        task_score("mmvet", {"gpt_eval_score,none": "N/A"})


def test_published_rows_state_k_and_their_source():
    rows = published_rows("llava-hf/llava-1.5-7b-hf")
    assert len(rows) == 3 * len(RETENTION[64]) + 2
    assert all(row["source"] for row in rows)
    assert {row["budget"] for row in rows} == {192, 128, 64, None}
    assert published_rows("Qwen/Qwen2.5-VL-7B-Instruct") == []


def test_a_task_without_a_score_of_the_full_model_is_left_out_of_the_mean():
    def cell(method, task, score):
        row = {"method": method, "budget": method, "task": task, "score": score}
        return row | {"metrics": {}, "seconds": 1.0}

    results = [cell("full", "a", 0.0), cell("full", "b", 50.0)]
    results += [cell("x", "a", 3.0), cell("x", "b", 25.0)]
    more = {"environment": {}, "identity": {}}
    report = build_public_report("some", results, {"missing": "no GPU"}, more)
    assert report["rows"][0]["retention_tasks"] == {"a": None, "b": 0.5}
    assert report["rows"][0]["retention"] == 0.5
    assert "Not measured: no GPU" in public_markdown(report)
