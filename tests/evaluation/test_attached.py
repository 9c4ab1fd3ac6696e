"""Evaluation through `attach`: equal to the common path where both go, open to other families."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from autoselect.config import ConfigError, ScorerConfig
from autoselect.evaluation import run
from autoselect.evaluation.answering import Plan, answer_part
from autoselect.evaluation.attached import answer_attached
from autoselect.evaluation.latency import LatencyPlan
from autoselect.evaluation.loading import LoadedSelector, load_pair
from autoselect.evaluation.methods import METHODS, selector_method
from autoselect.evaluation.report import check_report
from autoselect.evaluation.run import EvalSettings, evaluate
from autoselect.evaluation.samples import EvaluationSet
from autoselect.scorer import Scorer
from autoselect.selector import Selector
from autoselect.vlm import FrozenVLM
from tests.vlm import tiny_processors
from tests.vlm.stock import model_of
from tests.vlm.tiny_prompts import WIDTH


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(LatencyPlan, "rounds", lambda plan, device: (2, 0))


def test_it_gives_the_answers_of_the_common_path(model_folder, selector_folder, shards):
    vlm, selector = load_pair(model_folder, selector_folder, "cpu")
    selector.diversity = 0.4
    methods = (selector_method(selector), METHODS["divprune"], METHODS["norm"])
    plan = Plan(methods, (8, 40), rows_per_batch=7, max_new_tokens=3)
    samples = list(EvaluationSet.open(shards))
    expected, found = answer_part(vlm, samples, plan), answer_attached(vlm, samples, plan, 144)
    assert set(found) == set(expected)
    assert {c: t for c, t in found.items() if "blind" not in c} == {
        c: t for c, t in expected.items() if "blind" not in c
    }
    assert getattr(vlm.model, "autoselect", None) is None, "the model is what it was"


@pytest.fixture(params=["idefics3", "qwen2_5_vl", "qwen3_vl"])
def other_family(request, monkeypatch, shards, tmp_path):
    """Settings that evaluate a tiny model of another family."""
    name = request.param
    torch.manual_seed(0)
    selector = Selector(Scorer(WIDTH, ScorerConfig(hidden_size=16, num_heads=2))).eval()
    vlm = FrozenVLM(model_of(name), getattr(tiny_processors, name)(), name)
    loaded = {"autoselect": LoadedSelector(selector, "0")}
    monkeypatch.setattr(run, "load_selectors", lambda *_: (vlm, loaded))
    settings = EvalSettings(name, "s", shards, "25%,100%", str(tmp_path / "out"), tracking=False)
    return dataclasses.replace(settings, methods="random,grid,divprune", random_seeds=1)


def test_families_with_prompts_of_their_own_are_evaluated(other_family):
    assert evaluate(other_family) is not None
    out = Path(other_family.out)
    report = json.loads((out / "report.json").read_text())
    check_report(report)
    count = report["num_tokens"]
    assert {row["budget"] for row in report["rows"]} == {round(0.25 * count), count}
    assert {row["method"] for row in report["rows"]} == {"autoselect", "random", "grid", "divprune"}
    for line in (out / "predictions.jsonl").read_text().splitlines():
        given = json.loads(line)["predictions"]
        assert given[f"autoselect@{count}#0"] == given["full@0#0"], "K = N is the untouched model"
    for row in report["latency"]["pruned"]:
        assert row["prefill_ms"] > 0 and row["selector_ms"] > 0 and row["speedup"] > 0
    few, full = report["latency"]["pruned"][0], report["latency"]["full"]
    assert few["kv_cache_bytes"] < full["kv_cache_bytes"]
    assert (out / "figures" / "retention.png").is_file() and (out / "report.html").is_file()


def test_what_cannot_be_attached_is_refused_by_name(other_family):
    with pytest.raises(ConfigError, match="methods=visionzip: this model's own processor"):
        evaluate(dataclasses.replace(other_family, methods="visionzip"))
    with pytest.raises(ConfigError, match="scoring=likelihood needs a model whose images"):
        evaluate(dataclasses.replace(other_family, scoring="likelihood"))
