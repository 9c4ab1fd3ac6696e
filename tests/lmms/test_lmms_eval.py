"""Tests that need lmms-eval: `make test-bench` runs them; without it they are skipped."""

import json
import os
import subprocess
import sys

import pytest

from autoselect.config import ConfigError
from autoselect.evaluation.answers.answering import Plan, answer_part
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.evaluation.asking.replies import texts_of
from autoselect.evaluation.methods.registry import METHODS, selector_method
from autoselect.evaluation.samples import EvaluationSet
from autoselect.evaluation.scores.scoring import score_answers
from autoselect.lmms.local_task import write_local_task
from autoselect.pruning.selector import Selector
from autoselect.reference.resources import MODEL_FOLDER
from autoselect.vlm import FrozenVLM

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: make test-bench")
BUDGET = 8


@pytest.fixture(scope="module")
def task(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    write_local_task("local_shards", str(reference / "test-*.tar"), folder)
    return folder


@pytest.fixture(scope="module")
def own(reference):
    """Return the scores of the evaluator: method -> task -> accuracy."""
    samples = list(EvaluationSet.open(str(reference / "test-*.tar")))
    vlm = FrozenVLM.from_pretrained(MODEL_FOLDER)
    selector = Selector.from_pretrained(reference / "selector")
    plan = Plan(
        methods=(selector_method(selector), METHODS["divprune"]), budgets=(BUDGET,), num_tokens=144
    )
    replies = answer_part(AskedVLM(vlm), samples, plan)
    return {
        column.method: score_answers(samples, texts_of(replies[str(column)])).task_means()
        for column in plan.columns()
    }


def lmms_scores(task, budget, batch: int, **more: str) -> dict[str, float]:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    arguments = {"pretrained": str(MODEL_FOLDER), "budget": budget, **more}
    results = simple_evaluate(
        model="autoselect",
        model_args=",".join(f"{name}={value}" for name, value in arguments.items()),
        tasks=["local_shards"],
        task_manager=TaskManager("INFO", str(task)),
        batch_size=batch,
        device="cpu",
        log_samples=False,
    )["results"]["local_shards"]
    return {key.partition(",")[0]: v for key, v in results.items() if key.endswith(",none")}


def mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


@pytest.mark.parametrize("batch", [1, 4])
def test_lmms_eval_gives_the_accuracy_of_the_own_evaluator(task, own, reference, batch):
    selector = str(reference / "selector")
    for expected, scores in (
        (own["full"], lmms_scores(task, "full", batch)),
        (own["autoselect"], lmms_scores(task, BUDGET, batch, selector=selector)),
        (own["divprune"], lmms_scores(task, BUDGET, batch, method="divprune")),
    ):
        assert {name: scores[name] for name in expected} == pytest.approx(expected)


def test_an_unknown_model_argument_is_named():
    from autoselect.lmms.lmms_model import AutoSelectModel

    with pytest.raises(ConfigError, match="budgett is not an argument of this model"):
        AutoSelectModel(str(MODEL_FOLDER), budgett=8)


def test_the_public_bench_runs_it_and_reports_the_same(task, own, reference, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "autoselect.cli", "bench", "public", "--model", "reference"]
    command += ["--selector", str(reference / "selector"), "--budgets", str(BUDGET)]
    command += ["--tasks", "local_shards", "--include", str(task), "--out", str(tmp_path / "out")]
    command += ["--batch-size", "4", "--device", "cpu"]
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["full"]["tasks"]["local_shards"] == pytest.approx(100 * mean(own["full"]))
    (row,) = report["rows"]
    assert row["tasks"]["local_shards"] == pytest.approx(100 * mean(own["autoselect"]))
    assert report["latency"]["runs"][0]["pruned"][0]["speedup"] > 0
    assert (tmp_path / "mlflow.db").is_file()
