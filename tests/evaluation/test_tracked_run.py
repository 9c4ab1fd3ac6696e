"""Evaluations as MLflow runs, on an untrained reference VLM and a store of their own."""

import dataclasses
import json
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from autoselect.cli import main as cli
from autoselect.config import ConfigError, ScorerConfig
from autoselect.evaluation.analyses.tracked_analysis import points
from autoselect.evaluation.latency import bench
from autoselect.evaluation.loading import load_pair, selector_digest
from autoselect.evaluation.run import evaluate
from autoselect.evaluation.run_names import shown_folder, shown_selector
from autoselect.evaluation.settings import EvalSettings
from autoselect.method.scorer import Scorer
from autoselect.pruning.selector import Selector
from autoselect.tracking import Tracker
from autoselect.tracking.store import default_uri


@pytest.fixture
def tracked(empty_store, model_folder, shards, tmp_path, monkeypatch):
    """Settings, in a folder with a store that holds the run in which the selector was trained."""
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    training = Tracker.start("autoselect", "train mine")
    training.finish()
    folder = tmp_path / "mine" / "selector"
    known = {"tracking_run_id": training.run_id}
    Selector(Scorer(192, ScorerConfig()), known).save_pretrained(folder)
    return EvalSettings(
        model=model_folder,
        selector=str(folder),
        shards=shards,
        budgets="4,11%",
        out=str(tmp_path / "out"),
        methods="none",
        random_seeds=1,
        max_images=2,
    )


def runs(kind):
    found = MlflowClient(default_uri()).search_runs(["1"], f"tags.kind = '{kind}'")
    return sorted(found, key=lambda run: run.info.start_time)


def test_an_evaluation_is_one_run_however_often_it_is_repeated(tracked, model_folder):
    evaluate(tracked)
    evaluate(tracked)
    (parent,) = runs("evaluation")
    assert parent.info.status == "FINISHED" and parent.info.run_name == "eval out"
    assert len(runs("evaluation row")) == 2
    vlm, _ = load_pair(model_folder, tracked.selector, "cpu")
    assert parent.data.tags["model_digest"] == vlm.digest
    assert "system/cpu_utilization_percentage" in parent.data.metrics
    assert parent.data.tags["selector"].endswith("mine")
    assert parent.data.tags["mlflow.note.content"].startswith("**K=4 keeps")
    assert (
        f"#/experiments/1/runs/{parent.data.tags['training_run']}"
        in (parent.data.tags["mlflow.note.content"])
    )
    training = MlflowClient(default_uri()).get_run(parent.data.tags["training_run"])
    assert training.data.tags["evaluations"] == parent.info.run_id
    assert f"#/experiments/1/runs/{parent.info.run_id}" in training.data.tags["mlflow.note.content"]
    with pytest.raises(ConfigError, match="holds a report of other settings"):
        evaluate(dataclasses.replace(tracked, budgets="8"))
    assert len(runs("evaluation")) == 1, "nothing was begun"


def test_the_run_begins_before_the_answers_and_ends_as_what_happened(tracked, monkeypatch):
    seen = []

    def dies_with(error):
        def answer(*arguments):
            (run,) = runs("evaluation")
            seen.append(run.info.status)
            raise error

        return answer

    for error, status in ((RuntimeError("no memory"), "FAILED"), (KeyboardInterrupt(), "KILLED")):
        monkeypatch.setattr("autoselect.evaluation.run.answer_all", dies_with(error))
        with pytest.raises(type(error)):
            evaluate(tracked)
        assert runs("evaluation")[0].info.status == status
    assert seen == ["RUNNING", "RUNNING"]
    monkeypatch.setattr(
        "autoselect.evaluation.run.answer_all",
        lambda *arguments: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(10),
    )
    with pytest.raises(SystemExit) as stopped:
        evaluate(tracked)
    assert stopped.value.code == 143
    (run,) = runs("evaluation")
    assert run.info.status == "KILLED"


def test_a_logged_selector_is_evaluated_timed_and_analysed_by_its_address(
    tracked, tmp_path, capsys
):
    evaluate(tracked)
    (run,) = runs("evaluation")
    own = Selector.from_pretrained(tracked.selector)
    for address in (
        f"runs:/{run.info.run_id}/selector",
        f"models:/{run.data.tags['model.selector']}",
    ):
        back = Selector.from_pretrained(address)
        assert selector_digest(back) == selector_digest(own)
    other = dataclasses.replace(tracked, selector=address, out=str(tmp_path / "again"))
    report = evaluate(other).report
    assert report["digests"]["selector"] == selector_digest(own)
    assert runs("evaluation")[-1].data.tags["selector"] == address
    timed = bench.bench_prefill(tracked.model, address, "8", [1], bench.Rounds(1, 0), "cpu")
    assert timed["runs"][0]["pruned"]
    with pytest.raises(ConfigError, match="models:/m-0 is not in sqlite"):
        Selector.from_pretrained("models:/m-0")


def test_several_selectors_are_logged_as_models(tracked, selector_folder):
    names = f"{tracked.selector},b={selector_folder},c+1@(new)={selector_folder}"
    evaluate(dataclasses.replace(tracked, selector=names))
    (run,) = runs("evaluation")
    wanted = {"model.selector", "model.selector-b", "model.selector-c_1__new_"}
    assert wanted <= set(run.data.tags)


def test_a_selector_that_is_called_by_its_path_is_saved_nowhere_else(
    tracked, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "a").mkdir()
    path = Path("a", "..", "..", tmp_path.name, "mine", "selector")
    kept = tmp_path / "temporary" / tmp_path.name / "mine" / "selector" / "README.md"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    evaluate(dataclasses.replace(tracked, selector=f"{tracked.selector},{path}"))
    assert kept.read_text() == "mine"
    (run,) = runs("evaluation")
    assert any(name.startswith("model.selector-a_") for name in run.data.tags)


def test_the_columns_of_a_run_are_those_of_its_first_selector(tracked):
    """MLflow makes metrics of a logged model metrics of its run, and shows the last one."""
    settings = dataclasses.replace(tracked, diversity="0,0.9", reference="model", max_images=5)
    report = evaluate(settings).report
    retention = {(row["method"], row["budget"]): row["retention"] for row in report["rows"]}
    other = next(method for method, _ in retention if method.startswith("autoselect:"))
    budgets = {budget for _, budget in retention}
    assert any(retention["autoselect", k] != retention[other, k] for k in budgets), retention
    (run,) = runs("evaluation")
    for k in budgets:
        name = f"retention_at_{k}_tokens"
        assert run.data.metrics[name] == retention["autoselect", k]
        assert run.data.metrics[f"{name}/{other.partition(':')[2]}"] == retention[other, k]
        for cost in ("retention_low", "retention_high", "speedup"):
            assert f"{cost}_at_{k}_tokens/{other.partition(':')[2]}" in run.data.metrics
        history = MlflowClient(default_uri()).get_metric_history(run.info.run_id, name)
        assert {metric.value for metric in history} == {retention["autoselect", k]}


@pytest.mark.parametrize(("reference", "kept"), [("answers", None), ("model", 1.0)])
def test_the_full_model_keeps_nothing_known_where_it_scores_nothing(tracked, reference, kept):
    report = evaluate(dataclasses.replace(tracked, reference=reference)).report
    assert bool(report["full"]["mean"]) == (kept is not None)
    (run,) = runs("evaluation")
    path = MlflowClient(default_uri()).download_artifacts(run.info.run_id, "accuracy.json")
    table = json.loads(Path(path).read_text())
    upper = dict(zip(table["columns"], table["data"][0], strict=True))
    assert upper["method"] == "upper bound" and upper["retention"] == kept


@pytest.mark.parametrize(
    ("selector", "shown"),
    [
        ("runs/ablation/cells/raw/seed-0/train/selector", "raw/seed-0"),
        ("runs/mine/selector", "runs/mine"),
        ("own=runs/mine/train/selector,other=x", "runs/mine"),
        ("models:/m-0123", "models:/m-0123"),
        ("org/name", "org/name"),
    ],
)
def test_selectors_are_called_by_what_names_them(selector, shown):
    assert shown_selector(selector) == shown


def test_evaluations_are_called_by_their_folder():
    assert shown_folder("runs/report") == "report"
    assert shown_folder("runs/mine/eval") == "mine"


def analyse(tracked, kind, *more):
    words = ["--model", tracked.model, "--selector", tracked.selector, "--shards", tracked.shards]
    words += ["--max-images", "2"]
    words += ["--budgets", "4,16"] if kind != "similarity" else []
    words += ["--out", f"{tracked.out}-analyses", *more]
    arguments = cli.parser("analyse").parse_args(["analyse", kind, *words])
    assert arguments.run(arguments) == 0


def test_an_analysis_is_a_run_with_its_numbers_and_its_figure(tracked):
    for _ in range(2):
        analyse(tracked, "fidelity")
    (run,) = runs("analysis")
    assert run.info.status == "FINISHED" and run.info.run_name == "analyse fidelity out-analyses"
    assert run.data.metrics["analysis/fidelity/mean_gap"] >= 0
    assert run.data.metrics["analysis/fidelity/learned/mean_gap"] >= 0
    assert "system/cpu_utilization_percentage" in run.data.metrics
    assert run.data.tags["analysis"] == "fidelity" and run.data.tags["model_digest"]
    client = MlflowClient(default_uri())
    curve = client.get_metric_history(run.info.run_id, "analysis/fidelity/curves/noise gating")
    assert [metric.step for metric in curve] == [4, 16]
    assert [f.path for f in client.list_artifacts(run.info.run_id, "figures")] == [
        "figures/fidelity.png"
    ]
    training = client.get_run(run.data.tags["training_run"])
    assert training.data.tags["analyses"] == run.info.run_id
    analyse(tracked, "similarity", "--no-tracking")
    assert len(runs("analysis")) == 1


def test_an_evaluation_and_an_analysis_share_a_folder(tracked):
    evaluate(tracked)
    tracked = dataclasses.replace(tracked, out=tracked.out)
    analyse(tracked, "frequency", "--out", tracked.out)
    evaluate(tracked)
    assert len(runs("evaluation")) == len(runs("analysis")) == 1


def test_gates_of_an_unknown_training_are_refused_before_a_run_begins(tracked):
    with pytest.raises(ConfigError, match="training.gate is missing"):
        analyse(tracked, "gates")
    assert not runs("analysis")


def test_numbers_of_an_analysis_become_metrics_by_budget_or_step():
    numbers = {
        "budgets": [8, 16],
        "selected": [0.5, 0.75],
        "full": 1.0,
        "unknown": None,
        "gaps": [{"budget": 8, "gap": 0.1, "ci95": [0.0, 0.2]}],
        "course": [(10, 0.3), (20, 0.9)],
        "positions": [0.1, 0.2, 0.3],
        "grid": [14, 14],
        "grids": {"selection": [24, 24], "classifier": [14, 14]},
        "images": 4,
    }
    assert sorted(points(numbers)) == [
        ("course", 0.3, 10),
        ("course", 0.9, 20),
        ("full", 1.0, None),
        ("gaps/gap", 0.1, 8),
        ("images", 4.0, None),
        ("selected", 0.5, 8),
        ("selected", 0.75, 16),
    ]
